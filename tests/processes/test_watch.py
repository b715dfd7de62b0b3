"""Short form of `make watch-torture`: real processes, a leader killed and a member restarted."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from bench import watch, watch_torture

KILLS, RESTARTS, PAUSES, EVENTS = 1, 1, 1, 2000
WATCHERS = 500


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_watchers_miss_nothing_and_others_are_not_touched(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    cluster, ports = watch.prepared(tmp_path, watch_torture.FLAGS)
    with cluster:
        result = watch_torture.torture(
            cluster, random.Random(seed), kills=KILLS, restarts=RESTARTS, pauses=PAUSES, events=EVENTS
        )
        before = watch.touched(ports)
        others = asyncio.run(watch.measure(cluster, ports, watchers=WATCHERS, puts=20, rounds=1))
    assert result["complaints"] == []
    assert result["events"] >= EVENTS
    assert result["images"] >= PAUSES, "who stood still was not brought an image: the pause proves nothing"
    assert sum(result["reconnects"]) >= KILLS, "nobody watched through a member that died"
    assert before > 0, "the watchers before were never counted: the counter proves nothing"
    assert others["touched"] == 0


def test_a_missing_and_a_repeated_event_are_seen() -> None:
    history = [watch_torture.Seen(revision, False, b"k", 1, 1, b"", 0) for revision in range(2, 9)]
    assert watch_torture.compare("x", history, history) == []
    assert watch_torture.compare("x", history[:3] + history[4:], history)
    assert watch_torture.compare("x", [*history, history[-1]], history)

"""Short form of `make watch-torture`: real processes, a leader killed and a member restarted."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from bench import clusters, watch, watch_torture

KILLS, RESTARTS, PAUSES, EVENTS = 2, 1, 1, 3000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_watchers_across_killed_leaders_and_a_restart(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    with clusters.ours(tmp_path, flags=watch_torture.FLAGS) as cluster:
        result = watch_torture.torture(
            cluster, random.Random(seed), kills=KILLS, restarts=RESTARTS, pauses=PAUSES, events=EVENTS
        )
    assert result["complaints"] == []
    assert result["events"] >= EVENTS
    assert result["images"] >= PAUSES, "who stood still was not brought an image: the pause proves nothing"
    assert sum(result["reconnects"]) >= KILLS, "nobody watched through a member that died"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_watchers_of_other_keys_are_not_touched(tmp_path: Path) -> None:
    """Short form of `make bench-watch`, which also judges the time."""
    cluster, ports = watch.prepared(tmp_path)
    with cluster:
        result = asyncio.run(watch.measure(cluster, ports, watchers=1000, puts=50, rounds=1))
    assert result["touched"] == 0


def test_a_missing_and_a_repeated_event_are_seen() -> None:
    history = [watch_torture.Seen(revision, False, b"k", 1, 1, b"", 0) for revision in range(2, 9)]
    assert watch_torture.compare("x", history, history) == []
    assert watch_torture.compare("x", history[:3] + history[4:], history)
    assert watch_torture.compare("x", [*history, history[-1]], history)

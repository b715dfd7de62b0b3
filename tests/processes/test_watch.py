"""Short form of `make watch-torture`: real processes, a leader killed and a member restarted."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest

from bench import clusters, rpc, watch, watch_torture
from kvstore.client import Connection, Watching, parse_endpoints
from kvstore.wire import rpc_pb2

KILLS, RESTARTS, PAUSES, EVENTS = 1, 2, 1, 2000
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
    assert result["snapshots"] >= PAUSES, "the paused member received no snapshot: the pause was too short"
    assert sum(result["reconnects"]) >= KILLS, "no watcher was connected to a killed member"
    assert before > 0, "the counter did not count the earlier watchers"
    assert others["touched"] == 0


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_watch_leaves_a_paused_member(tmp_path: Path) -> None:
    """Its kernel keeps the connection open, so only an unanswered keepalive ping ends the stream."""

    async def watch_on(still: clusters.Member, endpoints: list[str]) -> list[bytes]:
        connection = Connection(
            parse_endpoints(",".join(endpoints)),
            timeout_s=10.0,
            keepalive_time_s=1.0,
            keepalive_timeout_s=1.0,
        )
        told: list[bytes] = []
        other = rpc.Store(endpoints[1])
        request = rpc_pb2.WatchCreateRequest(key=b"k", start_revision=1)
        async with connection, Watching(connection, request) as watching:
            for value in (b"before", b"meanwhile"):
                await other.put(rpc_pb2.PutRequest(key=b"k", value=value), timeout=10.0)
                while not told or told[-1] != value:
                    told += [event.kv.value for event in (await anext(aiter(watching))).events]
                assert watching.reconnects == (value == b"meanwhile")
                still.signal(signal.SIGSTOP)
        await other.close()
        return told

    with clusters.ours(tmp_path) as cluster:
        leader = cluster.leader()
        still = next(member for member in cluster.members if member is not leader)
        try:
            told = asyncio.run(asyncio.wait_for(watch_on(still, [still.endpoint, leader.endpoint]), 60.0))
        finally:
            still.signal(signal.SIGCONT)
    assert told == [b"before", b"meanwhile"]


def test_a_missing_and_a_repeated_event_are_seen() -> None:
    history = [watch_torture.Seen(revision, False, b"k", 1, 1, b"", 0) for revision in range(2, 9)]
    assert watch_torture.compare("x", history, history) == []
    assert watch_torture.compare("x", history[:3] + history[4:], history)
    assert watch_torture.compare("x", [*history, history[-1]], history)

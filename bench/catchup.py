"""`make bench-catchup`: a member that was down for many writes catches up by snapshot while writes go on.

Each round: a follower is killed; the others take so many writes, and compact the entries that it lacks; a
steady writer is measured for a while (*before*); the member is started, and the same writer is measured
until it has caught up (*during*). So both are measured on the same cluster, alternately. In the end every
member is read back, and all must hold the same state.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from bench import clusters, rpc
from bench.load import percentile
from bench.writer import Writer
from kvstore.wire import rpc_pb2

WRITES = 200_000
ROUNDS = 2
RATE = 200.0
IN_FLIGHT = 128
VALUE_BYTES = 128
REQUEST_SECONDS_MAX = 20.0
BEFORE_SECONDS = 5.0
DURING_SECONDS_MIN = 2.0
"""A catch-up that is over sooner is measured this long: a percentile of few writes says nothing."""
CAUGHT_UP_SECONDS_MAX = 300.0
FLAGS = ("--snapshot-count=20", "--snapshot-catchup-entries=20")
"""The log is compacted soon: an entry is a batch of writes, so that some thousand of them are a few dozen."""
INSTALLED = "the state is now the "
"""A member's log line when it has installed a snapshot."""


async def fill(endpoints: Sequence[str], prefix: bytes, writes: int) -> None:
    """Unique keys, so many, as fast as they go. Raises grpc.aio.AioRpcError when one fails."""
    stores = [rpc.Store(endpoint) for endpoint in endpoints]
    numbers = iter(range(writes))
    value = bytes(VALUE_BYTES)

    async def caller(store: rpc.Store) -> None:
        for number in numbers:
            key = prefix + b"%08d" % number
            await store.put(rpc_pb2.PutRequest(key=key, value=value), timeout=REQUEST_SECONDS_MAX)

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(IN_FLIGHT):
                group.create_task(caller(stores[number % len(stores)]))
    finally:
        for store in stores:
            await store.close()


def latencies_ms(writer: Writer, begin: float, end: float) -> list[float]:
    """Of the acknowledged writes sent in that time, ascending."""
    return sorted(
        1000 * (write.done - write.sent)
        for write in writer.writes
        if write.is_acknowledged and begin <= write.sent < end
    )


def summary(ordered: list[float], seconds: float) -> dict[str, float]:
    return {
        "seconds": round(seconds, 2),
        "writes": len(ordered),
        "p50_ms": round(percentile(ordered, 0.50), 2),
        "p99_ms": round(percentile(ordered, 0.99), 2),
        "max_ms": round(ordered[-1], 2) if ordered else float("nan"),
    }


def installations(member: clusters.Member) -> int:
    return member.log.read_text(errors="replace").count(INSTALLED)


def wait_caught_up(cluster: clusters.Cluster, member: clusters.Member) -> None:
    """Until the member has applied what the leader had committed when it was asked a moment ago."""
    deadline = time.monotonic() + CAUGHT_UP_SECONDS_MAX
    while True:
        leading = cluster.status(cluster.leader())
        status = cluster.status(member)
        if leading is not None and status is not None and status.raftAppliedIndex >= leading.raftAppliedIndex:
            return
        if time.monotonic() > deadline:
            raise clusters.ClusterError(f"{member.name} has not caught up:\n{member.tail()}")
        clusters.pause()


def one_round(cluster: clusters.Cluster, folder: Path, number: int, writes: int) -> dict[str, Any]:
    cluster.wait_ready()
    leader = cluster.leader()
    away = next(member for member in cluster.members if member is not leader)
    others = [member.endpoint for member in cluster.members if member is not away]
    installed = installations(away)
    away.kill()
    began = time.monotonic()
    asyncio.run(fill(others, b"load-%d-" % number, writes))
    filled_s = time.monotonic() - began
    with Writer(others, folder, rate=RATE, prefix=f"steady-{number}/") as writer:
        writer.wait_acknowledged(0.0, int(RATE), REQUEST_SECONDS_MAX)
        before = time.monotonic()
        clusters.pause(BEFORE_SECONDS)
        started = time.monotonic()
        away.start()
        wait_caught_up(cluster, away)
        caught_up = time.monotonic()
        clusters.pause(max(0.0, DURING_SECONDS_MIN - (caught_up - started)))
        ended = time.monotonic()
        writer.finish()
    complaints = [line for member in cluster.members for line in writer.verify(member.endpoint)]
    refused = sorted({write.error for write in writer.writes if not write.is_acknowledged})
    return {
        "filled_writes_per_s": round(writes / filled_s),
        "caught_up_s": round(caught_up - started, 2),
        "snapshots_installed": installations(away) - installed,
        "before": summary(latencies_ms(writer, before, started), started - before),
        "during": summary(latencies_ms(writer, started, ended), ended - started),
        "refused": refused[:5],
        "complaints": complaints[:10],
    }


def hashes(cluster: clusters.Cluster) -> set[tuple[int, int]]:
    """(revision, hash of the whole history) of every member; one if they agree."""
    replies = []
    revision = 0
    for member in cluster.members:
        with grpc.insecure_channel(member.endpoint) as channel:
            call = channel.unary_unary(
                "/etcdserverpb.Maintenance/HashKV",
                request_serializer=rpc_pb2.HashKVRequest.SerializeToString,
                response_deserializer=rpc_pb2.HashKVResponse.FromString,
            )
            reply = call(rpc_pb2.HashKVRequest(revision=revision), timeout=REQUEST_SECONDS_MAX)
        revision = revision or reply.header.revision
        replies.append((revision, reply.hash))
    return set(replies)


def catch_up(cluster: clusters.Cluster, folder: Path, rounds: int, writes: int) -> dict[str, Any]:
    """All rounds, and what was wrong."""
    results = []
    for number in range(rounds):
        results.append(one_round(cluster, folder, number, writes))
        print(f"round {number + 1}: {json.dumps(results[-1])}", flush=True)
    for member in cluster.members:
        wait_caught_up(cluster, member)
    wrong = [line for result in results for line in result["complaints"] + result["refused"]]
    wrong += [
        "a member caught up without a snapshot" for result in results if not result["snapshots_installed"]
    ]
    if len(hashes(cluster)) != 1:
        wrong.append("the members hold different states")
    return {"writes": writes, "rate": RATE, "flags": FLAGS, "rounds": results, "wrong": wrong}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-catchup", description=__doc__)
    parser.add_argument("--writes", type=int, default=WRITES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=Path("bench/results/catchup.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="catchup-") as name:
        folder = Path(name)
        with clusters.ours(folder / "cluster", flags=FLAGS) as cluster:
            result = catch_up(cluster, folder, options.rounds, options.writes)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())

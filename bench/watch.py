"""`make bench-watch`: what ten thousand watchers of other keys cost a put: none is touched.

One cluster, rounds alternately with and without the watchers, which are spread over the members, half of
them on single keys and half on prefixes. A round is a number of puts, one after the other, by one
client. The members count how often a change was given to a watcher.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc.aio

from bench import clusters, rpc
from kvstore.devcluster.plan import free_ports
from kvstore.wire import rpc_pb2

WATCHERS = 10_000
STREAMS = 10
PUTS = 400
ROUNDS = 8
P50_GROWTH_MAX = 0.10
QUIESCE_SECONDS = 0.5  # after watchers came or went


class Watchers:
    """Many watchers of keys without writes, over some streams."""

    def __init__(self, endpoints: list[str], count: int) -> None:
        self.channels = [grpc.aio.insecure_channel(endpoint, options=rpc.OPTIONS) for endpoint in endpoints]
        self.count = count
        self.streams: list[Any] = []

    async def begin(self) -> None:
        """All watch when this returns."""
        for number in range(STREAMS):
            stub = self.channels[number % len(self.channels)].stream_stream(
                "/etcdserverpb.Watch/Watch",
                request_serializer=rpc_pb2.WatchRequest.SerializeToString,
                response_deserializer=rpc_pb2.WatchResponse.FromString,
            )
            self.streams.append(stub())
        await asyncio.gather(*(self._fill(number, stream) for number, stream in enumerate(self.streams)))

    async def _fill(self, number: int, stream: Any) -> None:
        share = range(number, self.count, STREAMS)

        async def ask() -> None:
            for one in share:
                key = b"watched/%06d/" % one
                create = rpc_pb2.WatchCreateRequest(key=key, range_end=key[:-1] + b"0" if one % 2 else b"")
                await stream.write(rpc_pb2.WatchRequest(create_request=create))

        asking = asyncio.ensure_future(ask())
        for _ in share:
            response = await stream.read()
            assert response.created, response
        await asking

    def end(self) -> None:
        for stream in self.streams:
            stream.cancel()
        self.streams.clear()

    async def close(self) -> None:
        self.end()
        for channel in self.channels:
            await channel.close()


async def _round(store: rpc.Store, puts: int, name: str) -> list[float]:
    """Milliseconds of each put."""
    took = []
    for number in range(puts):
        request = rpc_pb2.PutRequest(key=b"unwatched/%s/%06d" % (name.encode(), number), value=b"x" * 256)
        began = time.perf_counter()
        await store.put(request)
        took.append((time.perf_counter() - began) * 1000)
    return took


def _counted(ports: list[int], metric: str) -> int:
    """The sum of a metric over the members."""
    total = 0.0
    for port in ports:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            found = re.search(rf"^{metric} (\S+)$", reply.read().decode(), re.MULTILINE)
        assert found is not None, metric
        total += float(found.group(1))
    return int(total)


def touched(ports: list[int]) -> int:
    """How often a change was given to a watcher, at all members."""
    return _counted(ports, "kvstore_watch_touched_total")


async def measure(
    cluster: clusters.Cluster, ports: list[int], *, watchers: int, puts: int, rounds: int
) -> dict[str, Any]:
    """Interleaved rounds on a cluster that runs, its metrics at `ports`."""
    crowd = Watchers(cluster.endpoints, watchers)
    took: dict[bool, list[float]] = {True: [], False: []}
    ratios, created_s = [], []
    leader = await asyncio.to_thread(cluster.leader)
    before = touched(ports)
    async with rpc.Store(leader.endpoint) as store:
        await _round(store, puts, "warm")
        for number in range(rounds):
            medians = {}
            for watched in (number % 2 == 0, number % 2 == 1):
                if watched:
                    began = time.perf_counter()
                    await crowd.begin()
                    created_s.append(time.perf_counter() - began)
                    assert _counted(ports, "etcd_debugging_mvcc_watcher_total") == watchers
                await asyncio.sleep(QUIESCE_SECONDS)
                found = await _round(store, puts, f"{number}{watched}")
                took[watched] += found
                medians[watched] = statistics.median(found)
                if watched:
                    crowd.end()
                    await asyncio.sleep(QUIESCE_SECONDS)
            ratios.append(medians[True] / medians[False])
            print(f"round {number + 1}: {medians[False]:.2f} ms, watched {medians[True]:.2f} ms", flush=True)
    await crowd.close()
    return {
        "watchers": watchers,
        "puts_per_round": puts,
        "rounds": rounds,
        "p50_ms_without": round(statistics.median(took[False]), 3),
        "p50_ms_with": round(statistics.median(took[True]), 3),
        "p50_growth_median_of_rounds": round(statistics.median(ratios) - 1, 3),
        "touched": touched(ports) - before,
        "seconds_to_create_all": round(statistics.median(created_s), 2),
    }


def prepared(folder: Path, flags: Sequence[str] = ()) -> tuple[clusters.Cluster, list[int]]:
    """A cluster that is not started yet, and where its members will show their metrics."""
    cluster = clusters.ours(folder, flags=flags)
    cluster.prepare()
    ports = free_ports(len(cluster.members))
    for member, port in zip(cluster.members, ports, strict=True):
        member.command.append(f"--listen-metrics-urls=http://127.0.0.1:{port}")
    return cluster, ports


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-watch", description=__doc__)
    parser.add_argument("--watchers", type=int, default=WATCHERS)
    parser.add_argument("--puts", type=int, default=PUTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=Path("bench/results/watch.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="watch-") as name:
        cluster, ports = prepared(Path(name))
        with cluster:
            result = asyncio.run(
                measure(cluster, ports, watchers=options.watchers, puts=options.puts, rounds=options.rounds)
            )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    slow = result["p50_growth_median_of_rounds"] > P50_GROWTH_MAX
    return 1 if result["touched"] or slow else 0


if __name__ == "__main__":
    sys.exit(main())

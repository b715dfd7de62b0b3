"""The load, in a process of its own: so many calls in flight on one endpoint list, closed loop.

    python -m bench.load '{"endpoints": [...], "work": "put", "in_flight": 64, "seconds": 3}'

Prints `ready`, waits for a line on its input, drives, prints one line of JSON. The parent samples CPU
times between those lines, so that no measurement includes the start of Python.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import time
from typing import Any

import grpc.aio

from bench import rpc
from kvstore.wire import rpc_pb2

KEYS = 10_000
VALUE_BYTES = 256
WARM_UP_SECONDS = 0.5  # connections, and the servers' first paths
REQUEST_SECONDS_MAX = 10.0
FILL_BATCH = 100  # below etcd's default limit of operations per transaction
ERRORS_SHOWN_MAX = 5


def key(number: int) -> bytes:
    return b"bench-%010d" % number  # 16 bytes


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


class Load:
    """One run of one kind of work."""

    def __init__(self, stores: list[rpc.Store], work: str, in_flight: int) -> None:
        self.stores, self.work, self.in_flight = stores, work, in_flight
        self.random = random.Random(20)  # the same keys for everyone
        self.value = bytes(self.random.randrange(256) for _ in range(VALUE_BYTES))
        self.latencies: list[float] = []
        self.errors: list[str] = []

    async def fill(self) -> None:
        """Every key once, so that reads find something."""
        for start in range(0, KEYS, FILL_BATCH):
            puts = [
                rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key(number), value=self.value))
                for number in range(start, start + FILL_BATCH)
            ]
            await self.stores[0].txn(rpc_pb2.TxnRequest(success=puts), timeout=REQUEST_SECONDS_MAX)

    async def drive(self, seconds: float) -> float:
        """Calls until the time is over; the seconds it really took."""
        self.latencies.clear()
        began = time.perf_counter()
        deadline = began + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(self.in_flight):
                group.create_task(self._caller(self.stores[number % len(self.stores)], deadline))
        return time.perf_counter() - began

    async def _caller(self, store: rpc.Store, deadline: float) -> None:
        clock, note, draw = time.perf_counter, self.latencies.append, self.random.randrange
        while (began := clock()) < deadline:
            try:
                if self.work == "put":
                    request = rpc_pb2.PutRequest(key=key(draw(KEYS)), value=self.value)
                    await store.put(request, timeout=REQUEST_SECONDS_MAX)
                else:
                    reply = await store.range(
                        rpc_pb2.RangeRequest(key=key(draw(KEYS))), timeout=REQUEST_SECONDS_MAX
                    )
                    assert reply.count == 1, reply
            except grpc.aio.AioRpcError as error:
                self.errors.append(f"{store.endpoint}: {error.details()}")
            else:
                note(clock() - began)


async def run(spec: dict[str, Any]) -> dict[str, Any]:
    stores = [rpc.Store(endpoint) for endpoint in spec["endpoints"]]
    load = Load(stores, spec["work"], spec["in_flight"])
    if spec.get("fill"):
        await load.fill()
    await load.drive(WARM_UP_SECONDS)
    load.errors.clear()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    before = resource.getrusage(resource.RUSAGE_SELF)
    seconds = await load.drive(spec["seconds"])
    after = resource.getrusage(resource.RUSAGE_SELF)
    ordered = sorted(load.latencies)
    for store in stores:
        await store.close()
    return {
        "operations": len(ordered),
        "ops_per_s": len(ordered) / seconds,
        "p50_ms": percentile(ordered, 0.50) * 1000,
        "p99_ms": percentile(ordered, 0.99) * 1000,
        "client_cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "errors": len(load.errors),
        "errors_seen": sorted(set(load.errors))[:ERRORS_SHOWN_MAX],
    }


def main() -> None:
    spec = json.loads(sys.argv[1])
    if spec.get("uvloop"):
        import uvloop

        result = uvloop.run(run(spec))
    else:
        result = asyncio.run(run(spec))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

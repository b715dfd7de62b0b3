"""`make bench-leases`: very many leases that end together.

Each has one key. When all are granted the leader is killed, and started again: the next leader gives every
lease its full time from one and the same moment, so that all are due at once. Measured: from that moment to
the last deletion, how many deletions a revision holds, and how late the members' event loops got meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc.aio

from bench import clusters, rpc
from bench.watch import prepared
from kvstore.wire import kv_pb2, rpc_pb2

LEASES = 100_000
TTL_SECONDS = 240
"""No keep-alive is sent while they are granted."""
IN_FLIGHT = 64
KEYS_PER_TXN = 100
PREFIX, PREFIX_END = b"leased/", b"leased0"
SPREAD_SECONDS_MAX = 100.0
STALL_SECONDS_MAX = 0.25


def _key(number: int) -> bytes:
    return PREFIX + b"%06d" % number


async def _grant_all(endpoint: str, count: int) -> None:
    async with rpc.Store(endpoint) as store:
        numbers = iter(range(1, count + 1))

        async def granting() -> None:
            for number in numbers:
                await store.lease_grant(rpc_pb2.LeaseGrantRequest(TTL=TTL_SECONDS, ID=number))

        await asyncio.gather(*(granting() for _ in range(IN_FLIGHT)))
        starts = iter(range(1, count + 1, KEYS_PER_TXN))

        async def putting() -> None:
            for start in starts:
                request = rpc_pb2.TxnRequest()
                for number in range(start, min(start + KEYS_PER_TXN, count + 1)):
                    request.success.add(
                        request_put=rpc_pb2.PutRequest(key=_key(number), value=b"x", lease=number)
                    )
                await store.txn(request)

        await asyncio.gather(*(putting() for _ in range(4)))


class Deletions:
    """What a watcher sees of the end."""

    def __init__(self) -> None:
        self.count = 0
        self.revisions = 0
        self.largest = 0
        """Deletions in one revision."""
        self.first_s = self.last_s = 0.0

    async def watch(self, endpoint: str, wanted: int) -> None:
        async with grpc.aio.insecure_channel(endpoint, options=rpc.OPTIONS) as channel:
            stub: Any = channel.stream_stream(
                "/etcdserverpb.Watch/Watch",
                request_serializer=rpc_pb2.WatchRequest.SerializeToString,
                response_deserializer=rpc_pb2.WatchResponse.FromString,
            )
            call = stub()
            create = rpc_pb2.WatchCreateRequest(
                key=PREFIX, range_end=PREFIX_END, filters=[rpc_pb2.WatchCreateRequest.NOPUT]
            )
            await call.write(rpc_pb2.WatchRequest(create_request=create))
            while self.count < wanted:
                response = await call.read()
                sizes: dict[int, int] = {}
                for event in response.events:
                    assert event.type == kv_pb2.Event.DELETE
                    sizes[event.kv.mod_revision] = sizes.get(event.kv.mod_revision, 0) + 1
                if sizes:
                    self.last_s = time.monotonic()
                    self.first_s = self.first_s or self.last_s
                    self.count += sum(sizes.values())
                    self.revisions += len(sizes)
                    self.largest = max(self.largest, *sizes.values())


def _stalls(ports: list[int]) -> int:
    """Times that any member's loop was later than STALL_SECONDS_MAX since it started."""
    total = 0
    for port in ports:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        within = re.search(rf'kvstore_event_loop_lag_seconds_bucket{{le="{STALL_SECONDS_MAX}"}} (\S+)', text)
        every = re.search(r"kvstore_event_loop_lag_seconds_count (\S+)", text)
        assert within is not None
        assert every is not None
        total += int(float(every.group(1)) - float(within.group(1)))
    return total


async def _measure(cluster: clusters.Cluster, ports: list[int], count: int) -> dict[str, Any]:
    began_s = time.monotonic()
    first = await asyncio.to_thread(cluster.leader)
    await _grant_all(first.endpoint, count)
    granted_s = time.monotonic() - began_s
    other = next(one for one in cluster.members if one is not first)
    seen = Deletions()
    watching = asyncio.create_task(seen.watch(other.endpoint, count))
    await asyncio.to_thread(first.kill)
    await asyncio.to_thread(cluster.leader)
    led_s = time.monotonic()
    await asyncio.to_thread(first.start)
    await asyncio.to_thread(cluster.wait_ready)
    stalls = await asyncio.to_thread(_stalls, ports)
    async with asyncio.timeout(TTL_SECONDS + 4 * SPREAD_SECONDS_MAX):
        await watching
    return {
        "leases": count,
        "ttl_seconds": TTL_SECONDS,
        "seconds_to_grant_all": round(granted_s, 1),
        "seconds_after_ttl": round(seen.last_s - led_s - TTL_SECONDS, 1),
        "seconds_of_deleting": round(seen.last_s - seen.first_s, 1),
        "revisions": seen.revisions,
        "deletions_in_a_revision_max": seen.largest,
        "stalls_over_250_ms": await asyncio.to_thread(_stalls, ports) - stalls,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-leases", description=__doc__)
    parser.add_argument("--leases", type=int, default=LEASES)
    parser.add_argument("--out", type=Path, default=Path("bench/results/leases.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="leases-") as name:
        cluster, ports = prepared(Path(name))
        with cluster:
            result = asyncio.run(_measure(cluster, ports, options.leases))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    late = result["seconds_after_ttl"] > SPREAD_SECONDS_MAX or result["stalls_over_250_ms"]
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())

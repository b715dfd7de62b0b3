"""`make scale`: a million keys in three members: memory, restart, stalls, and a rolling restart under load.

The members run with their usual settings. Each phase prints its figures as it ends; all of them go into one
JSON file with the goals beside them. The exit code is 1 when a goal is missed or an acknowledged write lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc.aio

from bench import clusters, rpc
from bench.failover import longest_gap
from bench.load import percentile
from bench.writer import Writer
from kvstore.devcluster.plan import free_ports
from kvstore.wire import rpc_pb2

KEYS = 1_000_000
VALUE_BYTES = 256
TRANSACTION_PUTS = 100  # below the servers' limit of operations per transaction
TRANSACTIONS_IN_FLIGHT = 8  # keeps the log busy; more would only queue
REQUEST_SECONDS_MAX = 30.0
BACKUP_SECONDS_MAX = 120.0
STEADY_RATE = 200.0  # writes and as many reads a second: half of what two cores bear, so that a stall is ours
COMPACT_SECONDS = 5.0  # a compaction this often during the steady phase
COMPACT_KEEPS = 1000  # revisions
READY_SECONDS_MAX = 120.0
QUIESCE_SECONDS_MAX = 120.0
ROLLING_UNDISTURBED_WRITES = 200  # acknowledged between two restarts

RSS_BYTES_MAX = 1 << 30
RESTART_SECONDS_MAX = 10.0
STALL_SECONDS_MAX = 0.25
GAP_MS_MAX = 1200.0  # the bound of `make bench-failover`


def key(number: int) -> bytes:
    return b"scale/%09d" % number  # 15 bytes


def rss_bytes(member: clusters.Member) -> int:
    """Resident memory of the member's process now."""
    status = Path(f"/proc/{member.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


class Scale:
    """One cluster on its way through the phases."""

    def __init__(self, cluster: clusters.Cluster, metrics_ports: list[int], folder: Path, keys: int) -> None:
        self.cluster, self.metrics_ports, self.folder, self.keys = cluster, metrics_ports, folder, keys
        self.random = random.Random(7)

    # --- load ---

    def load(self) -> dict[str, Any]:
        began = time.monotonic()
        asyncio.run(self._load())
        seconds = time.monotonic() - began
        self.quiesce()
        return {
            "keys": self.keys,
            "value_bytes": VALUE_BYTES,
            "seconds": round(seconds, 1),
            "keys_per_s": round(self.keys / seconds),
            "rss_mib": self.rss_mib(),
        }

    async def _load(self) -> None:
        starts = iter(range(0, self.keys, TRANSACTION_PUTS))
        async with rpc.Store(self.cluster.leader().endpoint) as store, asyncio.TaskGroup() as group:
            for _ in range(TRANSACTIONS_IN_FLIGHT):
                group.create_task(self._loader(store, starts))

    async def _loader(self, store: rpc.Store, starts: Any) -> None:
        for start in starts:
            puts = [
                rpc_pb2.RequestOp(
                    request_put=rpc_pb2.PutRequest(key=key(number), value=self.random.randbytes(VALUE_BYTES))
                )
                for number in range(start, min(start + TRANSACTION_PUTS, self.keys))
            ]
            await store.txn(rpc_pb2.TxnRequest(success=puts), timeout=REQUEST_SECONDS_MAX)

    def quiesce(self) -> None:
        """Until every member has applied what the leader has committed."""
        deadline = time.monotonic() + QUIESCE_SECONDS_MAX
        while True:
            found = [self.cluster.status(member) for member in self.cluster.members]
            if None not in found and len({status.raftAppliedIndex for status in found if status}) == 1:
                return
            if time.monotonic() > deadline:
                raise clusters.ClusterError("the members do not come to the same applied index")
            clusters.pause(0.2)

    def rss_mib(self) -> list[int]:
        return [rss_bytes(member) >> 20 for member in self.cluster.members]

    # --- steady state ---

    def steady(self, seconds: float) -> dict[str, Any]:
        before = [self.stalls(port) for port in self.metrics_ports]
        latencies, errors, backup_s = asyncio.run(self._steady(seconds))
        after = [self.stalls(port) for port in self.metrics_ports]
        ordered = sorted(latencies)
        return {
            "seconds": seconds,
            "operations": len(ordered),
            "errors": errors[:5],
            "backup_s": round(backup_s, 1),
            "p50_ms": round(percentile(ordered, 0.5) * 1000, 1),
            "p99_ms": round(percentile(ordered, 0.99) * 1000, 1),
            "worst_ms": round(ordered[-1] * 1000, 1),
            "stalls": [late - early for late, early in zip(after, before, strict=True)],
            "rss_mib": self.rss_mib(),
        }

    async def _steady(self, seconds: float) -> tuple[list[float], list[str], float]:
        stores = [rpc.Store(endpoint) for endpoint in self.cluster.endpoints]
        latencies: list[float] = []
        errors: list[str] = []
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._compactor(stores[0], began + seconds))
            backup = group.create_task(self._backup(stores[-1]))
            number = 0
            while (now := time.monotonic()) < began + seconds:
                while number < (now - began) * 2 * STEADY_RATE:
                    group.create_task(self._operation(stores, number, latencies, errors))
                    number += 1
                await asyncio.sleep(1 / STEADY_RATE)
        for store in stores:
            await store.close()
        return latencies, errors, backup.result()

    async def _operation(
        self, stores: list[rpc.Store], number: int, latencies: list[float], errors: list[str]
    ) -> None:
        store, chosen = stores[number % len(stores)], key(self.random.randrange(self.keys))
        began = time.monotonic()
        try:
            if number % 2:
                value = self.random.randbytes(VALUE_BYTES)
                await store.put(rpc_pb2.PutRequest(key=chosen, value=value), timeout=REQUEST_SECONDS_MAX)
            else:
                await store.range(rpc_pb2.RangeRequest(key=chosen), timeout=REQUEST_SECONDS_MAX)
        except grpc.aio.AioRpcError as error:
            errors.append(f"{store.endpoint}: {error.details()}")
        else:
            latencies.append(time.monotonic() - began)

    async def _compactor(self, store: rpc.Store, end: float) -> None:
        while time.monotonic() + COMPACT_SECONDS < end:
            await asyncio.sleep(COMPACT_SECONDS)
            head = await store.range(rpc_pb2.RangeRequest(key=b"none"), timeout=REQUEST_SECONDS_MAX)
            revision = head.header.revision - COMPACT_KEEPS
            if revision > 0:
                await store.compact(rpc_pb2.CompactionRequest(revision=revision), timeout=REQUEST_SECONDS_MAX)

    async def _backup(self, store: rpc.Store) -> float:
        """Take a backup from one member while the load goes on; the seconds it took."""
        began, received = time.monotonic(), 0
        async for piece in store.snapshot(rpc_pb2.SnapshotRequest(), timeout=BACKUP_SECONDS_MAX):
            received += len(piece.blob)
        assert received > self.keys * VALUE_BYTES, f"a backup of {received} bytes cannot hold the keys"
        return time.monotonic() - began

    def stalls(self, port: int) -> int:
        """Samples of the event loop that came later than the bound, since the process began."""
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        bucket = rf'kvstore_event_loop_lag_seconds_bucket\{{le="{STALL_SECONDS_MAX}"\}} (\S+)'
        within, total = (
            re.search(bucket, text),
            re.search(r"kvstore_event_loop_lag_seconds_count (\S+)", text),
        )
        assert within is not None
        assert total is not None
        return int(float(total[1]) - float(within[1]))

    # --- restarts ---

    def restart(self) -> dict[str, Any]:
        """kill -9 of a follower, then of all members at once; the time until all of it serves again."""
        leader = self.cluster.leader()
        follower = next(member for member in self.cluster.members if member is not leader)
        follower.kill()
        one = self._start([follower])
        self.cluster.kill()
        everyone = self._start(self.cluster.members)
        return {"one_s": one, "all_s": everyone, "rss_mib": self.rss_mib()}

    def _start(self, members: list[clusters.Member]) -> float:
        began = time.monotonic()
        for member in members:
            member.start()
        self.cluster.wait_ready(READY_SECONDS_MAX)
        self.quiesce()
        return round(time.monotonic() - began, 2)

    def rolling(self) -> dict[str, Any]:
        """Restart one member after the other, each by SIGTERM, while two hundred writes a second come."""
        times: list[float] = []
        with Writer(self.cluster.endpoints, self.folder, rate=STEADY_RATE) as writer:
            for member in self.cluster.members:
                writer.wait_acknowledged(time.monotonic(), ROLLING_UNDISTURBED_WRITES, READY_SECONDS_MAX)
                times.append(time.monotonic())
                member.stop()
                member.start()
                self.cluster.wait_ready(READY_SECONDS_MAX)
            writer.wait_acknowledged(time.monotonic(), ROLLING_UNDISTURBED_WRITES, READY_SECONDS_MAX)
            writer.finish()
        moments = [write.done for write in writer.writes if write.is_acknowledged]
        ends = [*times[1:], max(moments)]
        gaps = [longest_gap(moments, kill, end) * 1000 for kill, end in zip(times, ends, strict=True)]
        return {
            "acknowledged": len(moments),
            "gaps_ms": [round(gap) for gap in gaps],
            "complaints": writer.verify(self.cluster.endpoints[0])[:20],
        }


def judge(result: dict[str, Any]) -> list[str]:
    """What misses its goal."""
    missed = list(result["rolling"]["complaints"])
    rss_mib = max(figure for phase in ("load", "steady", "restart") for figure in result[phase]["rss_mib"])
    if rss_mib > RSS_BYTES_MAX >> 20:
        missed.append(f"{rss_mib} MiB resident, above {RSS_BYTES_MAX >> 20}")
    if max(result["restart"]["one_s"], result["restart"]["all_s"]) > RESTART_SECONDS_MAX:
        missed.append(f"a restart above {RESTART_SECONDS_MAX} s")
    if any(result["steady"]["stalls"]):
        missed.append(
            f"event loops stalled for more than {STALL_SECONDS_MAX} s: {result['steady']['stalls']}"
        )
    if result["steady"]["errors"]:
        missed.append(f"errors in the steady phase: {result['steady']['errors']}")
    if max(result["rolling"]["gaps_ms"]) > GAP_MS_MAX:
        missed.append(f"a gap in writes above {GAP_MS_MAX} ms in the rolling restart")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(prog="make scale", description=__doc__)
    parser.add_argument("--keys", type=int, default=KEYS)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the steady phase")
    parser.add_argument("--out", type=Path, default=Path("bench/results/scale.json"))
    options = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        folder = Path(name)
        cluster = clusters.ours(folder / "members")
        cluster.prepare()
        ports = free_ports(cluster.size)
        for member, port in zip(cluster.members, ports, strict=True):
            member.command.append(f"--listen-metrics-urls=http://127.0.0.1:{port}")
        with cluster:
            scale = Scale(cluster, ports, folder, options.keys)
            for phase, run in (
                ("load", scale.load),
                ("steady", lambda: scale.steady(options.seconds)),
                ("restart", scale.restart),
                ("rolling", scale.rolling),
            ):
                result[phase] = run()
                print(f"{phase}: {json.dumps(result[phase])}", flush=True)
    result["missed"] = judge(result)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"missed: {json.dumps(result['missed'])}")
    return 1 if result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())

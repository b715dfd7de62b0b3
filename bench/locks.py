"""`make bench-locks`: one lock for which many contend, with clients that know nothing of us, beside etcd.

Clients: aetcd's lock (one key, everybody woken), the Mutex of etcd's Go client (a queue of keys, each
contender waits for the one before), and calls of the server's own Lock service. Rounds go A B A B; a ratio
is formed within each round, and the median of the ratios is reported.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio

from bench import clusters, rpc
from kvstore.wire import rpc_pb2, v3lock_pb2

TASKS = (2, 16)
SCRIPTS = clusters.ROOT / "tests" / "conformance"
START_SECONDS_MAX = 60.0

Contend = Callable[[clusters.Cluster, str, int, float], int]
"""Cycles of lock and unlock on a cluster: name of the lock, tasks, seconds."""


def _port(cluster: clusters.Cluster) -> str:
    return cluster.leader().endpoint.rpartition(":")[2]


def _counted(command: list[str], seconds: float) -> int:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + START_SECONDS_MAX, check=False
    )
    if done.returncode:
        raise clusters.ClusterError(f"{command[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)


def aetcd(cluster: clusters.Cluster, name: str, tasks: int, seconds: float) -> int:
    """The lock of aetcd, run by the interpreter in KVSTORE_AETCD_PYTHON."""
    script = str(SCRIPTS / "scripts" / "aetcd_contend.py")
    python = os.environ["KVSTORE_AETCD_PYTHON"]
    return _counted([python, script, _port(cluster), name, str(tasks), str(seconds)], seconds)


def go_mutex(program: Path) -> Contend:
    """The Mutex of etcd's Go client."""

    def contend(cluster: clusters.Cluster, name: str, tasks: int, seconds: float) -> int:
        return _counted([str(program), cluster.leader().endpoint, name, str(tasks), str(seconds)], seconds)

    return contend


def lock_service(cluster: clusters.Cluster, name: str, tasks: int, seconds: float) -> int:
    """Lock and Unlock calls of a plain gRPC client, a lease for each task."""

    async def run(endpoint: str) -> int:
        cycles = 0
        async with grpc.aio.insecure_channel(endpoint, options=rpc.OPTIONS) as channel:

            def stub(path: str, request: Any, reply: Any) -> Any:
                return channel.unary_unary(
                    path, request_serializer=request.SerializeToString, response_deserializer=reply.FromString
                )

            grant = stub(
                "/etcdserverpb.Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest, rpc_pb2.LeaseGrantResponse
            )
            lock = stub("/v3lockpb.Lock/Lock", v3lock_pb2.LockRequest, v3lock_pb2.LockResponse)
            unlock = stub("/v3lockpb.Lock/Unlock", v3lock_pb2.UnlockRequest, v3lock_pb2.UnlockResponse)
            leases = [(await grant(rpc_pb2.LeaseGrantRequest(TTL=600))).ID for _ in range(tasks)]
            end_s = asyncio.get_running_loop().time() + seconds

            async def contend(lease: int) -> None:
                nonlocal cycles
                while asyncio.get_running_loop().time() < end_s:
                    held = await lock(v3lock_pb2.LockRequest(name=name.encode(), lease=lease))
                    cycles += 1
                    await unlock(v3lock_pb2.UnlockRequest(key=held.key))

            await asyncio.gather(*(contend(lease) for lease in leases))
        return cycles

    return asyncio.run(run(cluster.leader().endpoint))


def contenders(folder: Path) -> dict[str, Contend]:
    """The clients that are at hand."""
    found: dict[str, Contend] = {"Lock service": lock_service}
    if os.environ.get("KVSTORE_AETCD_PYTHON"):
        found["aetcd lock"] = aetcd
    go = shutil.which("go")
    if go is not None:
        program = folder / "contend"
        built = subprocess.run(
            [go, "build", "-o", str(program), "./contend"],
            cwd=SCRIPTS / "go",
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            print(f"no Go client: {built.stderr.strip()}", file=sys.stderr)
        else:
            found["Go Mutex"] = go_mutex(program)
    return found


def measure(folder: Path, *, seconds: float, rounds: int) -> list[dict[str, Any]]:
    rows = []
    with clusters.both(folder) as (mine, peer):
        for client, contend in contenders(folder).items():
            for tasks in TASKS:
                rates: dict[str, list[float]] = {"ours": [], "etcd": []}
                for number in range(rounds):
                    for side, cluster in (("ours", mine), ("etcd", peer)):
                        name = f"bench-{client}-{tasks}-{number}".replace(" ", "-")
                        rates[side].append(contend(cluster, name, tasks, seconds) / seconds)
                ratios = [a / b for a, b in zip(rates["ours"], rates["etcd"], strict=True)]
                row = {
                    "client": client,
                    "tasks": tasks,
                    "ours_cycles_per_s": round(statistics.median(rates["ours"])),
                    "etcd_cycles_per_s": round(statistics.median(rates["etcd"])),
                    "ratio": round(statistics.median(ratios), 2),
                    "ratio_spread": [round(min(ratios), 2), round(max(ratios), 2)],
                }
                rows.append(row)
                print(
                    f"{client:>14} {tasks:>3} tasks | ours {row['ours_cycles_per_s']:>6}/s |"
                    f" etcd {row['etcd_cycles_per_s']:>6}/s | {row['ratio']:.2f}",
                    flush=True,
                )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-locks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path("bench/results/locks.json"))
    options = parser.parse_args()
    if clusters.find_etcd() is None:
        print(clusters.NO_ETCD, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="locks-") as name:
        rows = measure(Path(name), seconds=options.seconds, rounds=options.rounds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

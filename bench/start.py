"""`make bench-start`: how long a start takes, beside etcd's: of the command, of one member, of three.

A member is ready when it answers a linearizable read. Clusters of both kinds start alternately, each on empty
directories and then again on its data. CPU of the command is that of its process, from the first instruction
of the interpreter to the end. Bytecode is at hand, as after an installation: everything runs once beforehand.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from bench import clusters, host
from kvstore.wire import rpc_pb2

COMMAND_CPU_SECONDS_MAX = 0.15
WALL_RATIO_MAX = 2.0
STEAL_MAX = 0.05  # a start on a machine that was taken away measures the machine
ATTEMPTS_PER_ROUND = 4
COMMANDS = ("--version", "--help")
COMMAND_RUNS = 10
SIZES = {"one member": 1, "three members": 3}
LISTEN_POLL_SECONDS = 0.002
READY_SECONDS_MAX = 60.0

MAKES: dict[str, Callable[..., clusters.Cluster]] = {"ours": clusters.ours, "etcd": clusters.etcd}


def keep_bytecode(folder: Path) -> None:
    """Have every process of this run keep its bytecode there, whatever the caller's variables say."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder)


def command_cpu_seconds(arguments: Sequence[str]) -> float:
    """User and system time of `kvstore` with these arguments, the interpreter included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "kvstore", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=clusters.ROOT,
        env=clusters.environment(clusters.ROOT),
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_commands() -> dict[str, float]:
    """The median CPU seconds of each command, after a run that does not count."""
    return {
        name: round(statistics.median([command_cpu_seconds([name]) for _ in range(1 + COMMAND_RUNS)][1:]), 3)
        for name in COMMANDS
    }


def wait_ready(member: clusters.Member) -> float:
    """The moment at which the member answers a linearizable read."""
    deadline = time.monotonic() + READY_SECONDS_MAX
    while True:
        try:
            socket.create_connection(("127.0.0.1", member.client_port)).close()
            break
        except OSError:
            if time.monotonic() > deadline or member.process is None or member.process.poll() is not None:
                raise clusters.ClusterError(f"{member.name} does not listen:\n{member.tail()}") from None
        clusters.pause(LISTEN_POLL_SECONDS)
    while True:
        with grpc.insecure_channel(member.endpoint) as channel:
            read = channel.unary_unary(
                "/etcdserverpb.KV/Range",
                request_serializer=rpc_pb2.RangeRequest.SerializeToString,
                response_deserializer=rpc_pb2.RangeResponse.FromString,
            )
            try:
                read(rpc_pb2.RangeRequest(key=b"k"), timeout=max(0.01, deadline - time.monotonic()))
            except grpc.RpcError as error:
                if time.monotonic() > deadline:
                    raise clusters.ClusterError(f"{member.name}: {error}\n{member.tail()}") from None
            else:
                return time.monotonic()
        clusters.pause(LISTEN_POLL_SECONDS)


def start(cluster: clusters.Cluster) -> dict[str, float]:
    """Start every member; wall time until the last one is ready, and CPU of all until then."""
    with ThreadPoolExecutor(cluster.size) as pool:
        begun = time.monotonic()
        for member in cluster.members:
            member.start()
        ready = list(pool.map(wait_ready, cluster.members))
        cpu = sum(host.cpu_seconds(member.pid) for member in cluster.members)
    return {"wall_s": max(ready) - begun, "cpu_s": cpu}


def one_round(folder: Path, kind: str, size: int) -> dict[str, dict[str, float]]:
    """A first start, and a start on the data it left."""
    cluster = MAKES[kind](folder, size=size)
    cluster.prepare()
    try:
        first = start(cluster)
        for member in cluster.members:
            member.stop()
        return {"first": first, "again": start(cluster)}
    finally:
        cluster.kill()


def measure(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """One row per size and kind of start, with every round of both."""
    rows = []
    for name, size in SIZES.items():
        found: dict[str, list[dict[str, dict[str, float]]]] = {kind: [] for kind in MAKES}
        for attempt in range(ATTEMPTS_PER_ROUND * rounds):
            meter = host.StealMeter()
            pair = {kind: one_round(folder / f"{size}-{attempt}-{kind}", kind, size) for kind in MAKES}
            if meter.share() <= STEAL_MAX:
                for kind, times in pair.items():
                    found[kind].append(times)
            if len(found["ours"]) == rounds:
                break
        else:
            raise clusters.ClusterError("the machine was taken away too often")
        for which in ("first", "again"):
            walls = {kind: [times[which]["wall_s"] for times in found[kind]] for kind in MAKES}
            ratios = [ours / etcd for ours, etcd in zip(walls["ours"], walls["etcd"], strict=True)]
            row: dict[str, Any] = {"what": f"{name}, {'empty' if which == 'first' else 'with its data'}"}
            for kind in MAKES:
                row[f"{kind}_wall_s"] = round(statistics.median(walls[kind]), 3)
                row[f"{kind}_cpu_s"] = round(
                    statistics.median([times[which]["cpu_s"] for times in found[kind]]), 3
                )
            row |= {"ratio": round(statistics.median(ratios), 2), "ratios": [round(one, 2) for one in ratios]}
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def judge(commands: dict[str, float], rows: Sequence[dict[str, Any]]) -> list[str]:
    """What misses the goal."""
    missed = [
        f"kvstore {name}: {cpu} s of CPU, at most {COMMAND_CPU_SECONDS_MAX}"
        for name, cpu in commands.items()
        if cpu > COMMAND_CPU_SECONDS_MAX
    ]
    return missed + [
        f"{row['what']}: {row['ratio']} of etcd's time, at most {WALL_RATIO_MAX}"
        for row in rows
        if row["ratio"] > WALL_RATIO_MAX
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("bench/results/start.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="start-") as name:
        folder = Path(name)
        keep_bytecode(folder / "bytecode")
        one_round(folder / "warm-up", "ours", 1)
        commands = measure_commands()
        print(json.dumps(commands), flush=True)
        rows = measure(folder, options.rounds)
    result = {**host.description(), "commands_cpu_s": commands, "rows": rows}
    result["missed"] = judge(commands, rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 1 if result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())

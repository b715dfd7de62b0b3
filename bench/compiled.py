"""`make bench`: this store's bindings beside etcd, under etcd's own compiled load generator.

All clusters run at once on one disk, and each measurement visits them one after another: on a shared machine
whole minutes drift. A ratio is formed within each round, and the median of the ratios is reported. One during
which more than 5 % of the CPU was stolen by the host is repeated, at most twice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from bench import clusters, host, peers
from kvstore.wire import rpc_pb2

WORKS = ("put", "get")
CLIENTS = (1, 64, 256)
CONNECTIONS_MAX = 16
"""Connections of one measurement; more clients share them, as the goroutines of a service share a few."""
KEYS = 10_000
VALUE_BYTES = 256
KEY_READ = b"bench-read"
PROBE_CALLS_PER_CLIENT = 20
PROBE_CALLS_MIN = 200
"""Calls of the run that estimates the speed, so that a measurement lasts as long as asked. The load generator
reports no 99th percentile of fewer."""
STEAL_SHARE_MAX = 0.05
REPEATS_MAX = 2
LOAD_SECONDS_MAX = 300.0
PEER = "etcd-3.5"
"""The side that ratios are formed against."""

_SPEED = re.compile(r"Requests/sec:\s+([\d.]+)")
_QUANTILE = re.compile(r"^\s*([\d.]+)% in ([\d.]+) secs", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of work with so many clients."""

    work: str
    clients: int

    def command(self, program: Path, endpoints: Sequence[str], total: int) -> list[str]:
        """The load generator's command line for `total` calls."""
        connections = min(self.clients, CONNECTIONS_MAX)
        common = [f"--endpoints={','.join(endpoints)}", f"--clients={self.clients}", f"--conns={connections}"]
        if self.work == "put":
            sizes = [f"--key-space-size={KEYS}", "--key-size=16", f"--val-size={VALUE_BYTES}"]
            return [str(program), "put", *common, *sizes, f"--total={total}"]
        return [str(program), "range", KEY_READ.decode(), *common, "--consistency=l", f"--total={total}"]


@dataclass(frozen=True, slots=True)
class Result:
    """One measurement of one cluster."""

    calls_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: dict[str, float]
    """Per call: of the leader and of a follower."""
    steal: float


def parse(text: str) -> tuple[float, float, float]:
    """Calls per second, and the median and 99th percentile in milliseconds, of the generator's report.

    Raises ClusterError when calls failed, or when the report is none.
    """
    speed = _SPEED.search(text)
    quantiles = {share: 1000 * float(seconds) for share, seconds in _QUANTILE.findall(text)}
    if speed is None or "50" not in quantiles or "99" not in quantiles or "Error distribution" in text:
        raise clusters.ClusterError(f"the load generator said:\n{text[-2000:]}")
    return float(speed[1]), quantiles["50"], quantiles["99"]


def run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_SECONDS_MAX, check=False)
    if done.returncode != 0:
        raise clusters.ClusterError(f"{command[0]}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def fill(cluster: clusters.Cluster) -> None:
    """Put the key that is read."""
    with grpc.insecure_channel(cluster.leader().endpoint) as channel:
        put = channel.unary_unary(
            "/etcdserverpb.KV/Put",
            request_serializer=rpc_pb2.PutRequest.SerializeToString,
            response_deserializer=rpc_pb2.PutResponse.FromString,
        )
        put(rpc_pb2.PutRequest(key=KEY_READ, value=bytes(VALUE_BYTES)), timeout=LOAD_SECONDS_MAX)


def measure(
    program: Path, cluster: clusters.Cluster, load: Load, seconds: float, *, everywhere: bool
) -> Result:
    """Drive one cluster for about `seconds`, through the leader's endpoint or through all."""
    leader = cluster.leader()
    endpoints = cluster.endpoints if everywhere else [leader.endpoint]
    least = max(PROBE_CALLS_PER_CLIENT * load.clients, PROBE_CALLS_MIN)
    speed, _, _ = parse(run(load.command(program, endpoints, least)))
    total = max(int(speed * seconds), least)
    results: list[Result] = []
    while not results or (results[-1].steal > STEAL_SHARE_MAX and len(results) <= REPEATS_MAX):
        before = {member.name: host.cpu_seconds(member.pid) for member in cluster.members}
        steal = host.StealMeter()
        text = run(load.command(program, endpoints, total))
        used = {
            member.name: 1e6 * (host.cpu_seconds(member.pid) - before[member.name]) / total
            for member in cluster.members
        }
        lead = used.pop(leader.name)
        cpu_us = {"leader": lead, "follower": statistics.mean(used.values())}
        results.append(Result(*parse(text), cpu_us=cpu_us, steal=steal.share()))
    return min(results, key=lambda one: one.steal)


def row(load: Load, endpoints: str, rounds: list[dict[str, Result]]) -> dict[str, Any]:
    """The medians of every side, and the ratios of its speed and of its p50 to PEER's."""

    def median(label: str, field: str) -> float:
        return round(statistics.median(float(getattr(one[label], field)) for one in rounds), 3)

    def ratio(label: str, field: str) -> float:
        pairs = ((getattr(one[label], field), getattr(one[PEER], field)) for one in rounds)
        return round(statistics.median(float(mine) / float(peer) for mine, peer in pairs), 3)

    sides = {}
    for label in rounds[0]:
        sides[label] = {
            "calls_per_s": median(label, "calls_per_s"),
            "p50_ms": median(label, "p50_ms"),
            "p99_ms": median(label, "p99_ms"),
            "leader_cpu_us": round(statistics.median(one[label].cpu_us["leader"] for one in rounds)),
            "follower_cpu_us": round(statistics.median(one[label].cpu_us["follower"] for one in rounds)),
            "ratio": ratio(label, "calls_per_s"),
            "ratio_p50": ratio(label, "p50_ms"),
        }
    steal = round(max(one.steal for each in rounds for one in each.values()), 3)
    return {
        "work": load.work,
        "clients": load.clients,
        "endpoints": endpoints,
        "steal_max": steal,
        "sides": sides,
    }


def show(one: dict[str, Any]) -> str:
    lines = [f"{one['work']}, {one['clients']} clients, endpoints {one['endpoints']}"]
    for label, it in one["sides"].items():
        lines.append(
            f"  {label:>12} {it['calls_per_s']:9.0f}/s  p50 {it['p50_ms']:6.2f} p99 {it['p99_ms']:6.2f} ms"
            f"  CPU us leader {it['leader_cpu_us']:5d}, follower {it['follower_cpu_us']:5d}"
            f"  | x{it['ratio']:.3f}, p50 x{it['ratio_p50']:.3f}"
        )
    return "\n".join(lines)


def sides(folder: Path, wanted: Sequence[str]) -> list[clusters.Cluster]:
    """The clusters to compare, not yet started; PEER is always among them."""
    made = [clusters.etcd(folder / "etcd", label=PEER)]
    if "ngh2" in wanted:
        made.append(clusters.ours(folder / "ngh2", label="ngh2", flags=["--grpc-stack=ngh2"]))
    if "grpcio" in wanted:
        made.append(clusters.ours(folder / "grpcio", label="grpcio", flags=["--grpc-stack=grpcio"]))
    if "newest" in wanted:
        newest = peers.newest_etcd()
        label = f"etcd-{peers.SERVER_VERSION_NEWEST.removeprefix('v')}"
        made.append(clusters.etcd(folder / "newest", label=label, program=newest))
    return made


def bench(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    program = peers.benchmark()
    rows = []
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(cluster) for cluster in sides(folder, options.sides)]
        for cluster in running:
            fill(cluster)
        for endpoints in options.endpoints:
            for work in options.works:
                for clients in options.clients:
                    load = Load(work, clients)
                    rounds = [
                        {
                            cluster.label: measure(
                                program, cluster, load, options.seconds, everywhere=endpoints == "all"
                            )
                            for cluster in running
                        }
                        for _ in range(options.rounds)
                    ]
                    rows.append(row(load, endpoints, rounds))
                    print(show(rows[-1]), flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement, about")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument("--clients", nargs="+", type=int, default=CLIENTS)
    parser.add_argument("--endpoints", nargs="+", choices=("leader", "all"), default=("leader", "all"))
    parser.add_argument(
        "--sides", nargs="+", choices=("ngh2", "grpcio", "newest"), default=("ngh2", "grpcio")
    )
    parser.add_argument("--folder", type=Path, help="where the clusters keep their data; default: temporary")
    parser.add_argument("--out", type=Path, default=Path("bench/results/server.json"))
    options = parser.parse_args()
    print(f"{options.rounds} rounds of about {options.seconds} s, {VALUE_BYTES} B values; ratios to {PEER}")
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
            rows = bench(options, Path(folder))
    except clusters.ClusterError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {"rounds": options.rounds, "seconds": options.seconds, **host.description()}
    options.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")
    print(f"rows in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

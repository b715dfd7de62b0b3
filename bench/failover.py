"""`make bench-failover`: how long writes stall when the leader is killed, and that none is lost.

Two hundred writes a second come from a client that knows all endpoints; the leader is killed with SIGKILL,
again and again, and restarted in between. The gap is the longest time without a successful write around a
kill. Afterwards every acknowledged key is read back, each with version 1. Then single peer connections of a
living leader are reset, one hundred times: that alone must change no term.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import clusters
from bench.proxy import Proxies
from bench.writer import Writer

RATE = 200.0
GAP_MEDIAN_MS_MAX = 300.0
GAP_WORST_MS_MAX = 1200.0
UNDISTURBED_SECONDS = 1.5  # writes flow undisturbed before and after each kill
READY_SECONDS_MAX = 30.0
RESETS = 100
LINK_SECONDS_MAX = 10.0  # a reset connection is made anew well within this
QUIESCE_SECONDS = 0.15  # longer than the slots of the fast election, so that a wrong one would have begun


def longest_gap(moments: list[float], kill: float, end: float) -> float:
    """The longest time without a success that touches the time after the kill, in seconds."""
    around = [moment for moment in moments if kill - 1 <= moment <= end]
    gaps = [later - sooner for sooner, later in itertools.pairwise(sorted(around)) if later >= kill]
    return max(gaps, default=float("inf"))


def kill_leaders(cluster: clusters.Cluster, folder: Path, kills: int) -> dict[str, Any]:
    times: list[float] = []
    with Writer(cluster.endpoints, folder, rate=RATE) as writer:
        for number in range(kills):
            cluster.wait_ready(READY_SECONDS_MAX)
            began = time.monotonic()
            writer.wait_acknowledged(began, int(RATE * UNDISTURBED_SECONDS), READY_SECONDS_MAX)
            leader = cluster.leader()
            times.append(time.monotonic())
            leader.kill()
            writer.wait_acknowledged(times[-1], int(RATE * UNDISTURBED_SECONDS / 2), READY_SECONDS_MAX)
            moments = [write.done for write in writer.writes if write.is_acknowledged]
            gap = longest_gap(moments, times[-1], time.monotonic())
            print(f"kill {number + 1} ({leader.name}): {gap * 1000:.0f} ms", flush=True)
            leader.start()
        cluster.wait_ready(READY_SECONDS_MAX)
        writer.finish()
    moments = [write.done for write in writer.writes if write.is_acknowledged]
    ends = [*times[1:], max(moments)]
    gaps = [longest_gap(moments, kill, end) * 1000 for kill, end in zip(times, ends, strict=True)]
    complaints = [line for member in cluster.members for line in writer.verify(member.endpoint)]
    failed = [write for write in writer.writes if not write.is_acknowledged]
    return {
        "kills": kills,
        "gap_median_ms": round(statistics.median(gaps)),
        "gap_worst_ms": round(max(gaps)),
        "gaps_ms": [round(gap) for gap in gaps],
        "acknowledged": len(moments),
        "failed": len(failed),
        "failures": sorted({write.error for write in failed})[:10],
        "complaints": complaints[:20],
    }


def reset_links(make: Any, folder: Path, resets: int, rng: random.Random) -> dict[str, Any]:
    """Reset single connections towards the living leader; the terms before and after."""
    cluster: clusters.Cluster = make(folder)
    with Proxies(cluster) as proxies, cluster, Writer(cluster.endpoints, folder, rate=RATE) as writer:
        writer.wait_acknowledged(time.monotonic(), int(RATE), READY_SECONDS_MAX)
        leader = cluster.leader()
        index = cluster.members.index(leader)
        terms = [term_of(cluster, leader)]
        done = 0
        while done < resets:
            deadline = time.monotonic() + LINK_SECONDS_MAX
            while proxies.connections(index) < cluster.size - 1:
                if time.monotonic() > deadline:
                    raise clusters.ClusterError(f"{leader.name}: peers did not connect again")
                clusters.pause(0.005)
            done += proxies.reset_one(index, rng.randrange(cluster.size))
            clusters.pause(QUIESCE_SECONDS)
            terms.append(term_of(cluster, leader))
        writer.wait_acknowledged(time.monotonic(), int(RATE), READY_SECONDS_MAX)
        terms += [term_of(cluster, member) for member in cluster.members]
        is_leader = cluster.leader() is leader
        writer.finish()
        complaints = writer.verify(leader.endpoint)
    return {
        "resets": done,
        "terms": sorted(set(terms)),
        "same_leader": is_leader,
        "complaints": complaints[:20],
    }


def term_of(cluster: clusters.Cluster, member: clusters.Member) -> int:
    status = cluster.status(member)
    if status is None:
        raise clusters.ClusterError(f"{member.name} does not answer:\n{member.tail()}")
    return int(status.raftTerm)


def judge(result: dict[str, Any]) -> list[str]:
    """What misses the goal."""
    found = list(result["failover"]["complaints"] + result["resets"]["complaints"])
    if result["failover"]["gap_median_ms"] > GAP_MEDIAN_MS_MAX:
        found.append(f"median gap above {GAP_MEDIAN_MS_MAX} ms")
    if result["failover"]["gap_worst_ms"] > GAP_WORST_MS_MAX:
        found.append(f"worst gap above {GAP_WORST_MS_MAX} ms")
    if len(result["resets"]["terms"]) != 1 or not result["resets"]["same_leader"]:
        found.append("a reset of one connection changed the term")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-failover", description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--resets", type=int, default=RESETS)
    parser.add_argument("--kind", choices=("ours", "etcd"), default="ours")
    parser.add_argument("--out", type=Path, default=Path("bench/results/failover.json"))
    options = parser.parse_args()
    make = clusters.ours if options.kind == "ours" else clusters.etcd
    with tempfile.TemporaryDirectory(prefix="failover-") as name:
        folder = Path(name)
        with make(folder / "kills") as cluster:
            failover = kill_leaders(cluster, folder, options.kills)
        resets = reset_links(make, folder / "resets", options.resets, random.Random(1))
    result = {"kind": options.kind, "rate": RATE, "failover": failover, "resets": resets}
    result["missed"] = judge(result)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 1 if result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())

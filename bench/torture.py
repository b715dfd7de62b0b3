"""`make torture`: kill -9 on all members under load, restart, and everything acknowledged is there."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import clusters
from bench.writer import Writer

RATE = 400.0  # writes per second: every group commit that a kill can interrupt holds some
LOAD_SECONDS = (0.2, 1.5)  # how long a life lasts under load, drawn anew each round
FIRST_WRITES = 20  # a life counts only if it acknowledged something
READY_SECONDS_MAX = 30.0


def torture(cluster: clusters.Cluster, folder: Path, rounds: int, rng: random.Random) -> dict[str, Any]:
    """The cluster runs already. Raises ClusterError if it does not come back."""
    complaints: list[str] = []
    recoveries = []
    with Writer(cluster.endpoints, folder, rate=RATE) as writer:
        for number in range(rounds):
            writer.wait_acknowledged(time.monotonic(), FIRST_WRITES, READY_SECONDS_MAX)
            clusters.pause(rng.uniform(*LOAD_SECONDS))
            cluster.kill()
            killed = time.monotonic()
            for member in rng.sample(cluster.members, len(cluster.members)):
                member.start()
            cluster.wait_ready(READY_SECONDS_MAX)
            recoveries.append(time.monotonic() - killed)
            writer.update()
            complaints += writer.verify(rng.choice(cluster.members).endpoint)
            said = f"round {number + 1}: {sum(write.is_acknowledged for write in writer.writes)} acknowledged"
            print(f"{said}, back after {recoveries[-1]:.1f} s, {len(complaints)} complaints", flush=True)
            if complaints:
                break
        writer.finish()
    for member in cluster.members:
        complaints += writer.verify(member.endpoint)
    acknowledged = sum(write.is_acknowledged for write in writer.writes)
    return {
        "rounds": len(recoveries),
        "acknowledged": acknowledged,
        "not_acknowledged": len(writer.writes) - acknowledged,
        "recovery_s_worst": round(max(recoveries), 2),
        "complaints": complaints[:20],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="make torture", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--kind", choices=("ours", "etcd"), default="ours")
    parser.add_argument("--out", type=Path, default=Path("bench/results/torture.json"))
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.rounds} rounds", flush=True)
    make = clusters.ours if options.kind == "ours" else clusters.etcd
    with tempfile.TemporaryDirectory(prefix="torture-") as name, make(Path(name)) as cluster:
        result = torture(cluster, Path(name), options.rounds, random.Random(options.seed))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"seed": options.seed, "kind": options.kind, **result}, indent=2) + "\n"
    )
    print(json.dumps(result, indent=2))
    return 1 if result["complaints"] else 0


if __name__ == "__main__":
    sys.exit(main())

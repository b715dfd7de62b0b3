"""`make differential`: random programs against this store and a real etcd; exit code 1 on any difference."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from bench import clusters
from tests.differential.kinds import KINDS
from tests.differential.runner import Run

SIDES = {
    "etcd": lambda folder, size: clusters.etcd(folder, size=size, flags=["--unsafe-no-fsync"]),
    "ours": lambda folder, size: clusters.ours(folder, size=size),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make differential", description=__doc__)
    parser.add_argument("--programs", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument(
        "--kinds", nargs="*", choices=KINDS, default=["watch"], help="what programs contain beside KV"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1, 1, 3], help="members per pair, pairs side by side"
    )
    parser.add_argument("--left", choices=SIDES, default="etcd")
    parser.add_argument("--right", choices=SIDES, default="ours")
    parser.add_argument("--out", type=Path, default=Path("bench/results/differential.json"))
    options = parser.parse_args()
    print(
        f"seed {options.seed}: up to {options.programs} programs of KV {' '.join(options.kinds)},"
        f" {options.left} against {options.right}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="differential-") as folder:
        run = Run(
            left=SIDES[options.left],
            right=SIDES[options.right],
            folder=Path(folder),
            seed=options.seed,
            programs=options.programs,
            seconds=options.seconds,
            sizes=tuple(options.sizes),
            kinds=tuple(options.kinds),
        )
        asyncio.run(run.go())
    total = run.add_to(options.out)
    tally = run.tally
    print(f"{tally.programs} programs, {tally.steps} steps in {run.seconds_taken:.0f} s; in all {total}")
    for text, count in tally.errors.most_common():
        print(f"{count:6d} x {text}")
    for name, count in tally.counts.most_common():
        print(f"{count:6d} x {name}")
    for line in tally.shortfalls():
        print(f"not covered: {line}")
    for one in tally.differences:
        print(f"\nDIFFERENCE in program {one['program']} ({one['members']} members)\n{one['first_seen']}")
        print(
            "shrunk to:",
            *(one["shrunk_to"] if isinstance(one["shrunk_to"], list) else [one["shrunk_to"]]),
            sep="\n  ",
        )
        print(one["then"] or "")
    print(f"details in {options.out}")
    return 1 if tally.differences or tally.shortfalls() else 0


if __name__ == "__main__":
    sys.exit(main())

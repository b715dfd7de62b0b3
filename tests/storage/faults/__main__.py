"""`make faults`: every storage fault that can be injected; exit code 1 if any guarantee was violated."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.storage.faults import copies, in_memory, injection, power


@dataclass
class Report:
    """What was tried, how it ended, and what broke."""

    tried: dict[str, int] = field(default_factory=dict)
    ends: dict[str, dict[str, int]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def add(self, name: str, tried: int, ends: Mapping[str, int], broken: list[str]) -> None:
        self.tried[name] = tried
        self.ends[name] = dict(sorted(ends.items()))
        self.broken += broken
        print(f"{name}: {tried} tried, {len(broken)} guarantees violated")
        for end, count in self.ends[name].items():
            print(f"{count:7}  {end}")
        for one in broken:
            print(f"    BROKEN  {one}")
        sys.stdout.flush()


def inject(report: Report, jobs: int, every: int) -> None:
    """Fail every system call of a real process."""
    plans = injection.plans()[::every]
    ends: Counter[str] = Counter()
    broken = []
    with ThreadPoolExecutor(jobs) as pool:
        for plan, outcome in zip(plans, pool.map(injection.execute, plans), strict=True):
            met = outcome.hits or outcome.end == "killed"
            ends[f"{plan.part}, {plan.fault}: {outcome.end if met else 'met no call'}"] += 1
            if outcome.wrong:
                broken.append(f"{plan}: {outcome.wrong} {outcome.lines[-2:]} {outcome.hits[:1]}")
    report.add("calls of real processes", len(plans), ends, broken)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--states", type=int, default=2000, help="crash states per call of MemoryFiles")
    parser.add_argument("--subsets", type=int, default=20, help="drawn subsets per power cut")
    parser.add_argument("--every", type=int, default=1, help="take every nth injected fault only")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("bench/results/faults.json"))
    options = parser.parse_args()
    if not injection.strace_works():
        print("strace is not here, or may not trace")
        return 1
    print(f"seed {options.seed}", flush=True)
    begun = time.monotonic()
    report = Report()
    ends, broken = in_memory.campaign(options.seed)
    report.add("calls of the file interface", sum(ends.values()), ends, broken)
    states, bounded, broken = in_memory.power_cut_everywhere(options.states)
    report.add(
        f"power cuts on the file interface, every state up to {options.states} at each call",
        states,
        {"calls at which that bound was met": bounded},
        broken,
    )
    calls = power.trace()
    states, broken = power.campaign(calls, options.subsets, options.seed)
    report.add(f"power cuts at {len(calls)} calls, {options.subsets + 2} subsets each", states, {}, broken)
    ends, broken = copies.campaign(calls, every=2)
    report.add("old copies", sum(ends.values()), ends, broken)
    inject(report, options.jobs, options.every)
    summary = {
        "seed": options.seed,
        "seconds": round(time.monotonic() - begun, 1),
        "tried": report.tried,
        "ends": report.ends,
        "broken": report.broken,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(summary, indent=1) + "\n")
    total, broken_total = sum(report.tried.values()), len(report.broken)
    print(f"{total} faults in {summary['seconds']} s, {broken_total} guarantees violated")
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())

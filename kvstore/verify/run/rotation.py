"""One run after another, over workloads and nemeses, until the time is up."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvstore.devcluster.plan import ClusterError
from kvstore.interrupts import run_undoing
from kvstore.verify.run import run_report
from kvstore.verify.run.namespaces import RELAYS_ONLY
from kvstore.verify.run.run_execution import RunResult, execute
from kvstore.verify.run.run_settings import Settings

ROTATION: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("register", ("kill", "pause", "pause-partition", "partition-leader")),
    ("append", ("partition-halves", "partition-one", "slow-election", "members")),
    ("watch", ("kill", "partition-leader", "compaction")),
    ("txn", ("partition-one-way", "partition-bridge", "partition-ring", "transfer")),
    ("lock-fenced", ("client-pause", "kill", "partition-one")),
    ("set", ("power-cut",)),
    ("register", ("corruption", "disk-full", "sync-error")),
    ("lease", ("kill", "transfer", "pause")),
    ("counter", ("slow-links", "reset-links", "partition-flapping")),
    ("append", ("snapshots", "clock", "kill")),
    ("txn", ("members", "compaction", "pause")),
)
"""Every workload but the control of locks without fencing, every nemesis. Tools of one tracer stay in runs
of their own, because only one can trace a process."""

NEEDS = {"power-cut": "strace", "sync-error": "strace", "disk-full": "strace"}
"""Nemeses that need a program; without it they are left out, and the rotation says so."""

OVERHEAD_S = 15.0
"""Start, recovery and judgement of one run, on a machine with two cores."""

RUN_S = 55.0
LONG_RUN_S = 75.0
"""What a run takes, its overhead included; longer where there is time."""

RUN_SECONDS_MIN = 8.0
"""A shorter run sees no more than one fault."""


def plan_runs(minutes: float, seed: int) -> list[tuple[str, tuple[str, ...], float]]:
    """What runs within a time, and for how many seconds each: as many as give each about forty."""
    total = 60.0 * minutes
    count = max(1, min(len(ROTATION), round(total / RUN_S))) if minutes <= 10 else round(total / LONG_RUN_S)
    seconds = max(RUN_SECONDS_MIN, total / count - OVERHEAD_S)
    order = list(ROTATION)
    if count < len(order):
        random.Random(f"{seed}/rotation").shuffle(order)  # noqa: S311  repeats with its seed
    return [(*order[position % len(order)], seconds) for position in range(count)]


def rotate(
    *,
    minutes: float,
    seed: int,
    directory: Path,
    say: Callable[[str], None],
    network: str = "relay",
    **numbers: Any,
) -> list[RunResult]:
    """Carry out the rotation and write `summary.json` and `junit.xml` for all of it."""
    results: list[RunResult] = []
    began = time.monotonic()
    for position, (workload, nemeses, seconds) in enumerate(plan_runs(minutes, seed)):
        left_out = [name for name in nemeses if name in NEEDS and shutil.which(NEEDS[name]) is None]
        if left_out:
            say(f"left out for want of {NEEDS[left_out[0]]}: {', '.join(left_out)}")
        settings = Settings(
            workload=workload,
            nemeses=tuple(name for name in nemeses if name not in left_out),
            directory=directory / f"{position + 1:02}-{workload}",
            seed=seed + position,
            seconds=seconds,
            network="relay" if RELAYS_ONLY & set(nemeses) else network,
            **numbers,
        )
        try:
            result = run_undoing(execute(settings))
        except (ClusterError, OSError) as error:
            result = RunResult(settings=settings, verdict="unknown", reasons=[str(error)])
        results.append(result)
        for line in run_report.summary(result):
            say(line)
    write_summary(results, directory, time.monotonic() - began, seed)
    return results


def write_summary(results: list[RunResult], directory: Path, seconds: float, seed: int) -> None:
    """The rotation as a whole, for a machine."""
    verdicts = [result.verdict for result in results]
    kinds: dict[str, int] = {}
    for fault in (fault for result in results for fault in result.faults if fault.evidence):
        kinds[fault.nemesis] = kinds.get(fault.nemesis, 0) + 1
    counts: dict[str, int] = {}
    for result in results:
        for name, count in result.counts.items():
            counts[name] = counts.get(name, 0) + count
    directory.mkdir(parents=True, exist_ok=True)
    whole = {
        "seed": seed,
        "seconds": round(seconds, 1),
        "runs": len(results),
        "verdicts": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
        "checked_operations": sum(result.checked for result in results),
        "operations": counts,
        "faults_that_took_hold": kinds,
        "each": [
            {
                "workload": result.settings.workload,
                "nemeses": list(result.settings.nemeses),
                "seed": result.settings.seed,
                "means": result.means,
                "verdict": result.verdict,
                "checked": result.checked,
                "operations": result.counts,
                "directory": str(result.settings.directory),
            }
            for result in results
        ],
    }
    (directory / "summary.json").write_text(json.dumps(whole, indent=2) + "\n")
    (directory / "junit.xml").write_text(run_report.junit(results))

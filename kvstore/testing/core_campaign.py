"""`python -m kvstore.testing.core_campaign`: many simulated clusters of cores, on all processors."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from raft.sim import PROBES, Report, generate, run

LENGTH_S = 60
"""Virtual seconds of faults in each seed; the calm comes on top."""

WRITES_SHARE_MIN = 0.25
"""A campaign that commits a smaller share of its writes has mostly tested refusals: void, not green."""


def run_one(work: tuple[int, int]) -> tuple[Report, float]:
    """One seed's report, and the processor seconds it took."""
    seed, length_s = work
    began_s = time.process_time()
    report = run(generate(seed, seconds=length_s))
    return report, time.process_time() - began_s


def _until(numbers: Iterator[int], end_s: float, length_s: int) -> Iterator[tuple[int, int]]:
    for seed in numbers:
        if time.monotonic() >= end_s:
            return
        yield seed, length_s


class Tally:
    """What all runs came to."""

    def __init__(self) -> None:
        self.seeds = 0
        self.failures: list[dict[str, Any]] = []
        self.counts: dict[str, Counter[str]] = {
            "writes": Counter(),
            "reads": Counter(),
            "faults": Counter(),
            "probes": Counter(dict.fromkeys(PROBES, 0)),
        }
        self.events = 0
        self.virtual_us = 0
        self.busy_us = 0
        """Without the calm."""
        self.processor_s = 0.0

    def add(self, report: Report, processor_s: float, length_s: int) -> None:
        self.seeds += 1
        for name, counter in self.counts.items():
            counter.update(getattr(report, name))
        self.events += report.events
        self.virtual_us += report.virtual_us
        self.busy_us += min(report.virtual_us, length_s * 1_000_000)
        self.processor_s += processor_s
        if report.invariant is not None:
            self.failures.append(
                {"seed": report.seed, "invariant": report.invariant, "detail": report.detail}
            )

    @property
    def is_void(self) -> bool:
        writes = self.counts["writes"]
        return writes["ok"] < WRITES_SHARE_MIN * max(1, writes.total())

    def summary(self, wall_s: float) -> dict[str, Any]:
        return {
            "verdict": "failed" if self.failures else "void" if self.is_void else "passed",
            "seeds": self.seeds,
            "failures": self.failures,
            "wall_s": round(wall_s, 1),
            "busy_cluster_hours": round(self.busy_us / 3.6e9, 2),
            "virtual_hours": round(self.virtual_us / 3.6e9, 2),
            "events": self.events,
            "events_per_processor_s": round(self.events / max(0.001, self.processor_s)),
            **{name: dict(sorted(counter.items())) for name, counter in self.counts.items()},
            "probes_missed": sorted(name for name, count in self.counts["probes"].items() if not count),
        }


@click.command()
@click.option("--seeds", default="0-", help="FIRST-LAST, or FIRST- to go on until the time is up.")
@click.option("--minutes", default=1.0, help="When to stop beginning new seeds.")
@click.option("--length", "length_s", default=LENGTH_S, help="Virtual seconds of faults in each seed.")
@click.option("--workers", default=os.cpu_count() or 1, help="Processes.")
@click.option("--output", default="", help="Where to write the result as JSON, besides the screen.")
def main(seeds: str, minutes: float, length_s: int, workers: int, output: str) -> None:
    """Simulate clusters of cores under faults, seed after seed; exit 1 unless all promises held."""
    first, _, last = seeds.partition("-")
    numbers = iter(range(int(first), int(last) + 1)) if last else itertools.count(int(first))
    began_s = time.monotonic()
    tally = Tally()
    work = _until(numbers, began_s + 60 * minutes, length_s)
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool:
        while chunk := list(itertools.islice(work, 4 * workers)):
            for report, processor_s in pool.imap_unordered(run_one, chunk):
                tally.add(report, processor_s, length_s)
                if report.invariant is not None:
                    click.echo(f"FAILED seed {report.seed}: {report.detail}", err=True)
    found = tally.summary(time.monotonic() - began_s)
    text = json.dumps(found, indent=2)
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(text + "\n", "utf-8")
    click.echo(text)
    sys.exit(0 if found["verdict"] == "passed" else 1)


if __name__ == "__main__":
    main()

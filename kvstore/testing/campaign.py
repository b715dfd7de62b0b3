"""Many seeds of the node simulation on all cores, one JSON result."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import click

from kvstore.testing.nodes import LENGTH_S, Report, SimulationFailed, run_seed


def run_one(seed: int, length_s: float, classes: tuple[str, ...]) -> Report | str:
    """A report, or the text of the failure."""
    logging.disable(logging.CRITICAL)  # members complain of what was done to them
    try:
        return run_seed(seed, length_s=length_s, classes=classes)
    except SimulationFailed as failure:
        return str(failure)


def campaign(
    seeds: Iterator[int], end_s: float, length_s: float, classes: tuple[str, ...], workers: int
) -> Iterator[Report | str]:
    """Results in order of completion, until the seeds or the time (monotonic, `end_s`) run out."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        running: set[Future[Report | str]] = set()
        while True:
            while len(running) < workers and time.monotonic() < end_s:
                seed = next(seeds, None)
                if seed is None:
                    break
                running.add(pool.submit(run_one, seed, length_s, classes))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def summary(reports: list[Report], failures: list[str], wall_s: float) -> dict[str, Any]:
    """All runs as one value for a machine."""
    counts: dict[str, Counter[str]] = {"faults": Counter(), "processes": Counter(), "operations": Counter()}
    for report in reports:
        for name, counter in counts.items():
            counter.update(getattr(report, name))
    virtual_s = sum(report.virtual_s for report in reports)
    return {
        "seeds": len(reports) + len(failures),
        "failures": failures,
        "wall_s": round(wall_s, 1),
        "virtual_s": round(virtual_s, 1),
        "virtual_s_per_cpu_s": round(virtual_s / max(0.001, sum(report.wall_s for report in reports)), 1),
        **{name: dict(sorted(counter.items())) for name, counter in counts.items()},
        **{
            name: sum(getattr(report, name) for report in reports)
            for name in ("acknowledged", "applied", "leaders", "torn", "searched", "undecided")
        },
        "beyond_budget": sum(report.beyond_budget for report in reports),
    }


@click.command()
@click.option("--seeds", default="0-", help="FIRST-LAST, or FIRST- to go on until the time is up.")
@click.option("--minutes", default=1.0, help="When to stop beginning new seeds.")
@click.option("--length", "length_s", default=LENGTH_S, help="Virtual seconds of faults in each seed.")
@click.option("--classes", default="", help="Fault classes, comma-separated, instead of the swarm's choice.")
@click.option("--workers", default=os.cpu_count() or 1, help="Processes.")
@click.option("--output", default="", help="Where to write the result as JSON, besides a line on the screen.")
def main(seeds: str, minutes: float, length_s: float, classes: str, workers: int, output: str) -> None:
    """Simulate whole members under faults, seed after seed; exit 1 if one of them fails."""
    first, _, last = seeds.partition("-")
    numbers = iter(range(int(first), int(last) + 1)) if last else itertools.count(int(first))
    kept = tuple(name for name in classes.split(",") if name)
    began_s = time.monotonic()
    reports: list[Report] = []
    failures: list[str] = []
    for result in campaign(numbers, began_s + 60 * minutes, length_s, kept, workers):
        if isinstance(result, Report):
            reports.append(result)
        else:
            failures.append(result)
            click.echo(f"FAILED {result}", err=True)
    found = summary(reports, failures, time.monotonic() - began_s)
    text = json.dumps(found, indent=2)
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(text + "\n")
    click.echo(text)
    sys.exit(1 if failures or not reports else 0)

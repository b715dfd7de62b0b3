"""`python -m kvstore.testing`: many seeds of both levels of simulation, on all processors; one verdict.

* passed: every seed kept every invariant, enough calls were served, and the probes were reached.
* failed: an invariant broke, a long campaign missed a probe that has no recorded reason, or it reached a
  probe that is recorded as unreachable.
* inconclusive: nothing broke, but the evidence is thin: no seed, too few calls served, too many inconclusive
  seeds.
"""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import click

from kvstore.testing.shrinking import shrink_seed
from kvstore.testing.simulation_levels import LEVELS, SeedResult

SEEDS_QUEUED_PER_WORKER = 3
"""Seeds submitted to the pool per worker, so that no worker idles."""

INCONCLUSIVE_SHARE_MAX = 0.1
"""With a larger share of inconclusive seeds the whole campaign is inconclusive."""

FRESH_SEEDS = 1 << 40
"""A fresh campaign begins at a random seed below this: two campaigns do not overlap, and seeds stay short to
type."""

SHOWN_MAX = 5
"""Seeds of a kind shown on the screen; the file has all."""


def run_one(level: str, seed: int, length_s: float) -> SeedResult:
    """One seed, without the cyclic collector until its end, when the whole cluster is garbage."""
    gc.disable()
    try:
        return LEVELS[level].run(seed, length_s)
    finally:
        gc.enable()
        gc.collect()


def results(
    level: str, seeds: Iterator[int], end_s: float, length_s: float, workers: int
) -> Iterator[SeedResult]:
    """Results in order of completion, until the seeds or the time (monotonic, `end_s`) run out."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        running: set[Future[SeedResult]] = set()
        while True:
            while len(running) < SEEDS_QUEUED_PER_WORKER * workers and time.monotonic() < end_s:
                seed = next(seeds, None)
                if seed is None:
                    break
                running.add(pool.submit(run_one, level, seed, length_s))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


class Tally:
    def __init__(self, level: str) -> None:
        self.level = level
        self.seeds = 0
        self.failures: list[dict[str, Any]] = []
        self.inconclusive: list[dict[str, Any]] = []
        self.virtual_s = self.busy_s = self.processor_s = 0.0
        self.faults: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.probes: Counter[str] = Counter(dict.fromkeys(LEVELS[level].probes, 0))
        self.counts: Counter[str] = Counter()

    def add(self, result: SeedResult) -> None:
        self.seeds += 1
        if result.failure:
            self.failures.append({"seed": result.seed, "seen": result.failure})
        elif result.inconclusive:
            self.inconclusive.append({"seed": result.seed, "reason": result.inconclusive})
        else:
            self.busy_s += result.busy_s
        self.virtual_s += result.virtual_s
        self.processor_s += result.processor_s
        for name in ("faults", "operations", "probes", "counts"):
            getattr(self, name).update(getattr(result, name))

    def missed(self) -> tuple[dict[str, str], list[str]]:
        """Probes never reached: those recorded as unreachable with the reason, and the others."""
        unreached = LEVELS[self.level].unreached
        names = [name for name, count in sorted(self.probes.items()) if not count]
        return {n: unreached[n] for n in names if n in unreached}, [n for n in names if n not in unreached]

    def contradicted(self) -> dict[str, str]:
        """Probes reached although recorded as unreachable, with that reason."""
        return {n: why for n, why in sorted(LEVELS[self.level].unreached.items()) if self.probes[n]}

    @property
    def verdict(self) -> str:
        level = LEVELS[self.level]
        if (
            self.failures
            or self.contradicted()
            or (self.seeds >= level.seeds_for_probes and self.missed()[1])
        ):
            return "failed"
        issued = self.operations.total()
        served = sum(count for how, count in self.operations.items() if how.endswith(" ok"))
        if (
            not issued
            or served < level.ok_share_min * issued
            or len(self.inconclusive) > INCONCLUSIVE_SHARE_MAX * self.seeds
        ):
            return "inconclusive"
        return "passed"

    def summary(self, wall_s: float, length_s: float) -> dict[str, Any]:
        excused, missed = self.missed()
        return {
            "verdict": self.verdict,
            "seeds": self.seeds,
            "seed_virtual_s": length_s,
            "failures": self.failures,
            "inconclusive": self.inconclusive,
            "busy_cluster_hours": round(self.busy_s / 3600, 2),
            "virtual_hours": round(self.virtual_s / 3600, 2),
            "wall_s": round(wall_s, 1),
            "processor_s": round(self.processor_s, 1),
            "processor_s_per_seed": round(self.processor_s / max(1, self.seeds), 3),
            "virtual_s_per_processor_s": round(self.virtual_s / max(0.001, self.processor_s), 1),
            "operations_checked": self.operations.total(),
            "operations": dict(sorted(self.operations.items())),
            "faults_injected": self.faults.total(),
            "faults": dict(sorted(self.faults.items())),
            "probes_reached": len(self.probes) - len(excused) - len(missed),
            "probes": dict(sorted(self.probes.items())),
            "probes_not_reached": excused,
            "probes_missed": missed,
            "probes_contradicted": self.contradicted(),
            "counts": dict(sorted(self.counts.items())),
        }


def describe(level: str, found: dict[str, Any]) -> str:
    faults = ", ".join(f"{name} {count}" for name, count in found["faults"].items())
    size = f"{found['seeds']} seeds of {found['seed_virtual_s']:g} virtual s in {found['wall_s']} s"
    bad = f"{len(found['failures'])} failed, {len(found['inconclusive'])} inconclusive"
    hours = f"{found['busy_cluster_hours']} busy cluster-hours"
    checked = f"{found['operations_checked']} operations checked"
    probes = f"{found['probes_reached']} of {len(found['probes'])} probes reached"
    lines = [
        f"{level}: {found['verdict']}, {size} ({found['processor_s_per_seed']} processor-s each), {bad}",
        f"  {hours}, {checked}, {probes}",
        f"  {found['faults_injected']} faults: {faults}",
        *(f"  not reached: {name} ({why})" for name, why in found["probes_not_reached"].items()),
    ]
    lines += [f"  REACHED, though recorded as unreachable: {name}" for name in found["probes_contradicted"]]
    if found["seeds"] >= LEVELS[level].seeds_for_probes:
        lines += [f"  missed: {name}" for name in found["probes_missed"]]
    lines += [
        f"  inconclusive seed {row['seed']}: {row['reason']}" for row in found["inconclusive"][:SHOWN_MAX]
    ]
    lines += [f"  FAILED seed {row['seed']}: {row['seen']}" for row in found["failures"][:SHOWN_MAX]]
    return "\n".join(lines)


def _numbers(seeds: str) -> tuple[int, int | None]:
    """First and last seed of the option's text; no last seed means until the time is up."""
    if seeds == "fresh":
        return secrets.randbelow(FRESH_SEEDS), None
    first, _, last = seeds.partition("-")
    try:
        return int(first), int(last) if last else None
    except ValueError as error:
        raise click.BadParameter("FIRST-LAST, FIRST- or fresh", param_hint="--seeds") from error


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--level", default="both", type=click.Choice(["core", "node", "both"]), help="What to simulate."
)
@click.option(
    "--seeds", default="0-", help="FIRST-LAST, or FIRST- until the time is up, or fresh for random ones."
)
@click.option("--minutes", default=1.0, help="When to stop beginning new seeds, both levels together.")
@click.option(
    "--length", "length_s", default=0.0, help="Virtual seconds of faults in a seed, for the level's own."
)
@click.option("--workers", default=os.cpu_count() or 1, help="Processes.")
@click.option("--output", default="", help="Where to write the result as JSON, besides the screen.")
@click.option("--shrink", "shrink", type=int, help="Shorten this failing seed of --level to a test file.")
def main(
    level: str, seeds: str, minutes: float, length_s: float, workers: int, output: str, shrink: int | None
) -> None:
    """Simulate clusters under faults; exit 1 if an invariant broke, 3 if inconclusive."""
    if shrink is not None:
        if level == "both":
            raise click.UsageError("--shrink needs --level core or node")
        try:
            text = shrink_seed(level, shrink, length_s or LEVELS[level].length_s)
        except ValueError as error:
            raise click.ClickException(str(error)) from None
        click.echo(text)
        return
    first, last = _numbers(seeds)
    click.echo(f"seeds {first}-{'' if last is None else last}, {workers} processes, {minutes:g} minutes")
    names = list(LEVELS) if level == "both" else [level]
    found: dict[str, Any] = {"seeds": [first, last], "workers": workers, "levels": {}}
    for name in names:
        began_s = time.monotonic()
        numbers = itertools.count(first) if last is None else iter(range(first, last + 1))
        length = length_s or LEVELS[name].length_s
        tally = Tally(name)
        for result in results(name, numbers, began_s + 60 * minutes / len(names), length, workers):
            tally.add(result)
            if result.failure:
                click.echo(f"FAILED {name} seed {result.seed}: {result.failure}", err=True)
        found["levels"][name] = tally.summary(time.monotonic() - began_s, length)
        click.echo(describe(name, found["levels"][name]))
    verdicts = [part["verdict"] for part in found["levels"].values()]
    found["verdict"] = next((v for v in ("failed", "inconclusive") if v in verdicts), "passed")
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    click.echo(f"verdict: {found['verdict']}")
    sys.exit({"passed": 0, "failed": 1, "inconclusive": 3}[found["verdict"]])

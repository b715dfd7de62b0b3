"""`kvstore verify run`: settings from a command line, one run, and lines for a person."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from kvstore.devcluster.plan import ClusterError
from kvstore.interrupts import run_undoing
from kvstore.verify.load.workloads import WORKLOADS
from kvstore.verify.run.namespaces import choose, enter_hub
from kvstore.verify.run.nemeses import NEMESES
from kvstore.verify.run.rotation import rotate
from kvstore.verify.run.run_execution import execute
from kvstore.verify.run.run_report import summary
from kvstore.verify.run.run_settings import Settings

EXIT_CODES = {"valid": 0, "invalid": 1, "unknown": 2, "inconclusive": 2}
EXIT_NOT_CARRIED_OUT = 3


def run_once(
    *,
    workload: str,
    nemeses: tuple[str, ...],
    directory: str,
    seed: int | None,
    network: str = "relay",
    **numbers: Any,
) -> int:
    """Carry out one run and say what came of it; the exit code."""
    unknown = [name for name in nemeses if name not in NEMESES]
    if workload not in WORKLOADS or unknown:
        click.echo(f"Error: workloads are {', '.join(WORKLOADS)}; nemeses are {', '.join(NEMESES)}", err=True)
        return EXIT_NOT_CARRIED_OUT
    seed = secrets.randbelow(10**9) if seed is None else seed
    settings = Settings(
        workload=workload,
        nemeses=nemeses,
        directory=_anchored(directory) / f"{workload}-{'+'.join(nemeses) or 'none'}-{seed}",
        seed=seed,
        **numbers,
    )
    click.echo(f"seed {seed}, directory {settings.directory}")
    try:
        settings.validate()
        settings = replace(settings, network=_enter(network, nemeses))
        result = run_undoing(execute(settings))
    except (ClusterError, OSError, ValueError) as error:
        click.echo(f"Error: {error}", err=True)
        return EXIT_NOT_CARRIED_OUT
    for line in summary(result):
        click.echo(line)
    return EXIT_CODES[result.verdict]


def run_rotation(
    *, minutes: float, directory: str, seed: int | None, network: str = "relay", **numbers: Any
) -> int:
    """Carry out a rotation; the exit code: 0 only when every run is valid, 1 as soon as one is invalid."""
    seed = secrets.randbelow(10**9) if seed is None else seed
    click.echo(f"seed {seed}, {minutes:g} minutes, directory {directory}")
    try:
        chosen = _enter(network, ())
    except (ClusterError, OSError, ValueError) as error:
        click.echo(f"Error: {error}", err=True)
        return EXIT_NOT_CARRIED_OUT
    where = _anchored(directory)
    results = rotate(minutes=minutes, seed=seed, directory=where, say=click.echo, network=chosen, **numbers)
    checked = sum(result.checked for result in results)
    verdicts = sorted({result.verdict for result in results})
    click.echo(
        f"{len(results)} runs, {checked} checked operations, verdicts: {', '.join(verdicts)}; seed {seed}"
    )
    if "invalid" in verdicts:
        return EXIT_CODES["invalid"]
    return max((EXIT_CODES[verdict] for verdict in verdicts), default=EXIT_NOT_CARRIED_OUT)


def _enter(network: str, nemeses: tuple[str, ...]) -> str:
    """Choose relays or namespaces; for namespaces this process leaves the host's network first."""
    chosen, why = choose(network, nemeses)
    if why:
        click.echo(f"links between members pass relays: {why}")
    if chosen == "namespaces":
        enter_hub()
    return chosen


def _anchored(directory: str) -> Path:
    """The traced calls of the members name files by their whole paths."""
    return Path(directory).resolve()

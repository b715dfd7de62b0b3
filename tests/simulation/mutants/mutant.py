"""A mutant, and how either level of simulation looks for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import kvstore.testing.plan as plans
from kvstore.testing.plan import Plan
from kvstore.testing.shrinking import failure_of, shrink_plan
from raft.sim import Report, Schedule, generate, quiet, run, shrink
from tests.simulation.mutants.patches import Patches

NODE_LENGTH_S = 12.0
"""Virtual seconds of faults in each run of whole members: many short runs find more than few long ones."""

QUIET_SEED = 1


class Mutant(NamedTuple):
    """One bug: `apply` takes a `Patches` and replaces functions of the product."""

    id: int
    name: str
    apply: Callable[[Patches], None] | None
    """None where the product has nothing to break; then `reason` explains it."""
    reason: str = ""
    level: str = "core"
    classes: Sequence[str] = ()
    """Node level: the classes of faults to inject; drawn from the seed when empty."""
    features: Sequence[str] = ()
    """Node level: the features to exercise; none without."""
    settings: Mapping[str, Any] = MappingProxyType({})
    """Node level: fields of the plan that the bug needs, instead of drawn values."""


class Find(NamedTuple):
    """The violation that detected a bug."""

    invariant: str
    detail: str
    virtual_s: float


def schedule_of(mutant: Mutant, seed: int) -> Schedule | Plan:
    """The run of that seed in which the mutant is looked for."""
    if mutant.level == "core":
        return generate(seed)
    plan = plans.generate(seed, length_s=NODE_LENGTH_S, classes=mutant.classes)
    return replace(plan, features=tuple(mutant.features), **mutant.settings)


def quiet_of(mutant: Mutant, *, seconds: int = 5) -> Schedule | Plan:
    """The run that the mutant must survive: a bug that shows without any fault needs no simulation."""
    if mutant.level == "core":
        return quiet(QUIET_SEED, seconds=seconds)
    return plans.quiet(QUIET_SEED, length_s=float(seconds), features=mutant.features)


def look(schedule: Schedule | Plan) -> Find | None:
    """Run it; the violation, or None."""
    if isinstance(schedule, Schedule):
        report = run(schedule)
        return _find(report)
    failure = failure_of(schedule)
    return None if failure is None else Find(failure.invariant, str(failure), failure.report.virtual_s)


def _find(report: Report) -> Find | None:
    if report.invariant is None:
        return None
    return Find(report.invariant, report.detail, report.at_us / 1e6)


def keeps_all_until(schedule: Schedule | Plan, until_s: float) -> Find | None:
    """Run it up to `until_s`; the violation, or None. Recovery is checked only if `until_s` lies in it."""
    if isinstance(schedule, Schedule):
        until_us = int(until_s * 1e6)
        report = run(schedule, until_us=until_us if until_us <= schedule.duration_us else None)
        return _find(report)
    if until_s < schedule.length_s:
        schedule = replace(schedule, length_s=float(math.ceil(until_s)), recovery=False)
    return look(schedule)


def shorten(schedule: Schedule | Plan, invariant: str, runs: int) -> tuple[int, int]:
    """Faults and operations left after shrinking."""
    if isinstance(schedule, Schedule):
        shrunk = shrink(schedule, invariant, runs=runs)
        return len(shrunk.faults), len(shrunk.ops)
    plan, operations = shrink_plan(schedule, invariant, runs=runs)
    return len(plan.faults), operations


__all__ = ["Find", "Mutant", "keeps_all_until", "look", "quiet_of", "schedule_of", "shorten"]

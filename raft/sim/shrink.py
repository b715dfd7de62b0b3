"""Shortens a failing schedule while the *same* invariant breaks: first it drops the time after the
violation, then faults, operations and settings. Greedy and bounded; the result is a schedule again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from raft.sim.cluster import run
from raft.sim.schedule import Schedule

RUNS_MAX = 300
"""Runs spent on one schedule; each is at most as long as the first."""

T = TypeVar("T")


class Budget(Generic[T]):
    """Answers whether a candidate still fails until `runs` are spent, and no from then on."""

    def __init__(self, fails: Callable[[T], bool], runs: int) -> None:
        self._fails = fails
        self.runs = runs

    def fails(self, candidate: T) -> bool:
        self.runs -= 1
        return self.runs >= 0 and self._fails(candidate)


def shrink(schedule: Schedule, invariant: str, *, runs: int = RUNS_MAX) -> Schedule:
    """The shortest schedule found that still breaks `invariant`. Raises ValueError if the given one
    does not."""
    report = run(schedule)
    if report.invariant != invariant:
        raise ValueError(f"the schedule breaks {report.invariant!r}, not {invariant!r}")
    budget: Budget[Schedule] = Budget(lambda candidate: run(candidate).invariant == invariant, runs)
    if report.at_us <= schedule.duration_us:
        schedule = _truncate(schedule, report.at_us)
    faults = fewer(schedule.faults, lambda some: budget.fails(replace(schedule, faults=tuple(some))))
    schedule = replace(schedule, faults=tuple(faults))
    ops = fewer(schedule.ops, lambda some: budget.fails(replace(schedule, ops=tuple(some))))
    schedule = replace(schedule, ops=tuple(ops))
    for simpler in ({"spares": 0}, {"drift": 0.0}, {"lazy_us": 0}, {"apply_us": 0}, {"jitter_us": 0}):
        candidate = replace(schedule, **simpler)
        if candidate != schedule and _members_exist(candidate) and budget.fails(candidate):
            schedule = candidate
    return schedule


def _truncate(schedule: Schedule, at_us: int) -> Schedule:
    """Drop everything after the violation."""
    return replace(
        schedule,
        duration_us=at_us,
        liveness=False,
        faults=tuple(fault for fault in schedule.faults if fault.at <= at_us),
        ops=tuple(op for op in schedule.ops if op.at <= at_us),
    )


def _members_exist(schedule: Schedule) -> bool:
    most = schedule.size + schedule.spares
    for fault in schedule.faults:
        named = [fault.args.get("member", 0), fault.args.get("to", 0), fault.args.get("with", 0)]
        if max(named + [m for pair in fault.args.get("pairs", ()) for m in pair]) > most:
            return False
    return True


def fewer(entries: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> Sequence[T]:
    """The entries without which `fails` no longer holds: removes them in halves first, then in ever
    smaller pieces."""
    if entries and fails(()):
        return ()
    piece = max(len(entries) // 2, 1)
    while entries:
        start = 0
        while start < len(entries):
            without = [*entries[:start], *entries[start + piece :]]
            if without and fails(without):
                entries = without
            else:
                start += piece
        if piece == 1:
            break
        piece = max(piece // 2, 1)
    return entries


def as_test(schedule: Schedule, invariant: str, name: str) -> str:
    """A test file that fails for as long as `schedule` violates an invariant."""
    return f'''"""A shrunk run: {len(schedule.faults)} faults, {len(schedule.ops)} operations; it broke:
{invariant}.
"""

from raft.sim import Schedule, run

SCHEDULE = """{schedule.to_json()}"""


def test_{name}():
    report = run(Schedule.from_json(SCHEDULE))
    assert report.invariant is None, report.detail
'''

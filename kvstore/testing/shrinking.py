"""Shrinks a failing seed while it violates the *same* invariant, and prints it as a test file.

Removes faults first, then features, operations and clients, then details. Greedy, with a bounded number of
runs; the result is a plan again.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from kvstore.testing.nodes import SimulationFailed, play
from kvstore.testing.plan import Plan, generate
from raft.sim import as_test
from raft.sim import generate as generate_core
from raft.sim import run as run_core
from raft.sim import shrink as shrink_core
from raft.sim.shrink import Budget, fewer

RUNS_MAX = 120
"""Runs spent on one plan, each at most as long as the first: a minute or two."""


_SIMPLER: dict[str, Any] = {"features": (), "clients": 1, "keys": 1, "padding": 0, "size": 3, "config": {}}
"""Values tried one by one once the faults are few."""


def failure_of(plan: Plan) -> SimulationFailed | None:
    try:
        play(plan)
    except SimulationFailed as failure:
        return failure
    return None


def _violates(plan: Plan, invariant: str) -> bool:
    failure = failure_of(plan)
    return failure is not None and failure.invariant == invariant


def shrink_plan(plan: Plan, invariant: str, *, runs: int = RUNS_MAX) -> tuple[Plan, int]:
    """The shortest plan found that still violates `invariant`, and how many operations its clients perform.

    Raises ValueError if the given one does not violate it.
    """
    failure = failure_of(plan)
    if failure is None or failure.invariant != invariant:
        raise ValueError(f"the plan violates {failure and failure.invariant!r}, not {invariant!r}")
    budget: Budget[Plan] = Budget(lambda candidate: _violates(candidate, invariant), runs)
    length_s = math.ceil(failure.report.virtual_s)
    if length_s < plan.length_s:
        early = [fault for fault in plan.faults if fault.at_s <= length_s]
        shorter = replace(plan, length_s=float(length_s), recovery=False, faults=tuple(early))
        plan = shorter if budget.fails(shorter) else plan
    faults = fewer(plan.faults, lambda some: budget.fails(replace(plan, faults=tuple(some))))
    plan = replace(plan, faults=tuple(faults))
    for name, value in _SIMPLER.items():
        candidate = replace(plan, **{name: value})
        if candidate != plan and _members_exist(candidate) and budget.fails(candidate):
            plan = candidate
    last = failure_of(plan)
    assert last is not None
    operations = sum(last.report.operations.values())
    while operations and budget.fails(fewer_operations := replace(plan, operations_max=operations // 2)):
        plan, operations = fewer_operations, operations // 2
    return plan, operations


def _members_exist(plan: Plan) -> bool:
    named = [m for fault in plan.faults for m in (*fault.members, *(m for link in fault.links for m in link))]
    return max(named, default=0) <= plan.size


def plan_as_test(plan: Plan, invariant: str, name: str) -> str:
    """A test file that fails as long as `plan` violates an invariant."""
    return f'''"""A shrunk run of whole members: {len(plan.faults)} faults; it violated:
{invariant}.
"""

from kvstore.testing.nodes import play
from kvstore.testing.plan import Plan

PLAN = """{plan.to_json()}"""


def test_{name}():
    play(Plan.from_json(PLAN))
'''


def shrink_seed(level: str, seed: int, length_s: float) -> str:
    """The text of a pytest file that fails as long as the shortened run violates its invariant.

    Raises ValueError when the seed violates none.
    """
    name = f"{level}_seed_{seed}"
    if level == "core":
        schedule = generate_core(seed, seconds=int(length_s))
        invariant = run_core(schedule).invariant
        if invariant is None:
            raise ValueError(f"seed {seed} keeps every invariant")
        return as_test(shrink_core(schedule, invariant), invariant, name)
    plan = generate(seed, length_s=length_s)
    failure = failure_of(plan)
    if failure is None:
        raise ValueError(f"seed {seed} keeps every invariant")
    return plan_as_test(shrink_plan(plan, failure.invariant)[0], failure.invariant, name)

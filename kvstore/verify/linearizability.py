"""Is there one legal order? Split by independent keys, searched both ways, within a budget."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

from kvstore.verify.models import Model, Step
from kvstore.verify.operation_history import Operation, Verdict, VerdictKind
from kvstore.verify.search import Problem, Result, breadth_first, depth_first

BUDGET_S_DEFAULT = 60.0
"""Time a check may take before its verdict is `unknown`, in seconds."""

PREFIX_LINES_MAX = 8
"""Operations shown from the end of the longest legal prefix: enough to see the state it reached."""


def check_linearizability(
    operations: Sequence[Operation], model: Model, *, budget_s: float = BUDGET_S_DEFAULT
) -> Verdict:
    """Judge a history against a model.

    Raises ValueError when an operation does not fit the model's vocabulary.
    """
    deadline = time.monotonic() + budget_s
    parts = _partition(operations, model)
    judged = sum(len(part) for part in parts)
    unknown = 0
    for part in parts:
        problem = Problem(model, part)
        result = _compete(problem, deadline)
        if result is None:
            unknown += 1
        elif not result.legal:
            order = [problem.operations[n] for n in result.order] or _prefix(problem, result, deadline)
            return Verdict(
                VerdictKind.INVALID,
                judged,
                _explain(problem, result, order),
                prefix=[operation.line for operation in order],
                stuck=problem.operations[result.stuck].line,
            )
    if unknown:
        return Verdict(
            VerdictKind.UNKNOWN, judged, (f"{unknown} of {len(parts)} parts undecided after {budget_s:g} s",)
        )
    return Verdict(VerdictKind.VALID, judged)


def _partition(operations: Sequence[Operation], model: Model) -> list[list[tuple[Operation, Step]]]:
    """Group operations that share keys, directly or through others (union-find over keys)."""
    parent: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    kept: list[tuple[Operation, Step, Hashable]] = []
    for operation in operations:
        step = model.step(operation)
        if step is None:
            continue
        keys = model.keys(operation)
        for key in keys[1:]:
            parent[root(key)] = root(keys[0])
        kept.append((operation, step, keys[0]))
    groups: dict[Hashable, list[tuple[Operation, Step]]] = {}
    for operation, step, key in kept:
        groups.setdefault(root(key), []).append((operation, step))
    return list(groups.values())


def _compete(problem: Problem, deadline: float) -> Result | None:
    """Alternate the two searches until one ends or time is up; None when neither decided."""
    running: list[Iterator[Result | None]] = [depth_first(problem), breadth_first(problem)]
    while running and time.monotonic() < deadline:
        for search in list(running):
            try:
                result = next(search)
            except StopIteration:
                running.remove(search)
                continue
            if result is not None:
                return result
    return None


def _prefix(problem: Problem, refuted: Result, deadline: float) -> list[Operation]:
    """A legal order of everything before the operation that cannot be placed, when the refutation kept none.

    What had not returned by then may or may not be part of it.
    """
    stuck = problem.operations[refuted.stuck]
    end = stuck.ret or 0
    before = [
        (operation if (operation.ret or end) < end else replace(operation, ret=None), step)
        for operation, step in problem.pairs()
        if operation.call < end and operation is not stuck
    ]
    smaller = Problem(problem.model, before)
    for result in depth_first(smaller):
        if result is not None:
            return [smaller.operations[number] for number in result.order]
        if time.monotonic() > deadline:
            break
    return []


def _explain(problem: Problem, result: Result, order: Sequence[Operation]) -> list[str]:
    operations = problem.operations
    lines = [f"cannot be placed: {operations[result.stuck].describe()}"]
    rivals = [n for n in problem.open_at[result.stuck] if n != result.stuck]
    lines += [f"  concurrent with it: {operations[number].describe()}" for number in rivals]
    if order:
        skipped = len(order) - PREFIX_LINES_MAX
        if skipped > 0:
            lines.append(f"longest legal order, after {skipped} earlier operations:")
        else:
            lines.append("longest legal order:")
        lines += [f"  {operation.describe()}" for operation in order[-PREFIX_LINES_MAX:]]
    return lines

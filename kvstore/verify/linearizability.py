"""Is there one legal order? Split by independent keys, searched both ways, within a budget.

Keys are judged concurrently: each group that is not decided yet gets a slice of CPU after another, longer
ones each round, so that a key whose search never ends keeps no other from being refuted.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import islice

from kvstore.verify.budget import BUDGET_S_DEFAULT, BoundMetError, Budget, undecided
from kvstore.verify.models import Model, Step
from kvstore.verify.operation_history import NOTHING_JUDGED, Operation, Verdict, VerdictKind
from kvstore.verify.search import Memo, Problem, Result, breadth_first, depth_first

SLICE_S = 0.02
"""CPU seconds of the first slice: most keys of most histories are decided within it."""

SLICE_GROWTH = 2
"""From one round to the next: a key that needs a second gets it when the others have used as much each."""

GROUPS_SHOWN_MAX = 8
"""Undecided groups of keys named in a verdict."""

KEYS_SHOWN_MAX = 3
OPERATIONS_NAMED_MAX = 100
"""Of an undecided group: how many keys are named, and from how many operations they are gathered."""

PREFIX_S = 5.0
"""CPU seconds to look for the longest legal prefix once the history is refuted: it only explains."""

PREFIX_LINES_MAX = 8
"""Operations shown from the end of the longest legal prefix: enough to see the state it reached."""


def check_linearizability(
    operations: Sequence[Operation],
    model: Model,
    *,
    budget_s: float = BUDGET_S_DEFAULT,
    budget: Budget | None = None,
) -> Verdict:
    """Judge a history against a model, in `budget_s` CPU seconds, or what is left of a `budget` begun.

    Unknown when a bound was met first, and for an empty history. Raises ValueError when an operation does not
    fit the model's vocabulary.
    """
    budget = budget or Budget(budget_s)
    groups: list[_Group] = []
    try:
        parts = _partition(operations, model, budget)
        judged = sum(len(part) for part in parts)
        if not judged:
            return undecided(judged, NOTHING_JUDGED)
        groups = [_Group(model, part, budget) for part in sorted(parts, key=len)]
    except BoundMetError as bound:
        return undecided(len(operations), f"undecided: {bound}, before the search began")
    refuted = _compete(groups, budget)
    if refuted is not None:
        return _refutation(*refuted, groups, judged, budget)
    open_groups = [group for group in groups if group.bound]
    if not open_groups:
        return Verdict(VerdictKind.VALID, judged)
    lines = [f"undecided: {len(open_groups)} of {len(groups)} independent groups of keys"]
    lines += [group.describe() for group in open_groups[:GROUPS_SHOWN_MAX]]
    if len(open_groups) > GROUPS_SHOWN_MAX:
        lines.append(f"  and {len(open_groups) - GROUPS_SHOWN_MAX} more")
    return undecided(judged, *lines)


def _partition(
    operations: Sequence[Operation], model: Model, budget: Budget
) -> list[list[tuple[Operation, Step]]]:
    """Group operations that share keys, directly or through others (union-find over keys)."""
    parent: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        while parent.setdefault(key, key) != key:
            budget.step()
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    kept: list[tuple[Operation, Step, Hashable]] = []
    for operation in budget.each(operations):
        step = model.step(operation)
        if step is None:
            continue
        keys = model.keys(operation)
        for key in budget.each(keys[1:]):
            parent[root(key)] = root(keys[0])
        kept.append((operation, step, keys[0]))
    groups: dict[Hashable, list[tuple[Operation, Step]]] = {}
    for operation, step, key in budget.each(kept):
        groups.setdefault(root(key), []).append((operation, step))
    return list(groups.values())


class _Group:
    """Operations that share keys, and the two searches that compete over them."""

    def __init__(self, model: Model, part: Sequence[tuple[Operation, Step]], budget: Budget) -> None:
        self.problem = Problem(model, part, budget)
        self.bound: BoundMetError | None = None
        """What was met before the group was decided."""
        self._budget = budget
        self._searches = [
            (search(self.problem, memo), memo)
            for search, memo in ((depth_first, Memo(self.problem)), (breadth_first, Memo(self.problem)))
        ]

    @property
    def is_open(self) -> bool:
        return bool(self._searches)

    @property
    def held_bytes(self) -> int:
        """Estimate of what the searches take."""
        return self.problem.table_bytes + sum(memo.held_bytes for _, memo in self._searches)

    def advance(self, slice_s: float, memory_bytes: int) -> Result | None:
        """Alternate the two searches until one ends, a slice of CPU is used, or they hold too much.

        Raises BoundMetError when the whole budget is spent.
        """
        end_s = self._budget.left_s() - slice_s
        while self._searches:
            for search, _ in self._searches:
                result = next(search)
                if result is not None:
                    return result
            self._budget.check()
            if self._budget.left_s() <= end_s or self.held_bytes > memory_bytes:
                break
        return None

    def give_up(self) -> None:
        """End the search that holds more; without any, the group stays undecided."""
        self._searches.remove(max(self._searches, key=lambda entry: entry[1].held_bytes))
        if not self._searches:
            self.end(self._budget.memory_bound())

    def end(self, bound: BoundMetError | None = None) -> None:
        """Free what the searches hold; `bound` says why they did not decide."""
        self.bound = bound
        self._searches.clear()
        self.problem.forget()

    def describe(self) -> str:
        """Its first keys, where it has any, its size, and what was met."""
        operations, model = self.problem.operations, self.problem.model
        keys: dict[Hashable, None] = {}
        for operation in operations[:OPERATIONS_NAMED_MAX]:
            keys.update(dict.fromkeys(model.keys(operation)))
            if len(keys) >= KEYS_SHOWN_MAX:
                break
        named = "".join(f"key {key!r}, " for key in islice(keys, KEYS_SHOWN_MAX) if key is not None)
        return f"  {named}{len(operations)} operations: {self.bound}"


def _compete(groups: Sequence[_Group], budget: Budget) -> tuple[_Group, Result] | None:
    """Slice after slice for each group, until one is refuted or all are decided or given up.

    Groups that have a `bound` afterwards are undecided; the others are legal.
    """
    searched = list(groups)
    slice_s, held_bytes = SLICE_S, 0
    try:
        while searched:
            share_s = min(slice_s, budget.left_s() / len(searched))
            for group in searched:
                held_bytes -= group.held_bytes
                result = group.advance(share_s, budget.memory_bytes - held_bytes)
                if result is not None and not result.legal:
                    return group, result
                if result is not None:
                    group.end()
                held_bytes += group.held_bytes
                while held_bytes > budget.memory_bytes:
                    largest = max(searched, key=lambda one: one.held_bytes)
                    held_bytes -= largest.held_bytes
                    largest.give_up()
                    held_bytes += largest.held_bytes
            searched = [group for group in searched if group.is_open]
            slice_s *= SLICE_GROWTH
    except BoundMetError as bound:
        for group in searched:
            if group.is_open:
                group.end(bound)
    return None


def _refutation(
    group: _Group, result: Result, groups: Sequence[_Group], judged: int, budget: Budget
) -> Verdict:
    problem = group.problem
    rivals = [problem.operations[n] for n in problem.open_at[result.stuck] if n != result.stuck]
    for one in groups:
        one.end()  # the memory, for the search of the prefix
    order = [problem.operations[n] for n in result.order] or _prefix(problem, result, budget)
    stuck = problem.operations[result.stuck]
    return Verdict(
        VerdictKind.INVALID,
        judged,
        _explain(stuck, rivals, order),
        prefix=[operation.line for operation in order],
        stuck=stuck.line,
    )


def _prefix(problem: Problem, refuted: Result, budget: Budget) -> list[Operation]:
    """A legal order of everything before the operation that cannot be placed, when the refutation kept none.

    What had not returned by then may or may not be part of it. Empty when a bound was met before.
    """
    stuck = problem.operations[refuted.stuck]
    end = stuck.ret or 0
    end_s = budget.left_s() - PREFIX_S
    try:
        before = [
            (operation if (operation.ret or end) < end else replace(operation, ret=None), step)
            for operation, step in budget.each(problem.pairs())
            if operation.call < end and operation is not stuck
        ]
        smaller = Problem(problem.model, before, budget)
        memo = Memo(smaller)
        for result in depth_first(smaller, memo):
            if result is not None:
                return [smaller.operations[number] for number in result.order]
            if budget.left_s() < end_s or smaller.table_bytes + memo.held_bytes > budget.memory_bytes:
                break
    except BoundMetError:
        pass
    return []


def _explain(stuck: Operation, rivals: Sequence[Operation], order: Sequence[Operation]) -> list[str]:
    lines = [f"cannot be placed: {stuck.describe()}"]
    lines += [f"  concurrent with it: {operation.describe()}" for operation in rivals]
    if order:
        skipped = len(order) - PREFIX_LINES_MAX
        if skipped > 0:
            lines.append(f"longest legal order, after {skipped} earlier operations:")
        else:
            lines.append("longest legal order:")
        lines += [f"  {operation.describe()}" for operation in order[-PREFIX_LINES_MAX:]]
    return lines

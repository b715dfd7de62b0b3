"""Two searches for a legal order, run in competition.

Both walk *configurations*: which operations have been placed, and the state they led to. Completed
operations are numbered by return time. With `low` the first one not yet placed, every operation
called before `low` returns may be placed next, and nothing else may: so a configuration is
(low, which of the later ones are placed, which indeterminate ones are placed, state).

Three reductions keep the walk short; none changes the verdict:

* a pure observation that fits is placed at once (any legal order with it at a later position stays
  legal with it here);
* equal indeterminate operations are interchangeable, so only the earliest called is tried;
* completed operations are tried before indeterminate ones.

Depth first (Wing and Gong, with Lowe's memo of configurations) is quick to find an order; breadth
first, return by return, is quick to find that none exists. Neither dominates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from kvstore.verify.models import INCONSISTENT, Model, Step
from kvstore.verify.operation_history import Operation

VISITS_PER_SLICE = 2_000
"""Configurations that one search visits before the other continues: a few milliseconds."""

CONFIGURATIONS_MAX = 5_000_000
"""Memo bound, about a gigabyte; a search that reaches it gives up rather than exhaust memory."""


class Config(NamedTuple):
    """A point of the search."""

    low: int
    """The first completed operation, by return time, that is not yet placed."""
    placed: int
    """Bit i: completed operation low + i is placed. Invariant: bit 0 is clear."""
    crashed: int
    """Bit i: indeterminate operation i, by call time, is placed."""
    state: int
    """Interned number of the model's state."""


class Result(NamedTuple):
    legal: bool
    order: Sequence[int]
    """A legal order if there is one, else the longest legal prefix; numbers into `Problem.operations`."""
    stuck: int
    """The first completed operation that no order reaches; meaningless when legal."""


class Problem:
    """A history prepared for searching: numbered, reduced to steps, states interned."""

    def __init__(self, model: Model, operations: Sequence[tuple[Operation, Step]]) -> None:
        done = sorted(
            (pair for pair in operations if pair[0].ret is not None), key=lambda pair: pair[0].ret or 0
        )
        crashed = [pair for pair in operations if pair[0].ret is None]
        self.operations = [operation for operation, _ in done + crashed]
        self.done_count = len(done)
        self.model = model
        self._state_numbers: dict[Any, int] = {}
        self._states: list[Any] = []
        self._step_numbers: dict[Step, int] = {}
        self._steps: list[Step] = []
        self._moves: dict[tuple[int, int], int] = {}
        self.step_of = [self._number_step(step) for _, step in done + crashed]
        self.observes = [step.observes for _, step in done + crashed]
        self.initial = self._number_state(model.initial)
        self.open_at = self._open_at_return([pair[0] for pair in done])
        self.crashed_classes = self._classes([pair[0] for pair in crashed])

    def pairs(self) -> list[tuple[Operation, Step]]:
        """The operations with their steps, completed ones first."""
        return [(op, self._steps[step]) for op, step in zip(self.operations, self.step_of, strict=True)]

    def _number_step(self, step: Step) -> int:
        if step not in self._step_numbers:
            self._step_numbers[step] = len(self._steps)
            self._steps.append(step)
        return self._step_numbers[step]

    def _number_state(self, state: Any) -> int:
        if state not in self._state_numbers:
            self._state_numbers[state] = len(self._states)
            self._states.append(state)
        return self._state_numbers[state]

    def _open_at_return(self, done: Sequence[Operation]) -> list[list[int]]:
        events = sorted(
            [(op.call, 0, i) for i, op in enumerate(done)]
            + [(op.ret or 0, 1, i) for i, op in enumerate(done)]
        )
        open_now: dict[int, None] = {}
        open_at: list[list[int]] = [[]] * len(done)
        for _, is_return, number in events:
            if is_return:
                open_at[number] = sorted(open_now)
                del open_now[number]
            else:
                open_now[number] = None
        return open_at

    def _classes(self, crashed: Sequence[Operation]) -> list[tuple[int, list[int], int]]:
        """Equal indeterminate operations together: step, members by call time, bit mask of the members."""
        members: dict[int, list[int]] = {}
        for position in range(len(crashed)):
            members.setdefault(self.step_of[self.done_count + position], []).append(position)
        return [(step, group, sum(1 << p for p in group)) for step, group in members.items()]

    def move(self, state: int, step: int) -> int:
        found = self._moves.get((state, step))
        if found is None:
            after = self.model.move(self._states[state], self._steps[step])
            found = -1 if after is INCONSISTENT else self._number_state(after)
            self._moves[state, step] = found
        return found

    def complete(self, config: Config, order: list[int]) -> Config:
        """Add every observation that fits, in sequence, and append it to `order`."""
        low, placed, crashed, state = config
        progress = True
        while progress and low < self.done_count:
            progress = False
            for number in self.open_at[low]:
                bit = 1 << (number - low)
                if not placed & bit and self.observes[number] and self.move(state, self.step_of[number]) >= 0:
                    placed |= bit
                    order.append(number)
                    progress = True
            while placed & 1:
                placed >>= 1
                low += 1
        return Config(low, placed, crashed, state)

    def successors(self, config: Config) -> Iterator[tuple[int, Config]]:
        """Every operation that may come next and moves the state, completed ones first."""
        low, placed, crashed, state = config
        for number in self.open_at[low]:
            bit = 1 << (number - low)
            if placed & bit:
                continue
            after = self.move(state, self.step_of[number])
            if after >= 0:
                yield number, _lowered(low, placed | bit, crashed, after)
        deadline = self.operations[low].ret or 0
        for step, members, mask in self.crashed_classes:
            used = (crashed & mask).bit_count()
            if used == len(members):
                continue
            position = members[used]
            if self.operations[self.done_count + position].call > deadline:
                continue
            after = self.move(state, step)
            if after >= 0 and after != state:
                yield self.done_count + position, Config(low, placed, crashed | (1 << position), after)


def _lowered(low: int, placed: int, crashed: int, state: int) -> Config:
    while placed & 1:
        placed >>= 1
        low += 1
    return Config(low, placed, crashed, state)


def depth_first(problem: Problem) -> Iterator[Result | None]:
    """Yields None once per slice, then a Result; ends without one if the memo bound is reached."""
    order: list[int] = []
    root = problem.complete(Config(0, 0, 0, problem.initial), order)
    best_low, best_order = root.low, list(order)
    seen: set[Config] = {root}
    if root.low == problem.done_count:
        yield Result(True, order, -1)
        return
    stack = [(problem.successors(root), len(order))]
    visits = 0
    while stack:
        choices, length = stack[-1]
        del order[length:]
        chosen = next(choices, None)
        if chosen is None:
            stack.pop()
            continue
        order.append(chosen[0])
        config = problem.complete(chosen[1], order)
        if config not in seen:
            if config.low == problem.done_count:
                yield Result(True, order, -1)
                return
            if config.low > best_low:
                best_low, best_order = config.low, list(order)
            seen.add(config)
            stack.append((problem.successors(config), len(order)))
        visits += 1
        if visits % VISITS_PER_SLICE == 0:
            if len(seen) > CONFIGURATIONS_MAX:
                return
            yield None
    yield Result(False, best_order, best_low)


def breadth_first(problem: Problem) -> Iterator[Result | None]:
    """All configurations that survive each return, return by return. Yields as `depth_first` does.

    Keeps no orders, so its Result names the operation that cannot be placed and no prefix.
    """
    level: set[Config] = {problem.complete(Config(0, 0, 0, problem.initial), [])}
    visits = 0
    for target in range(problem.done_count):
        passed: set[Config] = set()
        pending = list(level)
        seen = level
        while pending:
            config = pending.pop()
            if config.low > target:
                passed.add(config)
                continue
            for _, after in problem.successors(config):
                completed = problem.complete(after, [])
                visits += 1
                if completed not in seen:
                    seen.add(completed)
                    pending.append(completed)
                if visits % VISITS_PER_SLICE == 0:
                    if len(seen) > CONFIGURATIONS_MAX:
                        return
                    yield None
        if not passed:
            yield Result(False, (), target)
            return
        level = passed
    yield Result(True, (), -1)

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

Both are generators that pause after a number of steps, so that searches can share one budget.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from kvstore.verify.budget import Budget
from kvstore.verify.models import INCONSISTENT, Model, Step
from kvstore.verify.operation_history import Operation

VISITS_PER_SLICE = 256
"""Configurations that one search visits before the other continues: a millisecond or so."""

ENTRIES_PER_SLICE = 16_384
"""Concurrent operations that the preparation lists before it pauses: a millisecond or so."""

SLOT_BYTES = 64
"""What an entry of a set or dict takes beside its objects, on average over the growth of the table."""

MOVE_BYTES = 2 * SLOT_BYTES + 120
"""An entry of the table of moves with its key, and one of the table of states."""

STATE_BITS = 32
"""Of a packed configuration: more states than memory can hold."""


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

    def __init__(
        self, model: Model, operations: Sequence[tuple[Operation, Step]], budget: Budget | None = None
    ) -> None:
        done = sorted(
            (pair for pair in operations if pair[0].ret is not None), key=lambda pair: pair[0].ret or 0
        )
        crashed = [pair for pair in operations if pair[0].ret is None]
        self.operations = [operation for operation, _ in done + crashed]
        self.done_count = len(done)
        self.model = model
        self.budget = budget or Budget(math.inf)
        self.table_bytes = 0
        """Estimate of what states, moves and `open_at` take."""
        self._state_numbers: dict[Any, int] = {}
        self._states: list[Any] = []
        self._step_numbers: dict[Step, int] = {}
        self._steps: list[Step] = []
        self._moves: dict[tuple[int, int], int] = {}
        self.step_of = [self._number_step(step) for _, step in self.budget.each(done + crashed)]
        self.observes = [step.observes for _, step in done + crashed]
        self.initial = self._number_state(model.initial)
        self.open_at: list[list[int]] = []
        """By the number of a completed operation: all that are open when it returns, itself included."""
        self.observing_at: list[Sequence[int]] = []
        """Those of `open_at` that observe."""
        self._opening = self._open_at_return([pair[0] for pair in done])
        self.crashed_classes = self._classes([pair[0] for pair in crashed])

    def prepared(self) -> Iterator[None]:
        """Fill `open_at`, with pauses; whichever search comes first does the work for both."""
        for _ in self._opening:
            yield

    def forget(self) -> None:
        """Free all but the operations: no search goes on."""
        self._state_numbers, self._states, self._moves = {}, [], {}
        self.open_at, self.observing_at = [], []
        self.table_bytes = 0

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
            self.table_bytes += sys.getsizeof(state)
            if isinstance(state, tuple):
                self.table_bytes += sum(sys.getsizeof(part) for part in state)
        return self._state_numbers[state]

    def _open_at_return(self, done: Sequence[Operation]) -> Iterator[None]:
        events = sorted(
            [(op.call, 0, i) for i, op in enumerate(done)]
            + [(op.ret or 0, 1, i) for i, op in enumerate(done)]
        )
        open_now: dict[int, None] = {}
        entries = 0
        for _, is_return, number in self.budget.each(events):
            if not is_return:
                open_now[number] = None
                continue
            numbers = sorted(open_now)
            self.open_at.append(numbers)  # in the order of returns, which is that of the numbers
            self.observing_at.append([one for one in numbers if self.observes[one]])
            del open_now[number]
            self.budget.step(len(open_now))
            self.table_bytes += 16 * len(open_now) + 2 * SLOT_BYTES
            entries += len(open_now)
            if entries > ENTRIES_PER_SLICE:
                entries = 0
                yield

    def _classes(self, crashed: Sequence[Operation]) -> list[tuple[int, list[int], int]]:
        """Equal indeterminate operations together: step, members by call time, bit mask of the members."""
        members: dict[int, list[int]] = {}
        for position in range(len(crashed)):
            members.setdefault(self.step_of[self.done_count + position], []).append(position)
        return [
            (step, group, sum(1 << p for p in self.budget.each(group))) for step, group in members.items()
        ]

    def move(self, state: int, step: int) -> int:
        found = self._moves.get((state, step))
        if found is None:
            self.budget.check()  # a model may take long over a large state
            after = self.model.move(self._states[state], self._steps[step])
            found = -1 if after is INCONSISTENT else self._number_state(after)
            self._moves[state, step] = found
            self.table_bytes += MOVE_BYTES
        return found

    def complete(self, config: Config, order: list[int]) -> Config:
        """Add every observation that fits, in sequence, and append it to `order`."""
        low, placed, crashed, state = config
        while low < self.done_count:
            progress = False
            observing = self.observing_at[low]
            self.budget.step(len(observing))
            for number in observing:
                bit = 1 << (number - low)
                if not placed & bit and self.move(state, self.step_of[number]) >= 0:
                    placed |= bit
                    order.append(number)
                    progress = True
            if not progress:
                break
            while placed & 1:
                placed >>= 1
                low += 1
        return Config(low, placed, crashed, state)

    def successors(self, config: Config) -> Iterator[tuple[int, Config]]:
        """Every operation that may come next and moves the state, completed ones first."""
        low, placed, crashed, state = config
        step_of, known_moves = self.step_of, self._moves
        self.budget.step(len(self.open_at[low]) + len(self.crashed_classes))
        for number in self.open_at[low]:
            bit = 1 << (number - low)
            if placed & bit:
                continue
            after = known_moves.get((state, step_of[number]))
            if after is None:
                after = self.move(state, step_of[number])
            if after < 0:
                continue
            if number == low:
                yield number, _lowered(low, placed | bit, crashed, after)
            else:
                yield number, Config(low, placed | bit, crashed, after)
        deadline = self.operations[low].ret or 0
        for step, members, mask in self.crashed_classes:
            used = (crashed & mask).bit_count()
            if used == len(members):
                continue
            position = members[used]
            if self.operations[self.done_count + position].call > deadline:
                continue
            after = known_moves.get((state, step))
            if after is None:
                after = self.move(state, step)
            if after >= 0 and after != state:
                yield self.done_count + position, Config(low, placed, crashed | (1 << position), after)


def _lowered(low: int, placed: int, crashed: int, state: int) -> Config:
    while placed & 1:
        placed >>= 1
        low += 1
    return Config(low, placed, crashed, state)


class Memo:
    """The configurations that a search has seen, each packed into one number: a third of the memory of
    tuples, freed in a fraction of the time, and nothing for the collector to walk."""

    def __init__(self, problem: Problem) -> None:
        self.held_bytes = 0
        """Estimate of what it takes."""
        self._seen: set[int] = set()
        self._low_bits = problem.done_count.bit_length()
        self._crashed_bits = len(problem.operations) - problem.done_count

    def add(self, config: Config) -> int | None:
        """The packed form of a configuration that is new, else None."""
        low, placed, crashed, state = config
        packed = (((placed << self._crashed_bits | crashed) << self._low_bits | low) << STATE_BITS) | state
        if packed in self._seen:
            return None
        self._seen.add(packed)
        self.held_bytes += sys.getsizeof(packed) + SLOT_BYTES
        return packed

    def unpacked(self, packed: int) -> Config:
        state = packed & (1 << STATE_BITS) - 1
        packed >>= STATE_BITS
        low = packed & (1 << self._low_bits) - 1
        packed >>= self._low_bits
        return Config(low, packed >> self._crashed_bits, packed & (1 << self._crashed_bits) - 1, state)

    def keep_only(self, level: Sequence[int]) -> None:
        """Forget all but these."""
        self._seen = set(level)
        self.held_bytes = sum(map(sys.getsizeof, level)) + SLOT_BYTES * len(level)


def depth_first(problem: Problem, memo: Memo | None = None) -> Iterator[Result | None]:
    """Yields None once per slice, then a Result."""
    seen = memo or Memo(problem)
    yield from problem.prepared()
    order: list[int] = []
    root = problem.complete(Config(0, 0, 0, problem.initial), order)
    best_low, best_order = root.low, list(order)
    seen.add(root)
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
        if seen.add(config) is not None:
            if config.low == problem.done_count:
                yield Result(True, order, -1)
                return
            if config.low > best_low:
                best_low, best_order = config.low, list(order)
            stack.append((problem.successors(config), len(order)))
        visits += 1
        if visits % VISITS_PER_SLICE == 0:
            yield None
    yield Result(False, best_order, best_low)


def breadth_first(problem: Problem, memo: Memo | None = None) -> Iterator[Result | None]:
    """All configurations that survive each return, return by return. Yields as `depth_first` does.

    Keeps no orders, so its Result names the operation that cannot be placed and no prefix.
    """
    seen = memo or Memo(problem)
    yield from problem.prepared()
    root = seen.add(problem.complete(Config(0, 0, 0, problem.initial), []))
    level = [] if root is None else [root]
    visits = 0
    for target in range(problem.done_count):
        seen.keep_only(level)
        passed: list[int] = []
        pending = level
        while pending:
            packed = pending.pop()
            config = seen.unpacked(packed)
            if config.low > target:
                passed.append(packed)
                problem.budget.step()
                continue
            for _, after in problem.successors(config):
                added = seen.add(problem.complete(after, []))
                if added is not None:
                    pending.append(added)
                visits += 1
                if visits % VISITS_PER_SLICE == 0:
                    yield None
        if not passed:
            yield Result(False, (), target)
            return
        level = passed
    yield Result(True, (), -1)

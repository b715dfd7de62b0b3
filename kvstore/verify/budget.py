"""What a check may use: CPU seconds, and memory.

The unit is CPU time and not the time on the wall, so that a verdict does not depend on what else the machine
does meanwhile. A budget cannot interrupt a loop: every loop whose length comes from the history counts its
steps here, and an exception leaves it when the budget is spent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from kvstore.verify.operation_history import Verdict, VerdictKind

BUDGET_S_DEFAULT = 60.0
"""CPU seconds that a check may take before its verdict is `unknown`."""

STEPS_PER_READING = 64
"""Steps between two readings of the clock. A step takes up to some microseconds and a reading a third of one:
this costs less than a hundredth, and overruns the budget by less than a thousandth of a second."""

MEMORY_BYTES_MAX = 512 << 20
"""What one check may build beside the history, by its own estimate. A run is judged on the machine that runs
the members, which may have 2 GiB in all; a search without an end reaches this in some minutes."""

Item = TypeVar("Item")


class BoundMetError(Exception):
    """A check met one of its bounds before it had decided; the text says which."""


class Budget:
    """The CPU seconds of one check, from its construction on, whichever functions they are spent in; and what
    those functions may hold, which they count themselves."""

    def __init__(
        self,
        cpu_s: float,
        *,
        memory_bytes: int = MEMORY_BYTES_MAX,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.cpu_s = cpu_s
        self.memory_bytes = memory_bytes
        self._clock = clock
        self._end_s = clock() + cpu_s
        self._steps = 0

    def left_s(self) -> float:
        """CPU seconds left; zero or less when it is spent."""
        return self._end_s - self._clock()

    def check(self) -> None:
        """Raise BoundMetError if the budget is spent."""
        if self.left_s() <= 0:
            raise BoundMetError(f"the budget of {self.cpu_s:g} CPU seconds is spent")

    def step(self, count: int = 1) -> None:
        """Count steps of a loop, and now and then check. Raises BoundMetError."""
        self._steps += count
        if self._steps >= STEPS_PER_READING:
            self._steps = 0
            self.check()

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each counted as a step. Raises BoundMetError between two of them."""
        for item in items:
            self.step()
            yield item

    def memory_bound(self) -> BoundMetError:
        """The error for a check that holds more than `memory_bytes`."""
        return BoundMetError(f"the memory bound of {self.memory_bytes / 2**20:g} MiB is met")


def undecided(operations: int, *why: str) -> Verdict:
    """The verdict of a check that met a bound, or that had nothing to judge."""
    return Verdict(VerdictKind.UNKNOWN, operations, why)

"""An asyncio event loop whose clock advances only when no callback is ready.

Timers fire in order of their time, at once: a minute of timeouts passes in milliseconds, and two runs
of one seeded program take the same steps. For programs that live in one thread and whose partners are
in-memory fakes; threads and sockets work, but then the order of events is not repeatable.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopStalled(RuntimeError):
    """Every task waits and no timer is set: the program under test is stuck."""


class _VirtualSelector(selectors.SelectSelector):
    """Advances the clock by `timeout` instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if timeout is None:
            raise LoopStalled("every task waits and no timer is set")
        self.now_s += timeout
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop that begins at time 0.0 and never sleeps."""

    def __init__(self) -> None:
        self._selector_clock = _VirtualSelector()
        super().__init__(self._selector_clock)

    def time(self) -> float:
        return self._selector_clock.now_s


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on a fresh virtual-time loop and close it; the counterpart of `asyncio.run`."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)

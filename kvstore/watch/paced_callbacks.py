"""Callbacks spread over loop iterations.

An event loop runs every planned callback before it polls its sockets again. So a change with ten thousand
watchers would delay a heartbeat until the last of them had its events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

CALLBACKS_PER_ITERATION_MAX = 100
"""About 5 ms of watch streams."""

Callback = Callable[[], None]


class PacedCallbacks:
    """Runs callbacks soon and in order, a bounded number in each loop iteration."""

    def __init__(self, call_soon: Callable[[Callback], None]) -> None:
        """`call_soon` runs a callback in the next loop iteration."""
        self._call_soon = call_soon
        self._waiting: deque[Callback] = deque()
        """For later iterations, in order. Each stands for a caller, which bounds what it adds."""
        self._planned = 0
        """Callbacks of the next iteration, at most CALLBACKS_PER_ITERATION_MAX."""

    def soon(self, callback: Callback) -> None:
        """Run it in the next loop iteration, or in the first later one with capacity."""
        if self._planned >= CALLBACKS_PER_ITERATION_MAX:
            self._waiting.append(callback)
            return
        if not self._planned:
            self._call_soon(self._next_iteration)
        self._planned += 1
        self._call_soon(callback)

    def _next_iteration(self) -> None:
        """Runs before the callbacks planned for this iteration: plan the next."""
        self._planned = 0
        for _ in range(min(len(self._waiting), CALLBACKS_PER_ITERATION_MAX)):
            self.soon(self._waiting.popleft())

"""Spreading work over turns of the loop, so that much of it delays nobody for long.

Callbacks given to a loop all run before it looks at its sockets again. A change that ten thousand
callers watch would so keep a heartbeat waiting until the last of them is told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

CALLBACKS_PER_ITERATION_MAX = 100
"""Callers told in one turn of the loop: about 5 ms."""

Callback = Callable[[], None]


class LoopIterations:
    """Has callbacks run soon, in order, so many in a turn."""

    def __init__(self, call_soon: Callable[[Callback], None]) -> None:
        """`call_soon` has something done in the next turn of the loop."""
        self._call_soon = call_soon
        self._waiting: deque[Callback] = deque()
        """For later turns, in order. Each stands for a caller, who bounds what it adds."""
        self._planned = 0
        """Callbacks that run in the next turn, at most CALLBACKS_PER_ITERATION_MAX."""

    def soon(self, callback: Callback) -> None:
        """Run it in the next turn, or in the first after it that has room."""
        if self._planned >= CALLBACKS_PER_ITERATION_MAX:
            self._waiting.append(callback)
            return
        if not self._planned:
            self._call_soon(self._turned)
        self._planned += 1
        self._call_soon(callback)

    def _turned(self) -> None:
        """The turn of those that were planned has come: plan the next."""
        self._planned = 0
        for _ in range(min(len(self._waiting), CALLBACKS_PER_ITERATION_MAX)):
            self.soon(self._waiting.popleft())

"""Ends streams that required a leader once there has been none for a while.

As etcd does: a stream with `hasleader` in its metadata fails after three election timeouts without a leader,
so that its client tries another member.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class LeaderLoss:
    """Calls the registered callbacks when no leader was known for `patience_s`."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._callbacks: dict[Callable[[], None], None] = {}
        self._timer: asyncio.TimerHandle | None = None
        """Set while no leader is known."""

    def add(self, callback: Callable[[], None]) -> None:
        self._callbacks[callback] = None

    def remove(self, callback: Callable[[], None]) -> None:
        """Harmless after the callback was called."""
        self._callbacks.pop(callback, None)

    def seen(self, leader: int) -> None:
        """The leader changed; 0 while none is known."""
        if leader and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif not leader and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._patience_s, self._lost)

    def _lost(self) -> None:
        self._timer = None
        callbacks, self._callbacks = self._callbacks, {}
        for callback in callbacks:
            callback()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._callbacks.clear()

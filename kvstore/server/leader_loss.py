"""Telling long calls that asked for a leader when there has been none for a while.

A call that lasts may outlive the quorum it needs; etcd ends those that carry `hasleader` after three
election timeouts without a leader, so that their clients try another member.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class LeaderLoss:
    """Waits for the leader to come back, and tells those who registered when it does not."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._callbacks: dict[Callable[[], None], None] = {}
        self._timer: asyncio.TimerHandle | None = None
        """Set while no leader is known."""

    def add(self, callback: Callable[[], None]) -> None:
        """Call back once when the leader is lost for too long."""
        self._callbacks[callback] = None

    def remove(self, callback: Callable[[], None]) -> None:
        """Harmless when it was called already."""
        self._callbacks.pop(callback, None)

    def seen(self, leader: int) -> None:
        """The leader of the moment, 0 while none is known."""
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
        """Nobody is told any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._callbacks.clear()

"""When to send followers a commit index that no append has carried yet.

The next append carries it for nothing, and under load one leaves within milliseconds. So a broadcast of
its own waits a moment; only a member whose own clients wait for the index receives it at once.
"""

from __future__ import annotations

import asyncio

from raft.node.replica import Replica

COMMIT_BROADCAST_DELAY_S = 0.005
"""How long a commit index may stay unsent. Longer than the round of a lone writer, whose next append then
carries it; far below what a reader of a follower's own state would see."""


class CommitBroadcast:
    """At most one planned broadcast."""

    def __init__(self, replica: Replica) -> None:
        self._core = replica.core
        self._inbox = replica.inbox
        self._timer: asyncio.TimerHandle | None = None

    def plan_if_due(self) -> None:
        """Called after every Ready."""
        if self._timer is None and self._core.commit_broadcast_due:
            self._timer = self._inbox.loop.call_later(COMMIT_BROADCAST_DELAY_S, self._send)

    def _send(self) -> None:
        self._timer = None
        self._inbox.post(self._core.broadcast_commit)

"""When to tell followers of a moved commit index that no append has told them.

The next append tells it for nothing, and under load one leaves within milliseconds. So a notice of its
own waits a moment; only a member whose own clients wait for the index is told at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from raft.core import RaftCore

COMMIT_BROADCAST_DELAY_S = 0.005
"""How long a commit may go untold. Longer than the round of a lone writer, whose next append then
carries it; far below what a reader of a follower's own state would notice."""


class CommitBroadcast:
    """At most one planned notice."""

    def __init__(
        self,
        core: RaftCore,
        loop: asyncio.AbstractEventLoop,
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self._core = core
        self._loop = loop
        self._post = post
        """Has an action done by the core's owner, and nothing once the member stops."""
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Plan a notice if one is due. Called after every Ready."""
        if self._timer is None and self._core.commit_broadcast_due:
            self._timer = self._loop.call_later(COMMIT_BROADCAST_DELAY_S, self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._post(self._core.broadcast_commit)

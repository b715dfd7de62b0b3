"""Compacting by itself: `--auto-compaction-mode` and `--auto-compaction-retention`.

Every member keeps the account, so that a new leader knows the past; only the leader proposes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from kvstore.errors import Compacted, KVError
from kvstore.server.compacting import compact
from kvstore.server.local_member import LocalMember
from kvstore.server.retention import make_policy

logger = logging.getLogger("kvstore.server")


class AutoCompaction:
    """Asks a policy in time and proposes what it says."""

    def __init__(
        self, member: LocalMember, mode: str, retention: float, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._member = member
        self._loop = loop
        self._mode = mode
        self._policy = make_policy(mode, retention, loop.time(), member.engine.revision)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> Callable[[], None]:
        """Begin; returns what ends it."""
        self._timer = self._loop.call_later(self._policy.pause_seconds, self._tick)
        return self._stop

    def _stop(self) -> None:
        assert self._timer is not None, "stopped before it began"
        self._timer.cancel()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._policy.pause_seconds, self._tick)
        member = self._member
        leading = member.node.leader == member.member_id
        at = self._policy.due(self._loop.time(), member.engine.revision, leading)
        if at:
            logger.info("starting auto %s compaction at revision %d", self._mode, at)
            compact(member, at, physical=False, on_result=partial(self._completed, at))

    def _completed(self, at: int, outcome: Any) -> None:
        if isinstance(outcome, KVError) and not isinstance(outcome, Compacted):
            logger.warning("failed auto %s compaction at revision %d: %s", self._mode, at, outcome)
            return
        logger.info("completed auto %s compaction at revision %d", self._mode, at)
        self._policy.done(self._loop.time(), at)

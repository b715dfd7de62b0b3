"""Auto compaction: `--auto-compaction-mode` and `--auto-compaction-retention`.

The policies are those of etcd 3.5 (`server/etcdserver/api/v3compactor`). Every member samples revisions, so
that a new leader knows the past; only the leader proposes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from kvstore.configuration.member_config import REVISION
from kvstore.engine import CompactResult, Outcome
from kvstore.errors import Compacted, KVError
from kvstore.replica.replica import Replica
from kvstore.server.mvcc_compaction import compact

logger = logging.getLogger("kvstore.server")

INTERVAL_SECONDS_MAX = 3600.0
"""The longest interval between periodic compactions, whatever the retention: etcd's figure."""
SAMPLES_PER_INTERVAL = 10
"""Revisions sampled per interval, and attempts after a failure: etcd's figure."""
REVISION_INTERVAL_SECONDS = 300.0
"""Between two checks of the revision mode: etcd's figure."""


class Policy(Protocol):
    """When to compact, and at which revision. Pure: time is an argument."""

    @property
    def pause_seconds(self) -> float:
        """Between two calls of `due`."""

    def due(self, now: float, revision: int, leading: bool) -> int:
        """The revision to compact at, or 0. `now` in seconds of a clock that never goes back."""

    def done(self, now: float, at: int) -> None:
        """The compaction at `at` succeeded."""


class Periodic:
    """Keep the history of the last `retention` seconds."""

    def __init__(self, retention_seconds: float, now: float, revision: int) -> None:
        self._retention = retention_seconds
        self._interval = min(retention_seconds, INTERVAL_SECONDS_MAX)
        self.pause_seconds = self._interval / SAMPLES_PER_INTERVAL
        samples = int(retention_seconds / self.pause_seconds) + 1
        self._revisions = deque([revision], maxlen=samples)
        """One sample per pause; the first is about `retention` old once the deque is full."""
        self._wait = retention_seconds
        """From the last success to the next compaction; the first one waits for a whole retention."""
        self._succeeded_at = now
        self._compacted_at = 0

    def due(self, now: float, revision: int, leading: bool) -> int:
        oldest = self._revisions[0]
        self._revisions.append(revision)
        if not leading or now - self._succeeded_at < self._wait or oldest == self._compacted_at:
            return 0
        self._wait = self._interval
        return oldest

    def done(self, now: float, at: int) -> None:
        self._compacted_at, self._succeeded_at = at, now


class ByRevision:
    """Keep the last `retention` revisions."""

    pause_seconds = REVISION_INTERVAL_SECONDS

    def __init__(self, retention: int) -> None:
        self._retention = retention
        self._compacted_at = 0

    def due(self, now: float, revision: int, leading: bool) -> int:
        wanted = revision - self._retention
        return wanted if leading and wanted > 0 and wanted != self._compacted_at else 0

    def done(self, now: float, at: int) -> None:
        self._compacted_at = at


def make_policy(mode: str, retention: float, now: float, revision: int) -> Policy:
    """The policy of a mode; `retention` as `parse_retention` gives it, not 0."""
    return ByRevision(int(retention)) if mode == REVISION else Periodic(retention, now, revision)


class AutoCompaction:
    """Consults a policy at its intervals, and proposes what is due."""

    def __init__(
        self, replica: Replica, mode: str, retention: float, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._replica = replica
        self._loop = loop
        self._mode = mode
        self._policy = make_policy(mode, retention, loop.time(), replica.engine.revision)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> Callable[[], None]:
        """Begin; returns the function that stops it."""
        self._timer = self._loop.call_later(self._policy.pause_seconds, self._tick)
        return self._stop

    def _stop(self) -> None:
        assert self._timer is not None, "stopped before it began"
        self._timer.cancel()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._policy.pause_seconds, self._tick)
        replica = self._replica
        leading = replica.node.leader == replica.member_id
        at = self._policy.due(self._loop.time(), replica.engine.revision, leading)
        if at:
            logger.info("starting auto %s compaction at revision %d", self._mode, at)
            compact(replica, at, physical=False, on_result=partial(self._completed, at))

    def _completed(self, at: int, outcome: Outcome[CompactResult]) -> None:
        if isinstance(outcome, KVError) and not isinstance(outcome, Compacted):
            logger.warning("failed auto %s compaction at revision %d: %s", self._mode, at, outcome)
            return
        logger.info("completed auto %s compaction at revision %d", self._mode, at)
        self._policy.done(self._loop.time(), at)

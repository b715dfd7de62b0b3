"""How much history auto compaction keeps, and when it compacts: etcd's rules, without a clock.

The rules are those of etcd 3.5 (`server/embed/etcd.go`, `server/etcdserver/api/v3compactor`).
"""

from __future__ import annotations

import re
from collections import deque
from typing import Protocol

from kvstore.server.settings import duration_seconds

PERIODIC, REVISION = "periodic", "revision"

INTERVAL_SECONDS_MAX = 3600.0
"""How often a periodic compaction runs at most, whatever the retention: etcd's figure."""
SAMPLES_PER_INTERVAL = 10
"""Revisions noted per interval, and attempts after a failure: etcd's figure."""
REVISION_INTERVAL_SECONDS = 300.0
"""How often the revision mode looks: etcd's figure."""
RETENTION_SECONDS_MAX = 10 * 365 * 24 * 3600.0
"""Ten years: at most 876,000 samples are kept."""


def parse_retention(mode: str, text: str) -> float | int:
    """Seconds for the periodic mode, revisions for the other; 0 turns it off.

    A bare number is hours or revisions, anything else a duration as Go writes it. Raises ValueError
    with etcd's words.
    """
    if re.fullmatch(r"\+?\d+", text, re.ASCII):
        if not mode:
            raise ValueError("--auto-compaction-mode is undefined")
        count = int(text)
        seconds = count * 3600.0
    else:
        seconds = _parse_duration(text)
        count = round(seconds * 1e9)  # as in etcd, whose retention is one number of nanoseconds
    if mode == REVISION:
        return count
    if seconds > RETENTION_SECONDS_MAX:
        raise ValueError(f"error parsing CompactionRetention: {text} is more than ten years")
    return seconds


def _parse_duration(text: str) -> float:
    if not re.fullmatch(r"\+?((\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h))+", text, re.ASCII):
        raise ValueError(f'error parsing CompactionRetention: time: invalid duration "{text}"')
    return duration_seconds(text)


class Policy(Protocol):
    """When to compact, and at which revision. Pure: time comes in."""

    @property
    def pause_seconds(self) -> float:
        """Between two calls of `due`."""

    def due(self, now: float, revision: int, leading: bool) -> int:
        """The revision to compact at, or 0. `now` in seconds of a clock that never goes back."""

    def done(self, now: float, at: int) -> None:
        """History below `at` is gone."""


class Periodic:
    """Keep the history of the last `retention` seconds."""

    def __init__(self, retention_seconds: float, now: float, revision: int) -> None:
        self._retention = retention_seconds
        self._interval = min(retention_seconds, INTERVAL_SECONDS_MAX)
        self.pause_seconds = self._interval / SAMPLES_PER_INTERVAL
        samples = int(retention_seconds / self.pause_seconds) + 1
        self._revisions = deque([revision], maxlen=samples)
        """Noted once per pause; the first is from about `retention` ago once it is full."""
        self._wait = retention_seconds
        """Since the last success; the first compaction waits for a whole retention."""
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

"""When to forget the past: what the state file holds durably and every member's log holds too.

Compacting only up to what all members hold strands nobody: whoever leads next holds those entries as
well, so no follower can ever ask for them. While a member is down the log is kept for it.

One image at a time is the candidate, so that the log's new base names the very index, term and
configuration of an image that was durable.
"""

from __future__ import annotations

from raft.core import RaftCore
from raft.core.types import SnapshotMeta
from raft.storage.protocol import LogWriter, StateMark

COMPACTION_ENTRIES_MIN = 1024
"""Entries worth a compaction: a mark in the log per thousand batches costs nothing, and at start so few
entries are read again in milliseconds."""


class Compaction:
    """The next base of the log, from candidate to forgotten."""

    def __init__(self, core: RaftCore, log: LogWriter) -> None:
        self._core = core
        self._log = log
        self._candidate: StateMark | None = None
        """An image the state file holds durably. Invariant: its index is above the log's base."""

    def consider(self, durable: StateMark) -> None:
        """The state file holds `durable`: compact the log as far as that is safe."""
        core = self._core
        if self._candidate is None:
            if durable.index - core.first_index < COMPACTION_ENTRIES_MIN:
                return
            self._candidate = durable
        candidate = self._candidate
        # Work is applied in slices and reported whole: an image can be ahead of what the core calls applied.
        if candidate.index <= min(core.held_by_all, core.applied):
            core.compact(candidate.index)
            self._log.compact(SnapshotMeta(candidate.index, candidate.term, candidate.conf))
            self._candidate = None

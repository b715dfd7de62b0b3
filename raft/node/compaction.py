"""Log compaction: up to what the backend holds durably and no member will need from the log again.

What every member's log holds can go at once. For a member that lags, a bounded tail is kept, so that a
short absence costs it a few entries and not a whole snapshot; one that stays away longer receives a snapshot
(`snapshot_sender`). While a snapshot is being sent the log is kept behind it, within a bound of its own, so
that its receiver can go on from there.

The log's new base is always an index at which the backend was durable, with its term and configuration.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from raft.core import RaftCore
from raft.core.types import SnapshotMeta
from raft.node.node_config import NodeConfig
from raft.storage.storage_protocol import Checkpoint, LogWriter

TAIL_BYTES_MAX = 64 << 20
"""Bytes of the tail kept for members that lag: about the size of a snapshot at which sending that instead
costs no more. The log is in memory and is read whole at a start, so the bound holds for both."""

HELD_BYTES_MAX = 256 << 20
"""Bytes kept behind a snapshot being sent. A receiver that is slower than this much writing needs a newer
snapshot anyway."""

ENTRY_OVERHEAD_BYTES = 200
"""What an entry costs in memory besides its data."""


class _Mark(NamedTuple):
    """A checkpoint that was durable once."""

    mark: Checkpoint
    position: int
    """Bytes of all entries applied up to it, since start."""


class Compaction:
    """Chooses the next base of the log."""

    def __init__(
        self, core: RaftCore, log: LogWriter, config: NodeConfig, held_index: Callable[[], int | None]
    ) -> None:
        self._core = core
        self._log = log
        self._config = config
        self._held_index = held_index
        """The log is to be kept after this index for a snapshot being sent; None for none."""
        self._marks: deque[_Mark] = deque()
        """Oldest first, above the log's base, some entries apart: see `_spacing`."""
        self._spacing = max(1, config.compaction_entries // 4)

    def consider(self, durable: Checkpoint, position: int) -> None:
        """The backend holds `durable`, at `position` of all bytes applied: compact as far as is safe."""
        core, marks = self._core, self._marks
        while marks and marks[0].mark.index < core.first_index:
            marks.popleft()
        newest = _Mark(durable, position + durable.index * ENTRY_OVERHEAD_BYTES)
        if durable.index >= (marks[-1].mark.index if marks else core.first_index - 1) + self._spacing:
            marks.append(newest)
        base = self._choose(newest)
        if base is None:
            return
        core.compact(base.index)
        self._log.compact(SnapshotMeta(base.index, base.term, base.conf))

    def _choose(self, newest: _Mark) -> Checkpoint | None:
        core, config = self._core, self._config
        # Work is applied in slices and reported whole: a checkpoint can be ahead of the core's applied index.
        limit = core.applied
        held = self._held_index()
        chosen: _Mark | None = None
        for candidate in (*self._marks, newest):
            index = candidate.mark.index
            behind = newest.position - candidate.position
            tail = newest.mark.index - index >= config.catchup_entries or behind >= TAIL_BYTES_MAX
            free = held is None or index <= held or behind >= HELD_BYTES_MAX
            if index <= limit and free and (tail or index <= core.held_by_all):
                chosen = candidate
        if chosen is None:
            return None
        enough = chosen.mark.index - (core.first_index - 1) >= config.compaction_entries
        first = self._marks[0] if self._marks else newest
        large = newest.position - first.position >= TAIL_BYTES_MAX and chosen.mark.index >= core.first_index
        return chosen.mark if enough or large else None

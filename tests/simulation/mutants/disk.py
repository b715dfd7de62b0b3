"""Mutants between the node and the disk: what is persisted, when, and how recovery treats corruption."""

from __future__ import annotations

from typing import Any

from raft.node.checkpointer import Checkpointer
from raft.node.compaction import Compaction
from raft.storage import log_recovery, records
from raft.storage.log_recovery import LogContents
from raft.storage.memory_files import MemoryFile
from raft.storage.snapshot_store import IncomingSnapshot, SnapshotStore
from raft.storage.storage_protocol import Checkpoint
from raft.storage.wal import SEGMENT_BYTES_MIN
from tests.simulation.mutants.mutant import Mutant
from tests.simulation.mutants.patches import Patches


def _entries_raise_no_term(p: Patches) -> None:
    """Entries reach the disk before the hard state of their term; a start that finds only them must
    take the term from them. This one does not, and has none of the core's own doubts."""
    finish = log_recovery._finish

    def forgetful(contents: LogContents, directory: str) -> None:
        found = contents.hard_state
        finish(contents, directory)
        contents.hard_state = contents.hard_state._replace(term=found.term, vote=found.vote)

    p.attribute(log_recovery, "_finish", forgetful)


def _log_compacted_before_the_snapshot(p: Patches) -> None:
    consider = Compaction.consider

    def hasty(self: Compaction, durable: Checkpoint, position: int) -> None:
        core = self._core
        term = core._state.log.term_at(core.applied)
        consider(self, Checkpoint(core.applied, term or 0, core.conf), position)

    p.attribute(Compaction, "consider", hasty)


def _snapshot_named_before_it_is_durable(p: Patches) -> None:
    """The log names a backend whose directory entry a power cut may lose."""

    def finish(self: IncomingSnapshot, sha256: bytes) -> Checkpoint:
        mark = self._store._open_backend.adopt(self._path, self._store._identity)
        self.close()
        return mark

    def unlink(self: SnapshotStore, path: str) -> None:
        if self._files.exists(path):
            self._files.unlink(path)

    p.attribute(IncomingSnapshot, "_finish", finish)
    p.attribute(SnapshotStore, "_unlink", unlink)


def _mark_behind_its_rows(p: Patches) -> None:
    """The backend's applied index is one below the newest entry it holds."""
    mark = Checkpointer._mark

    def late(self: Checkpointer) -> Checkpoint:
        now = mark(self)
        return now._replace(index=max(now.index - 1, self.durable.index))

    p.attribute(Checkpointer, "_mark", late)


def _failed_sync_tried_again(p: Patches) -> None:
    datasync = MemoryFile.datasync

    def hopeful(self: MemoryFile) -> None:
        try:
            datasync(self)
        except OSError:
            return

    p.attribute(MemoryFile, "datasync", hopeful)


def _damage_ends_the_log(p: Patches) -> None:
    """Whatever does not check out is taken for the end, and written over."""
    any_byte = log_recovery.any_byte

    def blind(data: bytes, start: int) -> bool:
        return start == records.SECTOR_BYTES and any_byte(data, start)

    p.attribute(log_recovery, "any_byte", blind)


def _damage_taken_for_a_torn_tail(p: Patches) -> None:
    def is_torn(*arguments: Any) -> bool:
        return True

    p.everywhere(records.is_torn, is_torn)


MUTANTS = (
    Mutant(
        19,
        "hard state saved after entries, crash between",
        _entries_raise_no_term,
        level="node",
        classes=("comeback",),
        settings={
            "padding": 2000,
            "segment_bytes": SEGMENT_BYTES_MIN,
            "clients": 16,
            "think_s": 0.05,
            "config": {"gather_ms": 100},
        },
    ),
    Mutant(
        21,
        "log compacted before the backend is durable",
        _log_compacted_before_the_snapshot,
        level="node",
        classes=("crash", "no-space"),
    ),
    Mutant(
        20,
        "snapshot renamed before its data is synced",
        _snapshot_named_before_it_is_durable,
        level="node",
        classes=("crash", "isolate-leader"),
        features=("snapshots",),
    ),
    Mutant(
        50,
        "applied twice after a restart: index not atomic with state",
        _mark_behind_its_rows,
        level="node",
        classes=("crash",),
    ),
    Mutant(
        58,
        "fsync error swallowed",
        _failed_sync_tried_again,
        level="node",
        classes=("io-error",),
    ),
    Mutant(
        59,
        "checksum failure treated as the end of the log",
        _damage_ends_the_log,
        level="node",
        classes=("rot",),
    ),
    Mutant(
        66,
        "tail that is not torn truncated silently",
        _damage_taken_for_a_torn_tail,
        level="node",
        classes=("rot",),
    ),
)

"""The node's view of durability: the log's writer and the backend.

Rules of this package: nothing here knows about keys. The log carries the guarantee (a response leaves only
after its work is durable); the backend is a checkpoint that the log can always bring up to date. A failed
write or sync of the log has an unknown outcome: the process stops; it never retries and never answers from
memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from raft.core.ready import AppendWork
from raft.core.types import ConfState, Entry, HardState, SnapshotMeta


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The member that this data directory belongs to; written once, checked at every start."""

    cluster_id: int
    member_id: int
    disk_id: int
    """64 random bits made with the directory: a replica that lost its data comes back with another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """The log as found at start."""

    identity: Identity
    hard_state: HardState
    snapshot: SnapshotMeta
    """Base of the log: the bootstrap configuration at index 0, or the newest snapshot mark."""
    entries: Sequence[Entry]
    """Gap-free from `snapshot.index + 1`."""
    tail_truncated: bool
    """A torn tail was truncated: the member must not vote or acknowledge until a leader has confirmed the
    log past `snapshot.index + len(entries)`."""
    vote_eligible: bool
    """This replica once passed the identity check, and the log records it."""
    peer_disks: tuple[tuple[int, int], ...] = ()
    """(member, disk id) of every peer ever recorded, by member: a peer with another disk id is refused."""


SYNC_BOUNDS_S = tuple(0.001 * 2**step for step in range(14))
"""Upper bounds of the buckets for disk durations: 1 ms to 8.192 s, doubling, as in etcd."""


class WriterStatistics(NamedTuple):
    """Counters since start."""

    syncs: int
    syncs_inline: int
    appends: int
    bytes_written: int
    sync_seconds: float = 0.0
    """Total time of all syncs."""
    sync_buckets: tuple[int, ...] = ()
    """Syncs by duration: one count per bound of SYNC_BOUNDS_S, one for longer ones; empty if not timed."""


class LogWriter(Protocol):
    """Makes append work durable, first in, first out, one sync per group.

    `submit` is called from the event loop and never blocks on the disk except under the inline
    rule. `done(work)` is called on the loop, in order, after the work is durable. A disk error
    calls the `fatal` hook given at construction instead; nothing later completes.
    """

    def submit(self, work: AppendWork, done: Callable[[AppendWork], None]) -> None: ...

    def record_vote_eligible(self) -> None:
        """Record that this replica passed the identity check (queued like any append)."""

    def record_peer_disk(self, member_id: int, disk_id: int, done: Callable[[], None]) -> None:
        """Record a peer's disk id; `done` runs once that is durable."""

    def compact(self, snapshot: SnapshotMeta) -> None:
        """Drop entries up to `snapshot.index`, which the backend already holds durably."""

    def stalled_seconds(self) -> float:
        """Age of the sync in progress, 0.0 when none is."""

    def statistics(self) -> WriterStatistics: ...

    async def close(self) -> None:
        """Complete all submitted work, then close the files."""


class Checkpoint(NamedTuple):
    """The prefix of the log that a backend contains."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which has no caller
    term: int
    conf: ConfState


Row = tuple[bytes, bytes | None]
"""One change of the backend: key and new value, or None for a deletion."""


class Backend(Protocol):
    """An ordered, durable map of bytes: always the state at exactly one log index."""

    async def mark(self) -> Checkpoint:
        """The durable checkpoint; index 0 in a new file."""

    def copy_to(self, path: str, wanted: Callable[[], bool]) -> Checkpoint:
        """Copy the durable state into a new file at `path`; return its checkpoint. The bytes are durable on
        return, the name is not. Blocks, on any thread, while commits continue; one copy at a time.

        Polls `wanted` on that thread and stops once it returns False. Raises BackendFull, or BackendFailed,
        also when it stopped.
        """

    async def commit(self, mark: Checkpoint, rows: Sequence[Row]) -> None:
        """Apply all rows and move to `mark`, atomically and durably. `mark.index` must grow.

        Raises BackendFull when the disk is full: the durable state is then unchanged.
        """

    def scan(self, low: bytes, high: bytes | None) -> AsyncIterator[Sequence[tuple[bytes, bytes]]]:
        """Rows with low <= key < high (None: to the end) in key order, in chunks."""

    def size_bytes(self) -> int:
        """Size of the file on disk, for display."""

    async def close(self) -> None: ...

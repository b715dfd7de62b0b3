"""What durable means, as the driver sees it: the log's writer and the state file.

Rules of this room: nothing here knows about keys. The log is the promise (a response leaves
only after its work is durable); the state file is a written-behind image that the log can
always bring up to date. A failed write or sync of the log is an unknown outcome: the process
stops, it never retries and never answers from memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from raft.core.ready import AppendWork
from raft.core.types import ConfState, Entry, HardState, SnapshotMeta


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this data directory belongs to; written once, checked at every start."""

    cluster_id: int
    member_id: int
    disk_id: int
    """64 random bits made with the directory: tells a fresh disk from the old one."""


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
    """A torn tail was cut: vote and acknowledge nothing until a leader has confirmed the log
    past `snapshot.index + len(entries)`."""
    vote_eligible: bool
    """The fresh-disk check was once passed and recorded; False on a disk never admitted."""
    peer_disks: tuple[tuple[int, int], ...] = ()
    """(member, disk id) of every peer ever recorded, by member: who speaks from another disk is refused."""


SYNC_BOUNDS_S = tuple(0.001 * 2**step for step in range(14))
"""Upper bounds in which durations on the disk are counted: 1 ms to 8.192 s, doubling, as etcd does."""


class WriterStatistics(NamedTuple):
    """Counters since start."""

    syncs: int
    syncs_inline: int
    appends: int
    bytes_written: int
    sync_seconds: float = 0.0
    """Time spent in all syncs together."""
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
        """Durably note that this disk passed the fresh-disk check (queued like any append)."""

    def record_peer_disk(self, member_id: int, disk_id: int, done: Callable[[], None]) -> None:
        """Durably note the disk a peer speaks from; `done` once it is on disk."""

    def compact(self, snapshot: SnapshotMeta) -> None:
        """Forget entries up to `snapshot.index`, which the state file already holds durably."""

    def stalled_seconds(self) -> float:
        """Age of the sync in progress, 0.0 when none is."""

    def statistics(self) -> WriterStatistics: ...

    async def close(self) -> None:
        """Finish what was submitted, then close the files."""


class Checkpoint(NamedTuple):
    """Which prefix of the log a state image contains."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    term: int
    conf: ConfState


Row = tuple[bytes, bytes | None]
"""One change of the image: key and new value, or None for a deletion."""


class Backend(Protocol):
    """An ordered, durable map of bytes that always equals the state at exactly one log index."""

    async def mark(self) -> Checkpoint:
        """The durable index; index 0 on a fresh file."""

    def copy_to(self, path: str, wanted: Callable[[], bool]) -> Checkpoint:
        """Copy the durable image into a new file at `path`; its mark. The bytes are durable on return, the
        name is not. Blocks, on any thread, while commits go on; one copy at a time.

        Asks `wanted` now and then, on that thread, and gives up when the copy is not wanted any more.
        Raises BackendFull or BackendFailed, which also stands for having given up.
        """

    async def commit(self, mark: Checkpoint, rows: Sequence[Row]) -> None:
        """Apply all rows and move to `mark`, atomically and durably. `mark.index` grows.

        Raises BackendFull when the disk is full: the durable image is then unchanged.
        """

    def scan(self, low: bytes, high: bytes | None) -> AsyncIterator[Sequence[tuple[bytes, bytes]]]:
        """Rows with low <= key < high (None: to the end) in key order, in chunks."""

    def size_bytes(self) -> int:
        """Size of the file on disk, for display."""

    async def close(self) -> None: ...

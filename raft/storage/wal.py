"""The write-ahead log of one member: work that is written and synced here may be acknowledged.

Theory of operation. A log is a sequence of segment files of one fixed size, zero-filled and never recycled.
Work is *staged* and then *committed*: one frame, one write, one fdatasync. A frame begins only when the one
before it is durable, so at most one frame can ever be torn. `maintain` prepares the next segment ahead of
need; only there is a full disk harmless. Each segment starts with a frame that repeats everything but the
entries, so the oldest segments can be deleted whole once the base has passed their entries.

One thread at a time. After any error nothing more is accepted: the outcome is unknown.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import raft.storage.records as records
from raft.core.ready import AppendWork
from raft.core.types import Entry, HardState, SnapshotMeta
from raft.storage.files import File, FileSystem
from raft.storage.log_recovery import UNFINISHED_NAME, LogContents, SegmentFound, segment_name
from raft.storage.records import MASK_NONE, SECTOR_BYTES, TRAILER, BootstrapItem, SegmentHeader
from raft.storage.storage_errors import EntryTooLarge, LogFailed, LogFull
from raft.storage.storage_protocol import Identity

SEGMENT_BYTES_DEFAULT = 16 * 1024 * 1024
"""Minutes of work at moderate load; small enough to prepare in a millisecond, to read quickly at start,
and to keep one in reserve."""

SEGMENT_BYTES_MIN = 16 * 1024
"""Below this the start frame would crowd out the work; simulations use small segments."""

FRAME_SHARE = 4
"""A frame is closed at a quarter of a segment, so that rotation wastes at most a quarter of one."""

LOG_USED_UP = "disk full, and the log's last segment is used up"
"""Message of a LogFull, after the directory."""

ENTRY_OVERHEAD_BYTES = 13
"""What the encoding adds to one entry's data."""


class NoSpace(Exception):
    """The disk has no space for the next segment; the current one remains in use."""


class Log:
    """The log, open for writing."""

    def __init__(self, files: FileSystem, directory: str, contents: LogContents) -> None:
        """Continue the log that `read_log` found. Use `create_log` for a new one.

        Raises LogFailed on any disk error, LogFull when a torn tail needs a new segment and the disk is full.
        """
        self._files = files
        self._directory = directory
        self._identity: Identity = contents.identity
        self._salt = records.frame_salt(contents.identity)
        self._segment_bytes = contents.segment_bytes
        self._frame_bytes_max = contents.segment_bytes // FRAME_SHARE

        self._segments: list[SegmentFound] = contents.segments
        """Segments of the log, oldest first; the last one is written to. Never empty."""
        self._file: File | None = None
        """The last segment; None once closed or failed."""
        self._offset = contents.end
        """Where the next frame goes. Invariant: all bytes of the segment from here on are zero."""
        self._chain = contents.chain
        """Chain value of the last frame."""
        self._spare: File | None = None
        """The prepared next segment (its sequence is the last one's + 1), or None."""

        self._items: list[bytes] = [MASK_NONE]
        """The body of the frame to come: the mask byte, then what is staged."""
        self._items_bytes = 0
        """Size of what is staged; may pass `_frame_bytes_max` by one item."""
        self._items_last_index = 0
        """Highest entry index staged."""

        # What each new segment repeats. The first three are the *durable* values, set after each
        # commit: the start of a segment must not run ahead of the entries they go with.
        self._hard_state: HardState = contents.hard_state
        self._snapshot: SnapshotMeta = contents.snapshot
        self._backend = contents.backend
        self._bootstrap: BootstrapItem = contents.bootstrap
        self._peers: dict[int, int] = contents.peers
        self._vote_eligible = contents.vote_eligible
        self._tail_truncated = contents.tail_truncated

        self._staged_hard_state: HardState = contents.hard_state
        self._staged_snapshot: SnapshotMeta = contents.snapshot
        self._staged_backend = contents.backend
        self.bytes_written = 0
        self.syncs = 0
        self._open(contents)

    def _open(self, contents: LogContents) -> None:
        files, directory = self._files, self._directory
        next_path = self._path(self._segments[-1].sequence + 1)
        try:
            unfinished = f"{directory}/{UNFINISHED_NAME}"
            if files.exists(unfinished):
                files.unlink(unfinished)
            # Names found at start may live in the cache only.
            files.sync_directory(directory)
            self._file = files.open(self._path(self._segments[-1].sequence))
            if contents.spare:
                self._spare = files.open(next_path)
            if contents.torn:
                self._rotate()
        except OSError as error:
            raise self._failed(error) from error

    # ---- staging

    def stage_work(self, work: AppendWork) -> None:
        """Add one piece of append work: a snapshot that replaces the log, entries, hard state."""
        if work.snapshot is not None:
            self._staged_snapshot = work.snapshot
            self._staged_backend = work.snapshot.index
            # One piece, never in two frames: a log without its entries must have the snapshot, and name the
            # backend that begins with it.
            self._stage(
                records.truncation_item(0)
                + records.snapshot_item(work.snapshot)
                + records.backend_item(work.snapshot.index)
            )
        if work.entries:
            self._stage_entries(work.entries)
        if work.hard_state is not None:
            self.stage_hard_state(work.hard_state)

    def stage_hard_state(self, state: HardState) -> None:
        self._staged_hard_state = state
        self._stage(records.hard_state_item(state))

    def stage_compaction(self, snapshot: SnapshotMeta) -> None:
        """Move the base of the log up to `snapshot`; a lower one is ignored."""
        if snapshot.index > self._staged_snapshot.index:
            self._staged_snapshot = snapshot
            self._stage(records.snapshot_item(snapshot))

    def stage_vote_eligible(self) -> None:
        """This replica may vote: it passed the identity check, or a leader confirmed its truncated log."""
        self._vote_eligible = True
        self._tail_truncated = False
        self._stage(records.VOTE_ELIGIBLE_ITEM)

    def stage_peer_disk(self, member_id: int, disk_id: int) -> None:
        self._peers[member_id] = disk_id
        self._stage(records.peer_disk_item(member_id, disk_id))

    def stage_synced_through(self) -> None:
        """Mark that all before is durable, so that the newest work is no longer the last frame."""
        self._stage(records.SYNCED_THROUGH_ITEM)

    def _stage(self, item: bytes) -> None:
        if self._items_bytes > self._frame_bytes_max:
            self.commit()
        self._items.append(item)
        self._items_bytes += len(item)

    def _stage_entries(self, entries: Sequence[Entry]) -> None:
        size = sum([len(entry.data) for entry in entries]) + len(entries) * ENTRY_OVERHEAD_BYTES
        if self._items_bytes + size > self._frame_bytes_max:
            if self._items_bytes:
                self.commit()
            if size > self._frame_bytes_max and len(entries) > 1:
                middle = len(entries) // 2
                self._stage_entries(entries[:middle])
                self._stage_entries(entries[middle:])
                return
        self._items += records.entries_parts(entries)
        self._items_bytes += size
        self._items_last_index = entries[-1].index

    # ---- committing

    @property
    def staged(self) -> bool:
        return len(self._items) > 1

    def commit(self) -> None:
        """Write what is staged as one frame and make it durable. After a LogFailed the log is unusable."""
        if len(self._items) == 1:
            return
        if self._file is None:
            raise LogFailed(f"{self._directory}: the log is closed")
        self._items.append(TRAILER)
        try:
            frame, chain = records.encode_frame(self._items, self._salt, self._chain)
            if self._offset + len(frame) > self._segment_bytes:
                self._rotate()
                frame, chain = records.encode_frame(self._items, self._salt, self._chain)
                if self._offset + len(frame) > self._segment_bytes:
                    raise EntryTooLarge(
                        f"{self._directory}: an entry of {len(frame)} bytes fits into no segment"
                    )
            self._file.pwrite(frame, self._offset)
            self._file.datasync()
        except OSError as error:
            raise self._failed(error) from error
        self._chain = chain
        self._offset = records.aligned(self._offset + len(frame))
        self.syncs += 1
        self.bytes_written += len(frame)
        segment = self._segments[-1]
        if self._items_last_index > segment.last_index:
            segment.last_index = self._items_last_index
        self._hard_state = self._staged_hard_state
        self._snapshot = self._staged_snapshot
        self._backend = self._staged_backend
        self._items = [MASK_NONE]
        self._items_bytes = self._items_last_index = 0

    def _rotate(self) -> None:
        """Continue in the next segment. Its start frame is durable before anything else is written there."""
        if self._spare is None:
            try:
                self._prepare()
            except NoSpace:
                self._close_files()
                raise LogFull(f"{self._directory}: {LOG_USED_UP}") from None
        assert self._spare is not None
        assert self._file is not None
        sequence = self._segments[-1].sequence + 1
        header = SegmentHeader(records.FORMAT_VERSION, self._segment_bytes, sequence, self._identity)
        start, chain = _start_frame(
            header,
            records.segment_start_item(
                self._chain,
                self._offset,
                tail_truncated=self._tail_truncated,
                vote_eligible=self._vote_eligible,
            ),
            [
                records.bootstrap_item(self._bootstrap.conf, self._bootstrap.blob),
                records.snapshot_item(self._snapshot),
                records.hard_state_item(self._hard_state),
                records.backend_item(self._backend),
                *(records.peer_disk_item(*peer) for peer in self._peers.items()),
            ],
        )
        self._spare.pwrite(start, SECTOR_BYTES)
        self._spare.datasync()
        self._file.close()
        self._file, self._spare = self._spare, None
        self._segments.append(SegmentFound(sequence, 0))
        self._chain = chain
        self._offset = records.aligned(SECTOR_BYTES + len(start))

    # ---- maintenance of the files

    @property
    def needs_maintenance(self) -> bool:
        return self._spare is None or self._droppable()

    def maintain(self) -> None:
        """Prepare the next segment and delete the oldest ones, whose entries the base has passed.

        Raises NoSpace when the disk is full (nothing is lost; retry later), LogFailed on any other error.
        """
        if self._file is None:
            raise LogFailed(f"{self._directory}: the log is closed")
        try:
            while self._droppable():
                self._files.unlink(self._path(self._segments[0].sequence))
                # One by one: a crash must not lose a newer one and keep an older one.
                self._files.sync_directory(self._directory)
                del self._segments[0]
            if self._spare is None:
                self._prepare()
        except OSError as error:
            raise self._failed(error) from error

    def _droppable(self) -> bool:
        return len(self._segments) > 1 and self._segments[0].last_index <= self._snapshot.index

    def _prepare(self) -> None:
        sequence = self._segments[-1].sequence + 1
        header = SegmentHeader(records.FORMAT_VERSION, self._segment_bytes, sequence, self._identity)
        try:
            self._spare = _new_segment(self._files, self._directory, header, b"")
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            unfinished = f"{self._directory}/{UNFINISHED_NAME}"
            if self._files.exists(unfinished):
                self._files.unlink(unfinished)
            raise NoSpace(f"{self._directory}: no space for the log's next segment") from error
        self._files.sync_directory(self._directory)

    def _path(self, sequence: int) -> str:
        return f"{self._directory}/{segment_name(sequence)}"

    def _failed(self, error: OSError) -> LogFailed:
        self._close_files()
        return LogFailed(f"{self._directory}: writing the log failed ({error}); its outcome is unknown")

    def _close_files(self) -> None:
        for file in (self._file, self._spare):
            if file is not None:
                file.close()
        self._file = self._spare = None

    def close(self) -> None:
        """Close the files. Committed work is durable; work that was only staged is lost."""
        self._close_files()


def _start_frame(header: SegmentHeader, start: bytes, items: Sequence[bytes]) -> tuple[bytes, int]:
    _, seed = records.decode_segment_header(header.encode())
    return records.encode_frame(
        [MASK_NONE, start, *items, TRAILER], records.frame_salt(header.identity), seed
    )


def _new_segment(files: FileSystem, directory: str, header: SegmentHeader, start: bytes) -> File:
    """A complete segment under its final name; the name is not yet durable. Raises OSError."""
    path = f"{directory}/{UNFINISHED_NAME}"
    if files.exists(path):
        files.unlink(path)
    file = files.open(path, create=True)
    try:
        file.allocate(header.segment_bytes)
        file.pwrite(header.encode() + start, 0)
        file.sync()
        files.rename(path, f"{directory}/{segment_name(header.sequence)}")
    except BaseException:
        file.close()
        raise
    return file


def create_log(
    files: FileSystem,
    directory: str,
    identity: Identity,
    bootstrap: BootstrapItem,
    segment_bytes: int,
    *,
    base: SnapshotMeta | None = None,
) -> None:
    """Create a log that holds nothing but its identity and the bootstrap record. Durable on return.

    With `base` the log begins after that, and names the backend of that index. The rename of the first
    segment is the moment at which the member exists. Raises OSError.
    """
    assert segment_bytes >= SEGMENT_BYTES_MIN
    header = SegmentHeader(records.FORMAT_VERSION, segment_bytes, 1, identity)
    items = [
        records.bootstrap_item(bootstrap.conf, bootstrap.blob),
        records.snapshot_item(base or SnapshotMeta(0, 0, bootstrap.conf)),
    ]
    if base is not None:
        items.append(records.backend_item(base.index))
    start_item = records.segment_start_item(0, 0, tail_truncated=False, vote_eligible=False)
    start, _ = _start_frame(header, start_item, items)
    if SECTOR_BYTES + len(start) > segment_bytes // 2:
        raise EntryTooLarge(f"{directory}: a bootstrap record of {len(start)} bytes is too large")
    _new_segment(files, directory, header, start).close()
    files.sync_directory(directory)

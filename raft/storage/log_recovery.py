"""Reading the log at start: every byte is checked, and nothing on disk is changed.

A frame that fails its checks is *torn* when a crash interrupted the last write, and *damage* otherwise (see
`records.is_torn`). Only the last frame can be torn: the writer begins a frame only after the one before it
is durable. If syncs work, no torn frame was ever acknowledged; still, a member that truncated one neither
votes nor acknowledges until a leader has confirmed its log (`LogContents.tail_truncated`).
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass, field

import raft.storage.records as records
from raft.core.types import (
    EMPTY_HARD_STATE,
    EMPTY_SNAPSHOT,
    NO_NODE,
    ConfState,
    Entry,
    HardState,
    SnapshotMeta,
)
from raft.storage.files import FileSystem
from raft.storage.records import SECTOR_BYTES, Malformed, SegmentHeader, SegmentStart
from raft.storage.storage_errors import Damaged, FormatUnknown
from raft.storage.storage_protocol import Identity

SEGMENT_SUFFIX = ".wal"
UNFINISHED_NAME = "next.tmp"
"""A segment being prepared; renamed once it is whole, deleted at start."""

_NO_BOOTSTRAP = records.BootstrapItem(ConfState(), b"")


def segment_name(sequence: int) -> str:
    return f"{sequence:016x}{SEGMENT_SUFFIX}"


@dataclass(slots=True)
class SegmentFound:
    """One segment that belongs to the log, oldest first."""

    sequence: int
    last_index: int
    """Highest index of any entry in it, 0 for none: it may be deleted once the base has reached this."""


@dataclass(slots=True)
class LogContents:
    """The replayed log, and where writing continues."""

    identity: Identity
    segment_bytes: int
    segments: list[SegmentFound] = field(default_factory=list)
    chain: int = 0
    """Chain value after the last good frame, which ends at `end` of the last segment."""
    end: int = 0
    bootstrap: records.BootstrapItem = _NO_BOOTSTRAP
    hard_state: HardState = EMPTY_HARD_STATE
    snapshot: SnapshotMeta = EMPTY_SNAPSHOT
    backend: int = 0
    """Index of the received snapshot that the backend began as, 0 for one that began empty."""
    entries: list[Entry] = field(default_factory=list)
    """Gap-free; starts at snapshot.index + 1 once reading has finished."""
    peers: dict[int, int] = field(default_factory=dict)
    """Disk ids of peers, by member id."""
    vote_eligible: bool = False
    tail_truncated: bool = False
    """A torn frame was truncated, now or before, and no leader has confirmed the log since."""
    torn: bool = False
    """The last segment holds a torn frame at `end`: the log continues in another segment."""
    spare: bool = False
    """A prepared, empty segment follows the last one."""


@dataclass(slots=True)
class _Segment:
    path: str
    header: SegmentHeader
    data: bytes
    seed: int


def read_log(files: FileSystem, directory: str) -> LogContents | None:
    """Read the whole log under `directory`; None when there is none.

    Raises Damaged or FormatUnknown; changes nothing.
    """
    sequences = _sequences(files, directory)
    if not sequences:
        return None
    contents: LogContents | None = None
    current: _Segment | None = None
    start: SegmentStart | None = None
    for sequence in sequences:
        segment = _load(files, f"{directory}/{segment_name(sequence)}", sequence)
        if contents is None:
            contents = LogContents(segment.header.identity, segment.header.segment_bytes)
        elif segment.header.identity != contents.identity:
            raise Damaged("segment belongs to another member or disk", segment.path)
        salt = records.frame_salt(contents.identity)
        start = _read_start(segment, salt)
        if start is None:
            expected = current is not None and sequence == sequences[-1]
            _judge_unstarted(segment, salt, contents, expected=expected)
            break
        if current is not None:
            _replay_segment(current, contents, start)
        contents.segments.append(SegmentFound(sequence, 0))
        contents.tail_truncated = start.tail_truncated
        contents.vote_eligible = start.vote_eligible
        current = segment
    assert contents is not None
    assert current is not None
    _replay_segment(current, contents, None)
    _finish(contents, directory)
    return contents


def _sequences(files: FileSystem, directory: str) -> list[int]:
    if not files.exists(directory):
        return []
    sequences = []
    for name in files.list(directory):
        if not name.endswith(SEGMENT_SUFFIX):
            continue
        try:
            sequences.append(int(name.removesuffix(SEGMENT_SUFFIX), 16))
        except ValueError:
            raise Damaged("not a segment of this log", f"{directory}/{name}") from None
    sequences.sort()
    for before, after in itertools.pairwise(sequences):
        if after != before + 1:
            raise Damaged("segment is missing", f"{directory}/{segment_name(before + 1)}")
    return sequences


def _load(files: FileSystem, path: str, sequence: int) -> _Segment:
    file = files.open(path)
    try:
        size = file.size()
        # What a killed process wrote may be in the page cache only: make it durable before using it.
        file.datasync()
        data = file.pread(size, 0)
    finally:
        file.close()
    try:
        header, seed = records.decode_segment_header(data[:SECTOR_BYTES])
    except Malformed as error:
        raise Damaged(str(error), path) from None
    if header.version != records.FORMAT_VERSION:
        raise FormatUnknown(
            f"{path}: format version {header.version} is not known to this program "
            f"(it knows {records.FORMAT_VERSION}); nothing was changed"
        )
    if len(data) != header.segment_bytes:
        raise Damaged(f"segment has {len(data)} bytes instead of {header.segment_bytes}", path)
    if header.sequence != sequence:
        raise Damaged(f"segment header has sequence number {header.sequence}", path)
    return _Segment(path, header, data, seed)


def _read_start(segment: _Segment, salt: int) -> SegmentStart | None:
    frame = records.read_frame(segment.data, SECTOR_BYTES, salt, segment.seed)
    if frame is None:
        return None
    items = _items(frame, segment)
    if not items or not isinstance(items[0], SegmentStart):
        raise Damaged("segment does not begin with its start item", segment.path)
    return items[0]


def _judge_unstarted(segment: _Segment, salt: int, contents: LogContents, *, expected: bool) -> None:
    """A segment without a good start frame is the prepared next one, or its start was torn.

    The start frame is synced before anything follows it and acknowledges nothing, so a torn one sets no
    `tail_truncated`; the segment is replaced. The oldest segment was complete before its rename: there it is
    damage.
    """
    blank = not any_byte(segment.data, SECTOR_BYTES)
    if not expected:
        raise Damaged("segment has no valid start", segment.path)
    if blank:
        contents.spare = True
    elif not records.is_torn(segment.data, SECTOR_BYTES, salt, segment.seed):
        raise Damaged("segment start is damaged", segment.path)


def any_byte(data: bytes, start: int) -> bool:
    """Whether any byte from `start` on is not zero."""
    return data.count(0, start) != len(data) - start


def _items(frame: records.FrameRead, segment: _Segment) -> list[records.Item]:
    try:
        return records.decode_items(frame.items)
    except (Malformed, struct.error, ValueError) as error:
        raise Damaged(f"record cannot be read ({error})", segment.path) from None


def _replay_segment(segment: _Segment, contents: LogContents, following: SegmentStart | None) -> None:
    """Replay one segment: up to the end recorded in the following one, or else up to the last good frame."""
    salt = records.frame_salt(contents.identity)
    chain = segment.seed
    offset = SECTOR_BYTES
    while following is None or offset < following.previous_end:
        frame = records.read_frame(segment.data, offset, salt, chain)
        if frame is None:
            break
        for item in _items(frame, segment):
            _replay_item(item, contents, segment)
        chain = frame.chain
        offset = frame.end
    if following is not None:
        if offset != following.previous_end or chain != following.previous_chain:
            raise Damaged(f"record at byte {offset} is damaged", segment.path)
        return
    contents.chain = chain
    contents.end = offset
    if any_byte(segment.data, offset):
        if not records.is_torn(segment.data, offset, salt, chain):
            raise Damaged(f"record at byte {offset} is damaged", segment.path)
        contents.torn = True
        contents.tail_truncated = True


def _replay_item(item: records.Item, contents: LogContents, segment: _Segment) -> None:
    if isinstance(item, list):
        _replay_entries(item, contents, segment)
    elif isinstance(item, HardState):
        contents.hard_state = item
    elif isinstance(item, SnapshotMeta):
        contents.snapshot = item
        _forget(contents)
    elif isinstance(item, records.Truncation):
        _discard(contents, item.first_index)
    elif isinstance(item, records.PeerDisk):
        contents.peers[item.member_id] = item.disk_id
    elif isinstance(item, records.VoteEligible):
        contents.vote_eligible = True
        contents.tail_truncated = False
    elif isinstance(item, records.BackendFileName):
        contents.backend = item.index
    elif isinstance(item, records.BootstrapItem):
        contents.bootstrap = item


def _replay_entries(entries: list[Entry], contents: LogContents, segment: _Segment) -> None:
    first = entries[0].index
    _discard(contents, first)
    log = contents.entries
    # An empty list may start anywhere: older segments are deleted, and `_finish` checks the base.
    if log and first != log[-1].index + 1:
        raise Damaged(f"entries between {log[-1].index} and {first} are missing", segment.path)
    if log and entries[0].term < log[-1].term:
        raise Damaged(f"term goes backwards at entry {first}", segment.path)
    log.extend(entries)
    found = contents.segments[-1]
    found.last_index = max(found.last_index, entries[-1].index)


def _discard(contents: LogContents, first_index: int) -> None:
    """Drop entries at or above `first_index`."""
    log = contents.entries
    if log and first_index <= log[-1].index:
        del log[max(0, first_index - log[0].index) :]


def _forget(contents: LogContents) -> None:
    """Drop entries up to the base."""
    log = contents.entries
    if log and log[0].index <= contents.snapshot.index:
        del log[: contents.snapshot.index + 1 - log[0].index]


def _finish(contents: LogContents, directory: str) -> None:
    """Check the invariants of every log that this program writes."""
    _forget(contents)
    log = contents.entries
    base = contents.snapshot
    if log and log[0].index != base.index + 1:
        raise Damaged(f"entries from {base.index + 1} to {log[0].index - 1} are missing", directory)
    last_index, last_term = (log[-1].index, log[-1].term) if log else (base.index, base.term)
    state = contents.hard_state
    if state.commit > last_index:
        raise Damaged(
            f"entries up to {state.commit} were committed but the log ends at {last_index}", directory
        )
    if state.term < last_term:
        # Entries precede their hard state; no vote in the newer term was sent yet.
        contents.hard_state = HardState(last_term, NO_NODE, state.commit)
    if state.commit < base.index:
        # The commit index needs no sync of its own, so the base may be ahead of it.
        contents.hard_state = contents.hard_state._replace(commit=base.index)

"""The log's bytes: items, the frames that hold them, and the segment header. See docs/format.md.

One group commit is one *frame*; a frame holds items. Frames start at multiples of 16 bytes, so a
frame's header never straddles a 512 B sector, and no sector of a good frame is all zero (the
header starts with a non-zero salt, the body ends with 0xFF, and bodies with long runs of zeros
are masked). That is what makes a sector that never reached the disk recognisable.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

from crc32c import crc32c

from raft.core.types import ConfState, Entry, EntryKind, HardState, SnapshotMeta
from raft.storage.storage_protocol import Identity

FORMAT_VERSION = 1
"""Version of every file of the data directory; any other is refused."""

SECTOR_BYTES = 512
"""The unit a disk writes as a whole or not at all; every drive keeps at least this."""

ALIGNMENT_BYTES = 16
"""Frames start at multiples of this: the size of a frame header, which divides a sector."""

# Item kinds; the numbers are stored and never reused.
ENTRIES = 1
HARD_STATE = 2
TRUNCATION = 3
SNAPSHOT_MARK = 4
BOOTSTRAP = 5
PEER_DISK = 6
VOTE_ELIGIBLE = 7
SYNCED_THROUGH = 8
SEGMENT_START = 9
BACKEND_FILE = 10

_MAGIC = b"RAFTWAL\0"
_SEGMENT_HEADER = Struct("<8sHxxIQQQQ")  # magic, version, segment bytes, sequence, cluster, member, disk
_CRC = Struct("<I")
_FRAME_PREFIX = Struct("<II")  # salt, body length
_FRAME_CRCS = Struct("<II")  # check of the prefix, chain over prefix and body
_FRAME_HEADER = Struct("<IIII")
_ENTRIES = Struct("<BQI")  # kind, index of the first, count
_ENTRY = Struct("<QBI")  # term, entry kind, data length
_HARD_STATE = Struct("<BQQQ")
_TRUNCATION = Struct("<BQ")
_MARK = Struct("<BQQ")
_PEER_DISK = Struct("<BQQ")
_BACKEND_FILE = Struct("<BQ")
_SEGMENT_START = Struct("<BIIB")  # kind, previous chain, previous end, flags
_CONF_HEAD = Struct("<BHHHH")
_LENGTH = Struct("<I")

_FLAG_TAIL_TRUNCATED = 1
_FLAG_VOTE_ELIGIBLE = 2

FRAME_HEADER_BYTES = _FRAME_HEADER.size
MASK_NONE = b"\0"
"""First byte of every body: what the rest is XORed with."""
TRAILER = b"\xff"
"""Last byte of every body, so that its last sector is never all zero."""
_ZERO_SECTOR = bytes(SECTOR_BYTES)


class Malformed(Exception):
    """Bytes whose checksum was right do not parse: written by a faulty program."""


class SegmentHeader(NamedTuple):
    """First sector of a segment file. Its CRC seeds the segment's chain, so identity is part of it."""

    version: int
    segment_bytes: int
    """Size of the whole file; fixed for its life."""
    sequence: int
    """Position of the segment in the log, from 1; also its file name."""
    identity: Identity

    def encode(self) -> bytes:
        """Exactly one sector: the fields, zeros, CRC32C of all before."""
        head = _SEGMENT_HEADER.pack(
            _MAGIC,
            self.version,
            self.segment_bytes,
            self.sequence,
            self.identity.cluster_id,
            self.identity.member_id,
            self.identity.disk_id,
        ).ljust(SECTOR_BYTES - _CRC.size, b"\0")
        return head + _CRC.pack(crc32c(head))


def decode_segment_header(sector: bytes) -> tuple[SegmentHeader, int]:
    """The header and the chain's seed. Raises Malformed when it is none or its CRC is wrong.

    Magic, version and CRC keep their offsets in every version, so that a newer file differs from a damaged
    one.
    """
    if len(sector) != SECTOR_BYTES or not sector.startswith(_MAGIC):
        raise Malformed("not a log segment")
    (crc,) = _CRC.unpack_from(sector, SECTOR_BYTES - _CRC.size)
    if crc32c(sector[: SECTOR_BYTES - _CRC.size]) != crc:
        raise Malformed("segment header checksum is wrong")
    _, version, segment_bytes, sequence, cluster, member, disk = _SEGMENT_HEADER.unpack_from(sector)
    identity = Identity(cluster_id=cluster, member_id=member, disk_id=disk)
    return SegmentHeader(version, segment_bytes, sequence, identity), crc


def frame_salt(identity: Identity) -> int:
    """What every frame of this disk starts with: not zero, and unlikely in stored data."""
    return (crc32c(identity.disk_id.to_bytes(8, "little")) & 0xFFFFFFFF) or 1


# ---- frames


def mask_body(body: bytes) -> bytes:
    """The same body with a mask under which it holds no 512 zero bytes in a row."""
    for mask in range(1, 256):
        masked = bytes((mask,)) + body[1:-1].translate(_xor_table(mask)) + TRAILER
        if _ZERO_SECTOR not in masked:
            return masked
    # The body holds a long run of every byte value (at least 128 KiB, made on purpose). Unmasked, its only
    # cost is that damage to this frame, while it is the newest, may pass for a torn write.
    return body


def _xor_table(mask: int) -> bytes:
    return bytes(value ^ mask for value in range(256))


def encode_frame(parts: list[bytes], salt: int, chain: int) -> tuple[bytes, int]:
    """One frame from `parts` (which start with MASK_NONE and end with TRAILER), and the new chain."""
    body = b"".join(parts)
    if len(body) > SECTOR_BYTES and _ZERO_SECTOR in body:
        body = mask_body(body)
    prefix = _FRAME_PREFIX.pack(salt, len(body))
    check = crc32c(prefix, chain)
    chain = crc32c(body, check)
    return prefix + _FRAME_CRCS.pack(check, chain) + body, chain


def aligned(offset: int) -> int:
    """The next offset at which a frame may start, at or after `offset`."""
    return (offset + ALIGNMENT_BYTES - 1) & -ALIGNMENT_BYTES


class FrameRead(NamedTuple):
    """A good frame."""

    items: bytes
    chain: int
    end: int
    """Where the next frame starts."""


def read_frame(data: bytes, offset: int, salt: int, chain: int) -> FrameRead | None:
    """The frame at `offset`, or None when there is no good one there."""
    body_start = offset + FRAME_HEADER_BYTES
    if body_start > len(data):
        return None
    found_salt, length, check, found_chain = _FRAME_HEADER.unpack_from(data, offset)
    body_end = body_start + length
    if found_salt != salt or length < 2 or body_end > len(data):
        return None
    if crc32c(data[offset : offset + _FRAME_PREFIX.size], chain) != check:
        return None
    body = data[body_start:body_end]
    if crc32c(body, check) != found_chain:
        return None
    end = aligned(body_end)
    if any(data[body_end:end]) or body[-1:] != TRAILER:
        return None
    mask = body[0]
    items = body[1:-1] if mask == 0 else body[1:-1].translate(_xor_table(mask))
    return FrameRead(items, found_chain, end)


def is_torn(data: bytes, offset: int, salt: int, chain: int) -> bool:
    """Whether the bytes at `offset` (no good frame, not all zero) are an interrupted write.

    True only if they are the last frame and one of its sectors, or its share of one, is still all zero.
    Otherwise the frame was once complete, and is damaged.
    """
    found_salt, length, check, _ = (
        _FRAME_HEADER.unpack_from(data, offset) if offset + FRAME_HEADER_BYTES <= len(data) else (0, 0, 0, 0)
    )
    sector_end = min((offset // SECTOR_BYTES + 1) * SECTOR_BYTES, len(data))
    if not any(data[offset:sector_end]):
        # The sector with the header was never written, so the length is unknown. A later frame can only
        # exist if this one was durable, and its salt would show it.
        return not _has_frame(data, sector_end, salt)
    body_end = offset + FRAME_HEADER_BYTES + length
    if found_salt != salt or crc32c(data[offset : offset + _FRAME_PREFIX.size], chain) != check:
        return False
    if body_end > len(data) or data.count(0, body_end) != len(data) - body_end:
        return False
    start = sector_end
    while start < body_end:
        if not any(data[start : min(start + SECTOR_BYTES, body_end)]):
            return True
        start += SECTOR_BYTES
    return False


def _has_frame(data: bytes, start: int, salt: int) -> bool:
    needle = salt.to_bytes(4, "little")
    at = data.find(needle, start)
    while at >= 0:
        if at % ALIGNMENT_BYTES == 0:
            return True
        at = data.find(needle, at + 1)
    return False


# ---- items, written


def entries_parts(entries: Sequence[Entry]) -> list[bytes]:
    """Entries without gaps; stored entries at or above the first are thereby discarded."""
    parts = [_ENTRIES.pack(ENTRIES, entries[0].index, len(entries))]
    for term, _, kind, data in entries:
        parts.append(_ENTRY.pack(term, kind, len(data)))
        parts.append(data)
    return parts


def hard_state_item(state: HardState) -> bytes:
    return _HARD_STATE.pack(HARD_STATE, state.term, state.vote, state.commit)


def truncation_item(first_index: int) -> bytes:
    """Entries at or above `first_index` are discarded."""
    return _TRUNCATION.pack(TRUNCATION, first_index)


def snapshot_item(snapshot: SnapshotMeta) -> bytes:
    """The log's base is now `snapshot`; entries up to it are dropped."""
    return _MARK.pack(SNAPSHOT_MARK, snapshot.index, snapshot.term) + encode_conf(snapshot.conf)


def bootstrap_item(conf: ConfState, blob: bytes) -> bytes:
    return bytes((BOOTSTRAP,)) + encode_conf(conf) + _LENGTH.pack(len(blob)) + blob


def peer_disk_item(member_id: int, disk_id: int) -> bytes:
    return _PEER_DISK.pack(PEER_DISK, member_id, disk_id)


def backend_item(index: int) -> bytes:
    """The backend is the file that began as the snapshot at `index`."""
    return _BACKEND_FILE.pack(BACKEND_FILE, index)


VOTE_ELIGIBLE_ITEM = bytes((VOTE_ELIGIBLE,))
SYNCED_THROUGH_ITEM = bytes((SYNCED_THROUGH,))


def segment_start_item(
    previous_chain: int, previous_end: int, *, tail_truncated: bool, vote_eligible: bool
) -> bytes:
    flags = (_FLAG_TAIL_TRUNCATED if tail_truncated else 0) | (_FLAG_VOTE_ELIGIBLE if vote_eligible else 0)
    return _SEGMENT_START.pack(SEGMENT_START, previous_chain, previous_end, flags)


def encode_conf(conf: ConfState) -> bytes:
    groups = (conf.voters, conf.learners, conf.voters_outgoing, conf.learners_next)
    members = [member for group in groups for member in group]
    return _CONF_HEAD.pack(conf.auto_leave, *map(len, groups)) + Struct(f"<{len(members)}Q").pack(*members)


# ---- items, read


def decode_conf(data: bytes, offset: int = 0) -> tuple[ConfState, int]:
    """The configuration at `offset` and where it ends. Raises struct.error when it is truncated."""
    auto_leave, *counts = _CONF_HEAD.unpack_from(data, offset)
    offset += _CONF_HEAD.size
    groups: list[tuple[int, ...]] = []
    for count in counts:
        shape = Struct(f"<{count}Q")
        groups.append(shape.unpack_from(data, offset))
        offset += shape.size
    return ConfState(groups[0], groups[1], groups[2], groups[3], bool(auto_leave)), offset


class SegmentStart(NamedTuple):
    """First item of a segment: where the previous one ends, and the current flags."""

    previous_chain: int
    previous_end: int
    """Offset after the previous segment's last good frame; bytes beyond it are not part of the log."""
    tail_truncated: bool
    vote_eligible: bool


class Truncation(NamedTuple):
    first_index: int


class BootstrapItem(NamedTuple):
    conf: ConfState
    blob: bytes


class PeerDisk(NamedTuple):
    member_id: int
    disk_id: int


class VoteEligible(NamedTuple):
    pass


class BackendFileName(NamedTuple):
    index: int  # type: ignore[assignment]  # hides tuple.index, which has no caller


Item = (
    list[Entry]
    | HardState
    | Truncation
    | SnapshotMeta
    | BootstrapItem
    | PeerDisk
    | VoteEligible
    | BackendFileName
    | SegmentStart
)


def decode_items(data: bytes) -> list[Item]:
    """All items of one frame (marks without content are left out). Raises Malformed or struct.error."""
    items: list[Item] = []
    offset = 0
    while offset < len(data):
        kind = data[offset]
        if kind == ENTRIES:
            entries, offset = _decode_entries(data, offset)
            items.append(entries)
        elif kind == HARD_STATE:
            _, term, vote, commit = _HARD_STATE.unpack_from(data, offset)
            items.append(HardState(term, vote, commit))
            offset += _HARD_STATE.size
        elif kind == TRUNCATION:
            items.append(Truncation(_TRUNCATION.unpack_from(data, offset)[1]))
            offset += _TRUNCATION.size
        elif kind == SNAPSHOT_MARK:
            _, index, term = _MARK.unpack_from(data, offset)
            conf, offset = decode_conf(data, offset + _MARK.size)
            items.append(SnapshotMeta(index, term, conf))
        elif kind == BOOTSTRAP:
            conf, offset = decode_conf(data, offset + 1)
            (length,) = _LENGTH.unpack_from(data, offset)
            offset += _LENGTH.size + length
            items.append(BootstrapItem(conf, data[offset - length : offset]))
        elif kind == PEER_DISK:
            _, member_id, disk_id = _PEER_DISK.unpack_from(data, offset)
            items.append(PeerDisk(member_id, disk_id))
            offset += _PEER_DISK.size
        elif kind == VOTE_ELIGIBLE:
            items.append(VoteEligible())
            offset += 1
        elif kind == BACKEND_FILE:
            items.append(BackendFileName(_BACKEND_FILE.unpack_from(data, offset)[1]))
            offset += _BACKEND_FILE.size
        elif kind == SYNCED_THROUGH:
            offset += 1
        elif kind == SEGMENT_START:
            _, chain, end, flags = _SEGMENT_START.unpack_from(data, offset)
            items.append(
                SegmentStart(
                    chain, end, bool(flags & _FLAG_TAIL_TRUNCATED), bool(flags & _FLAG_VOTE_ELIGIBLE)
                )
            )
            offset += _SEGMENT_START.size
        else:
            raise Malformed(f"unknown item kind {kind}")
    return items


def _decode_entries(data: bytes, offset: int) -> tuple[list[Entry], int]:
    _, index, count = _ENTRIES.unpack_from(data, offset)
    offset += _ENTRIES.size
    entries = []
    for position in range(count):
        term, kind, length = _ENTRY.unpack_from(data, offset)
        offset += _ENTRY.size
        end = offset + length
        if end > len(data):
            raise Malformed("entry runs past its frame")
        entries.append(Entry(term, index + position, EntryKind(kind), data[offset:end]))
        offset = end
    return entries, offset

"""The bytes of one log entry: who sent the batch, which batch of theirs, and its commands.

    version u8 | member u64 | incarnation u64 | counter u64 | count u32 | count x length u32 | commands

All numbers are big-endian. Empty entry data is a leader's no-op and never an envelope. The lengths
stand together so that a batch of any size is packed and unpacked by two calls.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from raft.core.ready import AppendWork
from raft.core.types import EntryKind

ENVELOPE_VERSION = 1

_HEADER = struct.Struct(">BQQQI")
_COUNT = struct.Struct(">I")
_COUNT_OFFSET = _HEADER.size - _COUNT.size


class EnvelopeError(ValueError):
    """Entry data that is no envelope this code understands; the member must stop, not guess."""


class Envelope(NamedTuple):
    """One decoded batch."""

    member_id: int
    incarnation: int
    """The one that made the batch: a replayed old batch completes no request."""
    counter: int
    """Identifies the batch among those of its incarnation; grows, and is never used twice."""
    commands: Sequence[bytes]


def count_operations(work: AppendWork) -> int:
    """Count the commands in append work: the measure of a batch for the log's inline rule."""
    return sum(
        _COUNT.unpack_from(data, _COUNT_OFFSET)[0] if kind is EntryKind.NORMAL else 1
        for _, _, kind, data in work.entries
        if data
    )


def encode_envelope(member_id: int, incarnation: int, counter: int, commands: Sequence[bytes]) -> bytes:
    """Pack a batch; one without commands only marks a position in the order."""
    count = len(commands)
    header = _HEADER.pack(ENVELOPE_VERSION, member_id, incarnation, counter, count)
    lengths = struct.pack(f">{count}I", *map(len, commands))
    return b"".join((header, lengths, *commands))


def decode_envelope(data: bytes) -> Envelope:
    """Unpack a batch; raise EnvelopeError on anything but a whole envelope of a known version."""
    if len(data) < _HEADER.size:
        raise EnvelopeError(f"entry of {len(data)} bytes is shorter than an envelope header")
    version, member_id, incarnation, counter, count = _HEADER.unpack_from(data)
    if version != ENVELOPE_VERSION:
        raise EnvelopeError(f"envelope version {version} is unknown; this code knows {ENVELOPE_VERSION}")
    position = _HEADER.size + 4 * count
    if len(data) < position:
        raise EnvelopeError(f"envelope announces {count} commands and ends within their lengths")
    commands = []
    for length in struct.unpack_from(f">{count}I", data, _HEADER.size):
        end = position + length
        commands.append(data[position:end])
        position = end
    if position != len(data):
        raise EnvelopeError(f"envelope of {len(data)} bytes announces {position}")
    return Envelope(member_id, incarnation, counter, commands)

"""The packed form of one revision of a key, and its row in the backend.

In memory a revision is one `bytes` object: a fixed header, then the value. Nothing per key is
an object the garbage collector would have to visit. The same bytes are the row's value in the
backend, so loading copies nothing.

    record   create i64 | mod i64 | version i64 | lease i64 | sub u32 | value ...
    row key  "k" | escaped user key | 00 01 | mod i64 | sub u64

`sub` numbers the changes made within one revision. A tombstone is a record of version 0. In the
escaped key each 00 became 00 FF, so that rows sort by user key first and by age second, and a
range of keys is a range of rows. All integers are big-endian.
"""

from __future__ import annotations

from struct import Struct

from kvstore.engine.results import Change, Event, KeyValue

HEADER = Struct(">qqqqI")
HEADER_BYTES = HEADER.size
_pack_header = HEADER.pack
unpack_header = HEADER.unpack_from

_MOD = Struct(">q")
_MOD_OFFSET = 8
_VERSION_OFFSET = 16
_LEASE_OFFSET = 24

DATA_PREFIX = b"k"
_ROW_TAIL = Struct(">qQ")
_KEY_END = b"\0\x01"
_ROW_SUFFIX_BYTES = len(_KEY_END) + _ROW_TAIL.size

ROW_OVERHEAD_BYTES = 160
"""What one stored revision costs in memory beside key, header and value: two `bytes` objects and
their slots in dict and sorted list (measured at 1,000,000 keys: 466 B each with a 256 B value and
a 15 B key). Part of `logical_bytes`, so that a quota on it bounds the process."""


def make_record(create: int, mod: int, version: int, lease: int, sub: int, value: bytes) -> bytes:
    return _pack_header(create, mod, version, lease, sub) + value


def make_tombstone(mod: int, sub: int) -> bytes:
    return _pack_header(0, mod, 0, 0, sub)


def mod_revision_of(record: bytes) -> int:
    mod: int = _MOD.unpack_from(record, _MOD_OFFSET)[0]
    return mod


def lease_of(record: bytes) -> int:
    lease: int = _MOD.unpack_from(record, _LEASE_OFFSET)[0]
    return lease


def is_tombstone(record: bytes) -> bool:
    return not _MOD.unpack_from(record, _VERSION_OFFSET)[0]


def value_of(record: bytes) -> bytes:
    return record[HEADER_BYTES:]


def to_key_value(key: bytes, record: bytes) -> KeyValue:
    create, mod, version, lease, _ = unpack_header(record)
    return KeyValue(key, create, mod, version, record[HEADER_BYTES:], lease)


def row_bytes(key: bytes, record: bytes) -> int:
    """What a stored revision counts for in `logical_bytes`."""
    return len(key) + len(record) + ROW_OVERHEAD_BYTES


def row_key(key: bytes, record: bytes) -> bytes:
    _, mod, _, _, sub = unpack_header(record)
    if 0 in key:
        key = key.replace(b"\0", b"\0\xff")
    return b"%b%b%b%b" % (DATA_PREFIX, key, _KEY_END, _ROW_TAIL.pack(mod, sub))


def user_key(row: bytes) -> bytes:
    """The inverse of `row_key`, as far as the key goes."""
    key = row[1:-_ROW_SUFFIX_BYTES]
    if 0 in key:
        key = key.replace(b"\0\xff", b"\0")
    return key


def is_deletion(change: Change) -> bool:
    return is_tombstone(change[1])


def change_bytes(change: Change) -> int:
    key, record, before = change
    return len(key) + len(record) + (0 if before is None else len(before))


def to_event(change: Change) -> Event:
    """A change as a watcher is shown it."""
    key, record, before = change
    prev = None if before is None else to_key_value(key, before)
    if is_tombstone(record):
        return Event(True, KeyValue(key, 0, mod_revision_of(record), 0, b"", 0), prev)
    return Event(False, to_key_value(key, record), prev)

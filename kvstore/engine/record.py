"""The packed form of one revision of a key, and its row in the backend.

In memory a revision is one `bytes` object: a fixed header, then the value. Nothing per key is
an object the garbage collector would have to visit. The same bytes end the row's value in the
backend.

    record   create i64 | mod i64 | version i64 | lease i64 | sub u32 | value ...
    row      key "v" | mod i64 | sub u32, value length of the user key u32 | user key | record

`sub` numbers the changes made within one revision. A tombstone is a record of version 0. All integers
are big-endian, so rows sort by age: what a checkpoint adds stands together at the end, on few pages,
wherever its keys are (so does etcd's backend).
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

DATA_PREFIX = b"v"
_LENGTH_BYTES = 4
_SUB_OFFSET = 32

DATA_PREFIX_BY_KEY = b"k"
"""Of rows as they were written before: key "k" | user key, each 00 as 00 FF | 00 01 | mod i64 | sub u64,
value the record. Read and replaced."""
_BY_KEY_SUFFIX_BYTES = 2 + 8 + 8

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


def row_key(record: bytes) -> bytes:
    return DATA_PREFIX + record[_MOD_OFFSET:_VERSION_OFFSET] + record[_SUB_OFFSET:HEADER_BYTES]


def row_value(key: bytes, record: bytes) -> bytes:
    return len(key).to_bytes(_LENGTH_BYTES, "big") + key + record


def split_row(row: bytes, value: bytes) -> tuple[bytes, bytes]:
    """User key and record of a row, of either kind."""
    if row[:1] == DATA_PREFIX_BY_KEY:
        return row[1:-_BY_KEY_SUFFIX_BYTES].replace(b"\0\xff", b"\0"), value
    end = _LENGTH_BYTES + int.from_bytes(value[:_LENGTH_BYTES], "big")
    return value[_LENGTH_BYTES:end], value[end:]


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

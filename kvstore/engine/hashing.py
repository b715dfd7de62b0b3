"""Comparing members: one number for all history that compaction has not given up.

The number is made in slices, because visiting every key of a large store at once would keep the
event loop from everything else for seconds.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from heapq import merge
from itertools import islice

from kvstore.engine.record import mod_revision_of
from kvstore.engine.store import Store
from kvstore.errors import Compacted

KEYS_PER_SLICE = 500
"""About half a millisecond."""


def hash_slices(store: Store, revision: int) -> Iterator[int | None]:
    """CRC-32 over all revisions up to `revision`, which is readable now: None after each slice, the
    checksum at the end.

    The store may change between two slices. Later revisions do not count; a compaction changes what
    counts, so it begins again. Raises Compacted when one passes `revision`.
    """
    begun_at, checksum, last = store.compact_revision, 0, b""
    while True:
        if store.compact_revision != begun_at:
            if revision < store.compact_revision:
                raise Compacted
            begun_at, checksum, last = store.compact_revision, 0, b""
        # No key is empty, so the first slice begins behind the empty one.
        behind = {"minimum": last, "inclusive": (False, True)}
        keys = list(islice(merge(store.live.irange(**behind), store.dead.irange(**behind)), KEYS_PER_SLICE))
        if not keys:
            break
        for key in keys:
            checksum = _hash_key(store, key, revision, checksum)
        last = keys[-1]
        yield None
    yield checksum


def _hash_key(store: Store, key: bytes, revision: int, checksum: int) -> int:
    past = store.history.get(key, [])
    records = list(past) if isinstance(past, list) else [past]
    if key in store.current:
        records.append(store.current[key])
    for position, record in enumerate(records):
        if mod_revision_of(record) > revision:
            break
        after = records[position + 1] if position + 1 < len(records) else None
        if store.is_retained(record, after):
            checksum = zlib.crc32(record, zlib.crc32(key, checksum))
    return checksum

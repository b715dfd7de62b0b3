"""Replaying the past: the changes of an interval from a retained revision on, in bounded slices.

Few keys are asked one by one, as their records are in order. Many are found through the change log,
which knows what changed when, so that the cost is of what happened and not of what exists.
"""

from __future__ import annotations

from typing import NamedTuple

from kvstore.engine.record import is_tombstone, mod_revision_of, row_bytes, unpack_header
from kvstore.engine.results import Change, RevisionChanges
from kvstore.engine.store import Store
from kvstore.errors import Compacted

SLICE_VISITS_MAX = 500
"""Records and log entries looked at in one slice: about 1 ms of work."""

SLICE_REVISIONS_MAX = 1000
"""Revisions in one slice, as in one response of etcd."""

SLICE_BYTES_MAX = 256 * 1024
"""Bytes of records after which a slice ends. A single larger revision is still whole."""

FEW_KEYS = 64
"""Up to so many keys are asked one by one."""


class HistorySlice(NamedTuple):
    revisions: list[RevisionChanges]
    next_revision: int
    """All changes of the interval before it are in `revisions` or were in slices before. One more than
    the store's revision when there is nothing left."""
    visits: int
    """How much work it was, at most about SLICE_VISITS_MAX."""


def read_history(store: Store, key: bytes, range_end: bytes, start: int) -> HistorySlice:
    """Changes of the interval from revision `start` on. Raises Compacted.

    A slice may be empty though not the last: ask again from its `next_revision`.
    """
    start = max(start, 1)
    if start < store.compact_revision:
        raise Compacted
    stop = store.revision + 1
    if start >= stop:
        return HistorySlice([], start, 0)
    few = _few_keys(store, key, range_end)
    if few is None and start <= store.log.lower_bound:
        return HistorySlice([], start, store.build_log(SLICE_VISITS_MAX))
    if few is not None:
        found, stop = _of_keys(store, few, start, stop)
        visits = len(found) + len(few)
    else:
        found, stop, visits = _from_log(store, key, range_end, start, stop)
    return _gather(store, found, stop, visits)


_Found = tuple[int, int, bytes, bytes]
"""Revision, number within it, key, record: in the order of changes when sorted."""


def _few_keys(store: Store, key: bytes, range_end: bytes) -> list[bytes] | None:
    """All keys of the interval that have records, unless they are many."""
    if not range_end:
        return [key]
    live = store.slice_of(store.live, key, range_end)
    dead = store.slice_of(store.dead, key, range_end)
    if live[1] - live[0] + dead[1] - dead[0] > FEW_KEYS:
        return None
    return [*store.live[slice(*live)], *store.dead[slice(*dead)]]


def _of_keys(store: Store, keys: list[bytes], start: int, stop: int) -> tuple[list[_Found], int]:
    """What these keys went through from `start`, up to a revision that all of them reach."""
    found: list[_Found] = []
    share = max(1, SLICE_VISITS_MAX // max(1, len(keys)))
    for key in keys:
        records = store.records_of(key, start, share + 1)
        if len(records) > share:
            # End before the revision that is not whole; a revision of many changes stays whole.
            stop = min(stop, max(mod_revision_of(records[-1]), mod_revision_of(records[0]) + 1))
            if mod_revision_of(records[-1]) < stop:
                records = store.records_of(key, start, 0, stop)
        found += [_found(key, record) for record in records]
    return [each for each in found if each[0] < stop], stop


def _from_log(
    store: Store, key: bytes, range_end: bytes, start: int, stop: int
) -> tuple[list[_Found], int, int]:
    changed, stop = store.log.changed(start, stop, SLICE_VISITS_MAX)
    open_end = range_end == b"\0"
    wanted = [each for each in changed if each[1] >= key and (open_end or each[1] < range_end)]
    found: list[_Found] = []
    for revision, each in dict.fromkeys(wanted):
        found += [_found(each, record) for record in store.records_of(each, revision, 0, revision + 1)]
    return found, stop, len(changed)


def _found(key: bytes, record: bytes) -> _Found:
    _, mod, _, _, sub = unpack_header(record)
    return mod, sub, key, record


def _gather(store: Store, found: list[_Found], stop: int, visits: int) -> HistorySlice:
    """Whole revisions in order, up to the bounds of a slice."""
    found.sort()
    revisions: list[RevisionChanges] = []
    changes: list[Change] = []
    last = nbytes = 0
    for mod, _, key, record in found:
        if mod != last:
            if nbytes >= SLICE_BYTES_MAX or len(revisions) >= SLICE_REVISIONS_MAX:
                return HistorySlice(revisions, mod, visits)
            changes = []
            revisions.append(RevisionChanges(mod, changes))
            last = mod
        before = _before(store, key, record)
        changes.append((key, record, before))
        nbytes += row_bytes(key, record) + (0 if before is None else len(before))
    return HistorySlice(revisions, stop, visits)


def _before(store: Store, key: bytes, record: bytes) -> bytes | None:
    """The pair before the record's revision, as far as compaction leaves it readable."""
    create, mod, _, _, _ = unpack_header(record)
    if mod - 1 < store.compact_revision or (create == mod and not is_tombstone(record)):
        return None
    return store.record_at(key, mod - 1)

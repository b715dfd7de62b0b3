"""Answering a Range: pick, filter, sort, limit, in etcd's order (3.5 `applierV3backend.Range`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvstore.engine.record import HEADER_BYTES, to_key_value, unpack_header
from kvstore.engine.requests import Range, SortOrder, SortTarget
from kvstore.engine.results import KeyValue, RangeResult
from kvstore.engine.store import Store
from kvstore.errors import InvalidSortOption

_SORT_KEYS: dict[int, Callable[[KeyValue], Any]] = {
    SortTarget.KEY: lambda kv: kv.key,
    SortTarget.VERSION: lambda kv: kv.version,
    SortTarget.CREATE: lambda kv: kv.create_revision,
    SortTarget.MOD: lambda kv: kv.mod_revision,
    SortTarget.VALUE: lambda kv: kv.value,
}

_OPTIONS = slice(Range._fields.index("limit"), Range._fields.index("serializable"))
_NO_OPTIONS = Range(b"")[_OPTIONS]
"""A plain get, by far the most frequent range, is answered without looking at each option."""


def read_range(store: Store, request: Range) -> RangeResult:
    """Raises FutureRevision, Compacted, and InvalidSortOption if that was not checked before."""
    if not request.range_end and request[_OPTIONS] == _NO_OPTIONS:
        record = store.current.get(request.key)
        if record is None:
            return RangeResult(store.visible_revision, [], False, 0)
        return RangeResult(store.visible_revision, [to_key_value(request.key, record)], False, 1)
    revision = store.readable_revision(request.revision)
    current = store.visible_revision
    if request.count_only:
        return RangeResult(current, [], False, store.count(request.key, request.range_end, revision))
    limit = request.limit
    plain = not (
        request.sort_order
        or request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )
    # One more than the limit shows whether there are more. A sort target without an order does
    # not widen the selection: etcd sorts only what the limit let through, and so do we.
    fetch = limit + 1 if plain and limit > 0 else 0
    found, count = store.select(request.key, request.range_end, revision, fetch)
    if request.keys_only and request.sort_target != SortTarget.VALUE:
        kvs = [_without_value(key, record) for key, record in found]
    else:
        kvs = [to_key_value(key, record) for key, record in found]
    if not plain:
        kvs = _filter(kvs, request)
    kvs = _sort(kvs, request.sort_order, request.sort_target)
    more = 0 < limit < len(kvs)
    if more:
        del kvs[limit:]
    if request.keys_only and request.sort_target == SortTarget.VALUE:
        kvs = [kv._replace(value=b"") for kv in kvs]
    return RangeResult(current, kvs, more, count)


def _without_value(key: bytes, record: bytes) -> KeyValue:
    create, mod, version, lease, _ = unpack_header(record)
    assert len(record) >= HEADER_BYTES
    return KeyValue(key, create, mod, version, b"", lease)


def _filter(kvs: list[KeyValue], request: Range) -> list[KeyValue]:
    """Inclusive bounds; 0 is no bound."""
    low, high = request.min_mod_revision, request.max_mod_revision
    if low or high:
        kvs = [kv for kv in kvs if not (high and kv.mod_revision > high) and kv.mod_revision >= low]
    low, high = request.min_create_revision, request.max_create_revision
    if low or high:
        kvs = [kv for kv in kvs if not (high and kv.create_revision > high) and kv.create_revision >= low]
    return kvs


def _sort(kvs: list[KeyValue], order: int, target: int) -> list[KeyValue]:
    """Stable, so that equals stay in key order, also when descending."""
    if order == SortOrder.NONE:
        if target == SortTarget.KEY:
            return kvs
        order = SortOrder.ASCEND
    if order not in (SortOrder.ASCEND, SortOrder.DESCEND):
        return kvs  # unknown: ignored, as in etcd 3.5
    key = _SORT_KEYS.get(target)
    if key is None:
        raise InvalidSortOption
    kvs.sort(key=key, reverse=order == SortOrder.DESCEND)
    return kvs

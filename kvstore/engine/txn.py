"""Transactions: choose the path, check it whole, then run it.

The compares of every level are evaluated against the state before the transaction, so the path
through nested transactions is known before the first operation runs. Then whatever could refuse
an operation of that path is checked. After that nothing can fail, so a transaction is applied
whole or not at all, and nothing ever has to be undone.
"""

from __future__ import annotations

from typing import NamedTuple

from kvstore.engine.ranges import read_range
from kvstore.engine.record import HEADER_BYTES, make_tombstone, to_key_value, unpack_header
from kvstore.engine.requests import (
    OPEN_END,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    Put,
    Range,
    Txn,
)
from kvstore.engine.results import DeleteResult, KeyValue, PutResult, RangeResult, TxnResult
from kvstore.engine.store import Store
from kvstore.engine.validate import check_range
from kvstore.errors import Compacted, FutureRevision, KeyNotFound, LeaseNotFound


class _Path(NamedTuple):
    """A transaction with its branch chosen, nested ones too."""

    succeeded: bool
    steps: tuple[Range | Put | DeleteRange | _Path, ...]


def run_txn(store: Store, txn: Txn) -> TxnResult:
    """Raises KVError, having changed nothing. Does not commit: `revision` counts the changes."""
    path = _choose(store, txn)
    _check_puts(store, path, None)
    _check_ranges(store, path)
    results = _run(store, path)
    return TxnResult(store.visible_revision, path.succeeded, results)


def put(store: Store, request: Put) -> PutResult:
    """One checked put within a transaction or alone. Raises KeyNotFound."""
    old = store.current.get(request.key)
    value, lease = request.value, request.lease
    if request.ignore_value or request.ignore_lease:
        if old is None:
            raise KeyNotFound
        if request.ignore_value:
            value = old[HEADER_BYTES:]
        if request.ignore_lease:
            lease = unpack_header(old)[3]
    store.put(request.key, value, lease)
    prev = to_key_value(request.key, old) if request.prev_kv and old is not None else None
    return PutResult(store.visible_revision, prev)


def delete(store: Store, request: DeleteRange) -> DeleteResult:
    deleted = store.delete_range(request.key, request.range_end)
    prevs: list[KeyValue] = []
    if request.prev_kv:
        prevs = [to_key_value(key, record) for key, record in deleted]
    return DeleteResult(store.visible_revision, len(deleted), prevs)


def _choose(store: Store, txn: Txn) -> _Path:
    succeeded = all(_holds(store, compare) for compare in txn.compares)
    steps: list[Range | Put | DeleteRange | _Path] = []
    for operation in txn.success if succeeded else txn.failure:
        assert operation is not None, "an empty operation was proposed"
        steps.append(_choose(store, operation) if isinstance(operation, Txn) else operation)
    return _Path(succeeded, tuple(steps))


def _holds(store: Store, compare: Compare) -> bool:
    """For every key of the interval; an empty interval stands for one missing key."""
    if not compare.range_end:
        record = store.current.get(compare.key)
        records = [] if record is None else [record]
    else:
        low, high = store.slice_of(store.live, compare.key, compare.range_end)
        records = [store.current[key] for key in store.live[low:high]]
    if not records:
        # A missing key has no value: not even "not equal" holds.
        return compare.target != CompareTarget.VALUE and _verdict(compare, _MISSING)
    return all(_verdict(compare, record) for record in records)


_MISSING = make_tombstone(0, 0)
"""All numbers 0."""


def _verdict(compare: Compare, record: bytes) -> bool:
    """Unknown targets compare as equal, unknown comparisons hold, as in etcd."""
    operand, result = compare.operand, compare.result
    if compare.target == CompareTarget.VALUE:
        value, other = record[HEADER_BYTES:], operand if isinstance(operand, bytes) else b""
        sign = (value > other) - (value < other)
    else:
        number = _number(record, compare.target)
        bound = operand if isinstance(operand, int) else 0
        sign = 0 if number is None else (number > bound) - (number < bound)
    if result == CompareResult.EQUAL:
        return sign == 0
    if result == CompareResult.NOT_EQUAL:
        return sign != 0
    if result == CompareResult.GREATER:
        return sign > 0
    if result == CompareResult.LESS:
        return sign < 0
    return True


def _number(record: bytes, target: int) -> int | None:
    create, mod, version, lease, _ = unpack_header(record)
    if target == CompareTarget.MOD:
        return int(mod)
    if target == CompareTarget.CREATE:
        return int(create)
    if target == CompareTarget.VERSION:
        return int(version)
    if target == CompareTarget.LEASE:
        return int(lease)
    return None


def _check_puts(store: Store, path: _Path, deleted_from: bytes | None) -> bytes | None:
    """In list order. Raises KeyNotFound, LeaseNotFound.

    `deleted_from` is the lowest key from which on an earlier step deletes everything. Only such
    an open-ended deletion can take the key of a later put away (`check_txn` refuses the others).
    etcd overlooks it and then dies in mid-transaction; here the put is refused with the rest.
    """
    for step in path.steps:
        if isinstance(step, Put):
            if step.ignore_value or step.ignore_lease:
                gone = deleted_from is not None and step.key >= deleted_from
                if gone or step.key not in store.current:
                    raise KeyNotFound
            if step.lease and step.lease not in store.leases:
                raise LeaseNotFound
        elif isinstance(step, DeleteRange):
            if step.range_end == OPEN_END and (deleted_from is None or step.key < deleted_from):
                deleted_from = step.key
        elif isinstance(step, _Path):
            deleted_from = _check_puts(store, step, deleted_from)
    return deleted_from


def _check_ranges(store: Store, path: _Path) -> None:
    """Raises FutureRevision, Compacted, InvalidSortOption.

    A revision is checked against the state before the transaction, so the outcome is the same on
    every member. As in etcd a negative one is compared as it stands, which differs from a range
    on its own, where it means the current revision.
    """
    for step in path.steps:
        if isinstance(step, Range):
            check_range(step)
            if step.revision > store.revision:
                raise FutureRevision
            if step.revision and step.revision < store.compact_revision:
                raise Compacted
        elif isinstance(step, _Path):
            _check_ranges(store, step)


def _run(store: Store, path: _Path) -> list[RangeResult | PutResult | DeleteResult | TxnResult]:
    results: list[RangeResult | PutResult | DeleteResult | TxnResult] = []
    for step in path.steps:
        if isinstance(step, Put):
            results.append(put(store, step))
        elif isinstance(step, Range):
            results.append(read_range(store, step))
        elif isinstance(step, DeleteRange):
            results.append(delete(store, step))
        else:
            results.append(TxnResult(0, step.succeeded, _run(store, step)))
    return results

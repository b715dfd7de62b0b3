"""What a request must satisfy before it is proposed: etcd's checks, in etcd's order.

The order decides which of two errors a client sees, so it is part of the contract
(etcd 3.5 `api/v3rpc/key.go`). Nothing here looks at the store: a request that passes can still
be refused when it is applied.
"""

from __future__ import annotations

from kvstore.engine.requests import (
    TXN_DEPTH_MAX,
    DeleteRange,
    Operation,
    Put,
    Range,
    SortOrder,
    SortTarget,
    Txn,
)
from kvstore.errors import (
    DuplicateKey,
    EmptyKey,
    InvalidSortOption,
    KeyNotFound,
    LeaseProvided,
    TooManyOps,
    ValueProvided,
)

TXN_OPERATIONS_MAX = 128
"""etcd's default of --max-txn-ops."""

_SORT_TARGETS = frozenset(int(target) for target in SortTarget)
_SORT_ORDERS = frozenset(int(order) for order in SortOrder)


def check_range(request: Range) -> None:
    """Raises EmptyKey, InvalidSortOption.

    An unknown sort order is ignored, as etcd 3.5 does. An unknown sort *target* takes an etcd 3.5
    process down (it sorts through a nil interface) unless the order is unknown too; there the
    error of 3.6 is given.
    """
    if not request.key:
        raise EmptyKey
    if request.sort_target not in _SORT_TARGETS and request.sort_order in _SORT_ORDERS:
        raise InvalidSortOption


def check_put(request: Put) -> None:
    """Raises EmptyKey, ValueProvided, LeaseProvided."""
    if not request.key:
        raise EmptyKey
    if request.ignore_value and request.value:
        raise ValueProvided
    if request.ignore_lease and request.lease:
        raise LeaseProvided


def check_delete(request: DeleteRange) -> None:
    """Raises EmptyKey."""
    if not request.key:
        raise EmptyKey


def check_txn(txn: Txn, max_ops: int = TXN_OPERATIONS_MAX) -> None:
    """Raises TooManyOps, EmptyKey, KeyNotFound (an operation with no member set), DuplicateKey,
    and what the checks of single requests raise.

    Both branches are checked, whichever will run.
    """
    _check_shape(txn, max_ops)
    _check_overlaps(txn.success)
    _check_overlaps(txn.failure)


def _check_shape(txn: Txn, max_ops: int, depth: int = 0) -> None:
    size = max(len(txn.compares), len(txn.success), len(txn.failure))
    if size > max_ops or depth > TXN_DEPTH_MAX:
        raise TooManyOps
    for compare in txn.compares:
        if not compare.key:
            raise EmptyKey
    for operation in (*txn.success, *txn.failure):
        if isinstance(operation, Range):
            check_range(operation)
        elif isinstance(operation, Put):
            check_put(operation)
        elif isinstance(operation, DeleteRange):
            check_delete(operation)
        elif isinstance(operation, Txn):
            # A child has what its parent leaves, so the product over the levels stays bounded.
            _check_shape(operation, max_ops - size, depth + 1)
        else:
            raise KeyNotFound


class _Deletes:
    """The intervals deleted by a branch, asked for single keys."""

    __slots__ = ("_intervals", "_points")

    def __init__(self) -> None:
        self._points: set[bytes] = set()
        self._intervals: list[tuple[bytes, bytes]] = []

    def add(self, request: DeleteRange) -> None:
        if not request.range_end:
            self._points.add(request.key)
        elif request.key < request.range_end:
            self._intervals.append((request.key, request.range_end))
        # Else the interval is upside down. So is one with an open end, written b"\0": etcd does
        # not see that it overlaps a put, and lets such a transaction run in list order.

    def update(self, other: _Deletes) -> None:
        self._points |= other._points
        self._intervals += other._intervals

    def __contains__(self, key: bytes) -> bool:
        return key in self._points or any(low <= key < high for low, high in self._intervals)


def _check_overlaps(operations: tuple[Operation | None, ...]) -> tuple[set[bytes], _Deletes]:
    """No key is put twice, nor put and deleted, within one branch and what is nested in it.

    Two branches of one nested transaction exclude each other, so they may put the same key.
    Returns what the branch puts and deletes, for the level above.
    """
    deletes = _Deletes()
    for operation in operations:
        if isinstance(operation, DeleteRange):
            deletes.add(operation)
    puts: set[bytes] = set()
    for operation in operations:
        if isinstance(operation, Txn):
            then_puts, then_deletes = _check_overlaps(operation.success)
            else_puts, else_deletes = _check_overlaps(operation.failure)
            for key in sorted(then_puts | else_puts):
                if key in puts or key in deletes:
                    raise DuplicateKey
            puts |= then_puts
            puts |= else_puts
            deletes.update(then_deletes)
            deletes.update(else_deletes)
    for operation in operations:
        if isinstance(operation, Put):
            if operation.key in puts or operation.key in deletes:
                raise DuplicateKey
            puts.add(operation.key)
    return puts, deletes

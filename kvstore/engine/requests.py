"""What can be asked of the state machine: plain values, bytes everywhere, etcd's numbers.

A request is a NamedTuple, so that it is cheap to make, cannot change after it was checked, and
carries no generated message into the engine. Integers are int64 (member ids uint64) as on the
wire. The open enums of proto3 stay plain ints where a client may send an unknown number.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from kvstore.engine.lease_commands import LEASE_GRANT_COST_BYTES, LeaseCommand, LeaseGrant

OPEN_END = b"\0"
"""As `range_end`: no upper bound, every key from `key` on."""

PUT_OVERHEAD_BYTES = 256
"""What etcd adds to key and value when it weighs a put against the quota (`kvOverhead`)."""

TXN_DEPTH_MAX = 128
"""Levels of transactions within a transaction. With the default limit of 128 operations nothing can
be deeper, as each level takes at least one off its parent's; with a larger limit the depth is still
bounded, since everything that walks a transaction recurses."""


class SortOrder(IntEnum):
    NONE = 0
    ASCEND = 1
    DESCEND = 2


class SortTarget(IntEnum):
    KEY = 0
    VERSION = 1
    CREATE = 2
    MOD = 3
    VALUE = 4


class CompareResult(IntEnum):
    EQUAL = 0
    GREATER = 1
    LESS = 2
    NOT_EQUAL = 3


class CompareTarget(IntEnum):
    VERSION = 0
    CREATE = 1
    MOD = 2
    VALUE = 3
    LEASE = 4


class AlarmAction(IntEnum):
    GET = 0
    ACTIVATE = 1
    DEACTIVATE = 2


class AlarmType(IntEnum):
    NONE = 0
    NOSPACE = 1
    CORRUPT = 2


class Range(NamedTuple):
    """Read keys. `range_end` empty: the single key; `OPEN_END`: all from `key`; else half-open."""

    key: bytes
    range_end: bytes = b""
    limit: int = 0
    """Most pairs to return; 0 or less means all."""
    revision: int = 0
    """Read the store as it was then; 0 or less means now."""
    sort_order: int = SortOrder.NONE
    sort_target: int = SortTarget.KEY
    keys_only: bool = False
    count_only: bool = False
    min_mod_revision: int = 0
    max_mod_revision: int = 0
    min_create_revision: int = 0
    max_create_revision: int = 0
    serializable: bool = False
    """Whether the member may answer from what it has applied. The engine itself does not care."""


class Put(NamedTuple):
    key: bytes
    value: bytes = b""
    lease: int = 0
    prev_kv: bool = False
    ignore_value: bool = False
    """Keep the present value; `value` must be empty and the key must exist."""
    ignore_lease: bool = False
    """Keep the present lease; `lease` must be 0 and the key must exist."""


class DeleteRange(NamedTuple):
    """Delete keys; the interval is as in `Range`."""

    key: bytes
    range_end: bytes = b""
    prev_kv: bool = False


class Compare(NamedTuple):
    """One condition of a transaction, true when it holds for every key of the interval.

    `operand` is the member of the request's union that belongs to `target`: bytes for VALUE, an
    int for the others. A union that is empty, or holds another target's member, compares as
    0 or b"": the builder of the request fills that in.
    """

    key: bytes
    target: int
    result: int
    operand: int | bytes
    range_end: bytes = b""


class Txn(NamedTuple):
    """If all of `compares` hold, run `success`, else `failure`, as one atomic step.

    An operation of None is a request operation with no member set; `check_txn` refuses it.
    """

    compares: tuple[Compare, ...] = ()
    success: tuple[Operation | None, ...] = ()
    failure: tuple[Operation | None, ...] = ()


Operation = Range | Put | DeleteRange | Txn


class Compact(NamedTuple):
    """Give up history below `revision`."""

    revision: int
    physical: bool = False
    """Drop a first part of what was given up at once, instead of leaving all to the commands to come."""
    resume: bool = False
    """Give up nothing more, only drop a further part; `revision` means nothing then."""


class SetMemberAttributes(NamedTuple):
    """A member publishes its name and the URLs at which clients reach it."""

    member_id: int
    name: str
    client_urls: tuple[str, ...]


class Alarm(NamedTuple):
    """Raise or clear an alarm, which is replicated and survives restarts."""

    action: int
    member_id: int
    alarm: int


Command = Put | DeleteRange | Txn | Compact | SetMemberAttributes | Alarm | LeaseCommand
"""What can be proposed. A lone Range never is: reads do not go through the log."""


def is_read_only(txn: Txn) -> bool:
    """Whether no branch, at any depth, can write: such a transaction needs no log entry."""
    return all(
        isinstance(operation, Range) or (isinstance(operation, Txn) and is_read_only(operation))
        for operation in (*txn.success, *txn.failure)
    )


def is_serializable(txn: Txn) -> bool:
    """Whether a read-only transaction may be answered without a quorum: all its ranges say so.

    As in etcd, a nested transaction is never serializable.
    """
    return all(
        isinstance(operation, Range) and operation.serializable for operation in (*txn.success, *txn.failure)
    )


def quota_cost_bytes(request: Command | Range) -> int:
    """Bytes a request may add to the store, as the quota counts them; 0 if it cannot add any.

    A transaction costs the dearer of its two branches. Unlike etcd, which overlooks them, puts in
    nested transactions count.
    """
    if isinstance(request, Put):
        return PUT_OVERHEAD_BYTES + len(request.key) + len(request.value)
    if isinstance(request, Txn):
        return max(_branch_cost_bytes(request.success), _branch_cost_bytes(request.failure))
    if isinstance(request, LeaseGrant):
        return LEASE_GRANT_COST_BYTES
    return 0


def _branch_cost_bytes(operations: tuple[Operation | None, ...]) -> int:
    return sum(quota_cost_bytes(operation) for operation in operations if operation is not None)

"""What the state machine answers.

`revision` in each result is what etcd puts into the header of that response: for a write or a
whole transaction the revision after it, for a range the current revision even when an older one
was read. A nested `TxnResult` carries 0, because etcd sends its header empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias, TypeVar

from kvstore.errors import KVError


class KeyValue(NamedTuple):
    key: bytes
    create_revision: int
    mod_revision: int
    version: int
    value: bytes
    lease: int


class RangeResult(NamedTuple):
    revision: int
    kvs: Sequence[KeyValue]
    more: bool
    """The limit left something out."""
    count: int  # type: ignore[assignment]  # hides tuple.count, which has no caller
    """Keys in the interval, whatever limit and filters left of them."""


class PutResult(NamedTuple):
    revision: int
    prev: KeyValue | None
    """The pair before the put, if it was asked for and existed."""


class DeleteResult(NamedTuple):
    revision: int
    deleted: int
    prevs: Sequence[KeyValue]
    """The deleted pairs in key order, if they were asked for."""


class TxnResult(NamedTuple):
    revision: int
    succeeded: bool
    results: Sequence[RangeResult | PutResult | DeleteResult | TxnResult]


class CompactResult(NamedTuple):
    revision: int
    sweeping: bool
    """Some of what was given up is still stored."""


class AlarmMember(NamedTuple):
    member_id: int
    alarm: int


class AlarmResult(NamedTuple):
    revision: int
    alarms: Sequence[AlarmMember]
    """The alarm acted on; empty when there was nothing to do."""


class LeaseGrantResult(NamedTuple):
    revision: int
    id: int
    ttl_seconds: int


class LeaseResult(NamedTuple):
    """Of a revocation, an expiry or a checkpoint."""

    revision: int
    acted: bool
    """False for a late command of a lessor, which changed nothing."""


class MemberResult(NamedTuple):
    revision: int


class MembersResult(NamedTuple):
    """Of a membership change: everyone after it."""

    revision: int
    members: tuple[Member, ...]


Result = (
    RangeResult
    | PutResult
    | DeleteResult
    | TxnResult
    | CompactResult
    | AlarmResult
    | MemberResult
    | MembersResult
    | LeaseGrantResult
    | LeaseResult
)

R = TypeVar("R")

Outcome: TypeAlias = R | KVError
"""Of one command: its result, or the error that refused it, not raised."""


class Member(NamedTuple):
    id: int
    name: str
    """Empty until the member has started once."""
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...] = ()
    is_learner: bool = False


class Event(NamedTuple):
    """One change. A deletion's `kv` has only key and mod_revision, as etcd sends it."""

    is_delete: bool
    kv: KeyValue
    prev: KeyValue | None


Change = tuple[bytes, bytes, bytes | None]
"""One change, as the store keeps it: the key, and what only `to_event` understands."""


class RevisionChanges(NamedTuple):
    """All changes of one revision, in the order they were made; never split."""

    revision: int
    changes: Sequence[Change]

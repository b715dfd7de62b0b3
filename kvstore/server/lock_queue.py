"""Queues of keys under one name: who comes first by create_revision holds the lock, or leads.

The layout is etcd's (`client/v3/concurrency`): each contender puts `<name>/<lease in hex>`, attached to its
lease, and waits until no key under `<name>/` was created before its own. So these places and those of etcd's
own clients exclude one another. What differs from the recipe is the work: a contender finds the key before
its own in this member's state, and the applied deletion of that key wakes it, without asking anybody.

Before a contender that waited is told that it holds, a read round proves that its key still stands: a place
whose lease ran out meanwhile is an error, never a success. The lease is the caller's to renew: waiting renews
nothing, as in etcd, which gives up the renewals of its session (`Session.Orphan`) before it queues. A
contender whose caller leaves is taken out of the queue. When it is not known whether a key was put, nothing
is undone: a retry by the same lease on another member may already hold through it, and else the end of the
lease removes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from kvstore.engine import (
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    KeyValue,
    Put,
    Range,
    SortOrder,
    SortTarget,
    Txn,
)
from kvstore.errors import KVError, RequestError, TooManyRequests
from kvstore.server.local_member import LocalMember
from kvstore.server.watch_hub import Subscription

logger = logging.getLogger("kvstore.server")

LEASE_TTL_SECONDS = 60
"""Of the lease made for a contender that brings none, as etcd's sessions have it. Nobody renews it."""

WAITERS_MAX = 65_536
"""Contenders that wait on one member; beyond it they are refused."""


class SessionExpired(RequestError):
    """The place in the queue is gone: its lease ended, or somebody deleted its key."""

    text = "mutex: session is expired"


class NotElected(RequestError):
    """The candidate's key is gone: its lease ended, or it resigned."""

    text = "election: not leader"


class Held(NamedTuple):
    """A place at the head of its queue."""

    key: bytes
    create_revision: int
    """Of the key: what the holder is known by."""
    lease: int
    revision: int
    """Of the store, when the place was found to be at the head."""
    entered_revision: int
    """Of the store, when the place was taken or found."""


OnAcquired = Callable[[Held | KVError], None]
"""Called once, unless the place was cancelled first."""


def prefix_of(name: bytes) -> bytes:
    """What all keys of a queue begin with."""
    return name + b"/"


def end_of(prefix: bytes) -> bytes:
    """The end of the interval of a queue's keys."""
    return prefix[:-1] + b"0"  # "/" is followed by "0"


def first_of(prefix: bytes) -> Range:
    """A read of the key at the head of a queue."""
    return Range(prefix, end_of(prefix), limit=1, sort_order=SortOrder.ASCEND, sort_target=SortTarget.CREATE)


def is_queue_entry(key: bytes, create_revision: int) -> Compare:
    """The condition that a key is the one created at this revision; 0: that there is none."""
    return Compare(key, CompareTarget.CREATE, CompareResult.EQUAL, create_revision)


class LockQueues:
    """All contenders of one member."""

    def __init__(self, member: LocalMember) -> None:
        self.member = member
        self.waiters = 0
        """Contenders not settled. At most WAITERS_MAX."""

    def enter(
        self,
        name: bytes,
        lease: int,
        on_result: OnAcquired,
        *,
        value: bytes | None = None,
        gone: type[RequestError] = SessionExpired,
    ) -> Waiter:
        """Queue up. `value` is what a candidate proclaims, also when its key stands already; None for a
        lock. `gone` is the error for a place that disappeared. Raises TooManyRequests, NoSpace."""
        if self.waiters >= WAITERS_MAX:
            raise TooManyRequests
        self.waiters += 1
        waiter = Waiter(self, prefix_of(name), value, on_result, gone)
        try:
            waiter.begin(lease)
        except KVError:
            self.waiters -= 1
            raise
        return waiter


class Waiter:
    """One contender, from its arrival until it holds, fails or leaves."""

    def __init__(
        self,
        queues: LockQueues,
        prefix: bytes,
        value: bytes | None,
        on_result: OnAcquired,
        gone: type[RequestError],
    ) -> None:
        self._queues = queues
        self._member = queues.member
        self._prefix = prefix
        self._value = value
        self._complete: OnAcquired | None = on_result
        """None once told, or once the caller left."""
        self._gone = gone
        self._key = b""
        """Set with the lease."""
        self._lease = 0
        self._create_revision = 0
        """Of our key; 0 until we know that it stands."""
        self._entered_revision = 0
        self._before: Subscription | None = None
        """Tells of the key before ours; set exactly while we wait for its deletion."""

    def begin(self, lease: int) -> None:
        if lease:
            self._enter(lease)
        else:
            self._member.lessor.grant(0, LEASE_TTL_SECONDS, self._leased)

    def cancel(self) -> None:
        """The caller left: leave the queue. Idempotent; harmless once settled."""
        if self._complete is not None:
            self._end()
            self._withdraw()

    # -- taking the place ------------------------------------------------------------------------

    def _leased(self, outcome: Any) -> None:
        if self._complete is None:
            return
        if isinstance(outcome, KVError):
            self._tell(outcome)
            return
        try:
            self._enter(outcome.id)
        except KVError as error:
            self._tell(error)

    def _enter(self, lease: int) -> None:
        self._lease = lease
        self._key = self._prefix + b"%x" % lease
        txn = Txn(
            (is_queue_entry(self._key, 0),),
            (Put(self._key, self._value or b"", lease), first_of(self._prefix)),
            (Range(self._key), first_of(self._prefix)),
        )
        self._member.quota.admit(txn)
        self._member.propose(txn, self._entered)

    def _entered(self, outcome: Any) -> None:
        if isinstance(outcome, KVError):
            self._tell(outcome)
            return
        own, first = outcome.results
        mine: KeyValue | None = None if outcome.succeeded else own.kvs[0]
        self._create_revision = outcome.revision if mine is None else mine.create_revision
        self._entered_revision = outcome.revision
        if self._complete is None:
            self._withdraw()
        elif mine is not None and self._value is not None and mine.value != self._value:
            self._proclaim(self._value)
        elif first.kvs[0].create_revision == self._create_revision:
            self._tell(self._held(outcome.revision))
        else:
            self._advance()

    def _proclaim(self, value: bytes) -> None:
        """Our lease campaigned before, with another value."""
        txn = Txn((is_queue_entry(self._key, self._create_revision),), (Put(self._key, value, self._lease),))
        try:
            self._member.quota.admit(txn)
            self._member.propose(txn, self._proclaimed)
        except KVError as error:
            self._withdraw()
            self._tell(error)

    def _proclaimed(self, outcome: Any) -> None:
        if self._complete is None:
            self._withdraw()
        elif isinstance(outcome, KVError):
            self._withdraw()
            self._tell(outcome)
        elif not outcome.succeeded:
            self._tell(self._gone())
        else:
            self._advance()

    # -- waiting ---------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Wait for the key created last before ours; prove that we hold when there is none."""
        if self._before is not None:
            self._before.cancel()
            self._before = None
        before = Range(
            self._prefix,
            end_of(self._prefix),
            limit=1,
            sort_order=SortOrder.DESCEND,
            sort_target=SortTarget.CREATE,
            keys_only=True,
            max_create_revision=self._create_revision - 1,
        )
        found = self._member.engine.range(before).kvs
        if not found:
            self._member.barrier(self._confirmed)
            return
        self._before = self._member.watches.subscribe(
            found[0].key, b"", 0, self._changed, lambda _: self._advance()
        )

    def _changed(self, _revision: int, events: list[Any]) -> None:
        if self._complete is not None and any(event.is_delete for event in events):
            self._advance()

    def _confirmed(self, error: KVError | None) -> None:
        """Everything acknowledged before is applied here: is the key still ours?"""
        if self._complete is None:
            return
        if error is not None:
            self._withdraw()
            self._tell(error)
            return
        result = self._member.engine.range(Range(self._key, keys_only=True))
        if not result.kvs or result.kvs[0].create_revision != self._create_revision:
            self._tell(self._gone())
        else:
            self._tell(self._held(result.revision))

    # -- the end ---------------------------------------------------------------------------------

    def _held(self, revision: int) -> Held:
        return Held(self._key, self._create_revision, self._lease, revision, self._entered_revision)

    def _tell(self, outcome: Held | KVError) -> None:
        on_result = self._complete
        if on_result is not None:
            self._end()
            on_result(outcome)

    def _end(self) -> None:
        self._complete = None
        self._queues.waiters -= 1
        if self._before is not None:
            self._before.cancel()
            self._before = None

    def _withdraw(self) -> None:
        """Delete our key, if it is known to stand; the end of the lease deletes it otherwise."""
        if not self._create_revision:
            return
        ours = is_queue_entry(self._key, self._create_revision)
        self._member.propose(Txn((ours,), (DeleteRange(self._key),)), self._withdrawn)

    def _withdrawn(self, outcome: Any) -> None:
        if isinstance(outcome, KVError):
            logger.warning("a waiter's key is left to the end of its lease %x: %s", self._lease, outcome)

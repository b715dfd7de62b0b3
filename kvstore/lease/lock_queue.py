"""Lock queues: the waiter with the lowest create_revision under a name holds the lock, or leads.

The layout is etcd's (`client/v3/concurrency`): each waiter puts `<name>/<lease in hex>`, attached to its
lease, and waits until no older key exists under `<name>/`. So it excludes waiters of etcd's own clients, too.
Unlike etcd's recipe, a waiter finds the next older key in this member's state, and the applied deletion of
that key wakes it, without a request to any other member.

A waiter that waited holds only after a read round has confirmed that its key still exists: a waiter whose
lease expired gets an error. The caller keeps the lease alive; waiting does not, as in etcd, which orphans its
session (`Session.Orphan`) before it queues. A waiter whose caller left withdraws its key. When the outcome of
its put is unknown, it withdraws nothing: a retry with the same lease on another member may already hold
through that key, and otherwise the expiry of the lease deletes it.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from kvstore.engine import (
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    Event,
    LeaseGrantResult,
    Outcome,
    Put,
    Range,
    RangeResult,
    SortOrder,
    SortTarget,
    Txn,
    TxnResult,
)
from kvstore.errors import KVError, RequestError, TooManyRequests
from kvstore.lease.lessor import Lessor
from kvstore.replica.outcome import OnResult
from kvstore.replica.replica import Replica
from kvstore.watch.watch_hub import Subscription, WatchHub

logger = logging.getLogger("kvstore.server")

LEASE_TTL_SECONDS = 60
"""Of the lease made for a waiter without one, as of etcd's sessions. No keep-alive extends it."""

WAITERS_MAX = 65_536
"""On one member; more are refused."""


class SessionExpired(RequestError):
    """The queue entry is gone: its lease expired, or a client deleted its key."""

    text = "mutex: session is expired"


class NotElected(RequestError):
    """The candidate's key is gone: its lease expired, or it resigned."""

    text = "election: not leader"


class Held(NamedTuple):
    """The entry at the head of its queue."""

    key: bytes
    create_revision: int
    """Of the key: identifies the holder."""
    lease: int
    revision: int
    """Of the store, when the entry was found at the head."""
    entered_revision: int
    """Of the store, when the key was put or found."""


def prefix_of(name: bytes) -> bytes:
    return name + b"/"


def end_of(prefix: bytes) -> bytes:
    return prefix[:-1] + b"0"  # "/" is followed by "0"


def first_of(prefix: bytes) -> Range:
    """A read of the key at the head of a queue."""
    return Range(prefix, end_of(prefix), limit=1, sort_order=SortOrder.ASCEND, sort_target=SortTarget.CREATE)


def is_queue_entry(key: bytes, create_revision: int) -> Compare:
    """The condition that the key was created at this revision; 0: that it does not exist."""
    return Compare(key, CompareTarget.CREATE, CompareResult.EQUAL, create_revision)


class LockQueues:
    """All waiters of one member."""

    def __init__(self, replica: Replica, lessor: Lessor, watches: WatchHub) -> None:
        self.replica = replica
        self.lessor = lessor
        self.watches = watches
        self.waiters = 0
        """At most WAITERS_MAX."""

    def enter(
        self,
        name: bytes,
        lease: int,
        on_result: OnResult[Held],
        *,
        value: bytes | None = None,
        gone: type[RequestError] = SessionExpired,
    ) -> Waiter:
        """Enter the queue; `on_result` is called once, unless the waiter is cancelled first.

        `value` is what a candidate proclaims, also when its key exists already; None for a lock. `gone` is
        the error for an entry that disappeared. Raises TooManyRequests, NoSpace.
        """
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
    """One queue entry, from its arrival until it holds, fails or is cancelled."""

    def __init__(
        self,
        queues: LockQueues,
        prefix: bytes,
        value: bytes | None,
        on_result: OnResult[Held],
        gone: type[RequestError],
    ) -> None:
        self._queues = queues
        self._replica = queues.replica
        self._prefix = prefix
        self._value = value
        self._on_result: OnResult[Held] | None = on_result
        """None once it is called or cancelled."""
        self._gone = gone
        self._key = b""
        """Set with the lease."""
        self._lease = 0
        self._create_revision = 0
        """Of our key; 0 until we know that it exists."""
        self._entered_revision = 0
        self._before: Subscription | None = None
        """Watches the next older key; set exactly while we wait for its deletion."""

    def begin(self, lease: int) -> None:
        if lease:
            self._enter(lease)
        else:
            self._queues.lessor.grant(0, LEASE_TTL_SECONDS, self._leased)

    def cancel(self) -> None:
        """The caller left: leave the queue. Idempotent; harmless after the result."""
        if self._on_result is not None:
            self._end()
            self._withdraw()

    # -- entering --------------------------------------------------------------------------------

    def _leased(self, outcome: Outcome[LeaseGrantResult]) -> None:
        if self._on_result is None:
            return
        if isinstance(outcome, KVError):
            self._complete(outcome)
            return
        try:
            self._enter(outcome.id)
        except KVError as error:
            self._complete(error)

    def _enter(self, lease: int) -> None:
        self._lease = lease
        self._key = self._prefix + b"%x" % lease
        txn = Txn(
            (is_queue_entry(self._key, 0),),
            (Put(self._key, self._value or b"", lease), first_of(self._prefix)),
            (Range(self._key), first_of(self._prefix)),
        )
        self._replica.quota.admit(txn)
        self._replica.propose(txn, self._entered)

    def _entered(self, outcome: Outcome[TxnResult]) -> None:
        if isinstance(outcome, KVError):
            self._complete(outcome)
            return
        own, first = outcome.results
        mine = own.kvs[0] if isinstance(own, RangeResult) else None
        self._create_revision = outcome.revision if mine is None else mine.create_revision
        self._entered_revision = outcome.revision
        assert isinstance(first, RangeResult), "the second operation of either branch"
        if self._on_result is None:
            self._withdraw()
        elif mine is not None and self._value is not None and mine.value != self._value:
            self._proclaim(self._value)
        elif first.kvs[0].create_revision == self._create_revision:
            self._complete(self._held(outcome.revision))
        else:
            self._advance()

    def _proclaim(self, value: bytes) -> None:
        """Our lease campaigned before, with another value: put ours."""
        txn = Txn((is_queue_entry(self._key, self._create_revision),), (Put(self._key, value, self._lease),))
        try:
            self._replica.quota.admit(txn)
            self._replica.propose(txn, self._proclaimed)
        except KVError as error:
            self._withdraw()
            self._complete(error)

    def _proclaimed(self, outcome: Outcome[TxnResult]) -> None:
        if self._on_result is None:
            self._withdraw()
        elif isinstance(outcome, KVError):
            self._withdraw()
            self._complete(outcome)
        elif not outcome.succeeded:
            self._complete(self._gone())
        else:
            self._advance()

    # -- waiting ---------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Wait for the deletion of the next older key; without one, confirm that we hold."""
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
        found = self._replica.engine.range(before).kvs
        if not found:
            self._replica.barrier(self._confirmed)
            return
        self._before = self._queues.watches.subscribe(
            found[0].key, b"", 0, self._changed, lambda _: self._advance()
        )

    def _changed(self, _revision: int, events: list[Event]) -> None:
        if self._on_result is not None and any(event.is_delete for event in events):
            self._advance()

    def _confirmed(self, error: KVError | None) -> None:
        """Everything acknowledged before is applied here: does our key still exist?"""
        if self._on_result is None:
            return
        if error is not None:
            self._withdraw()
            self._complete(error)
            return
        result = self._replica.engine.range(Range(self._key, keys_only=True))
        if not result.kvs or result.kvs[0].create_revision != self._create_revision:
            self._complete(self._gone())
        else:
            self._complete(self._held(result.revision))

    # -- completing ------------------------------------------------------------------------------

    def _held(self, revision: int) -> Held:
        return Held(self._key, self._create_revision, self._lease, revision, self._entered_revision)

    def _complete(self, outcome: Outcome[Held]) -> None:
        on_result = self._on_result
        if on_result is not None:
            self._end()
            on_result(outcome)

    def _end(self) -> None:
        self._on_result = None
        self._queues.waiters -= 1
        if self._before is not None:
            self._before.cancel()
            self._before = None

    def _withdraw(self) -> None:
        """Delete our key, if we know that it exists; otherwise the expiry of the lease deletes it."""
        if not self._create_revision:
            return
        ours = is_queue_entry(self._key, self._create_revision)
        self._replica.propose(Txn((ours,), (DeleteRange(self._key),)), self._withdrawn)

    def _withdrawn(self, outcome: Outcome[TxnResult]) -> None:
        if isinstance(outcome, KVError):
            logger.warning("a waiter's key stays until its lease %x expires: %s", self._lease, outcome)

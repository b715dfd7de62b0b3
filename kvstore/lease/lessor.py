"""The lessor: grants, keeps alive, expires and revokes leases.

A client that counts the TTL from the sending of its last acknowledged keep-alive cannot outlive its key:

* Only the leader measures time, on its monotonic clock. A new leader restarts every lease with its full TTL
  at a moment after its election.
* The leader acknowledges a keep-alive only after a read round that began after the keep-alive arrived. That
  round confirms that no other leader was elected before, so the next leader restarts the TTL later.
* With checkpoints, a new leader starts a long lease with the remaining TTL of the last checkpoint; so the
  leader first undoes the checkpoint, then acknowledges the keep-alive.
* An expiry is a command that names term and grant. A keep-alive waits for the outcome of a proposed expiry.

A follower forwards keep-alives and time-to-live requests to the leader, all of one loop iteration in one
leader RPC. An unknown lease has a TTL of 0 in a keep-alive and of -1 in a time-to-live, as in etcd.

    request    kind u8 | lease i64 ...
    response   granted i64, remaining i64 (in milliseconds) per lease; granted 0: no such lease
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from struct import Struct
from typing import NamedTuple

from kvstore.engine import (
    LEASE_CHECKPOINTS_MAX,
    Checkpoint,
    LeaseCheckpoint,
    LeaseExpire,
    LeaseGrant,
    LeaseGrantResult,
    LeaseResult,
    LeaseRevoke,
    Outcome,
)
from kvstore.errors import KVError, LeaseTtlTooLarge, TooManyRequests
from kvstore.lease.lease_clock import CHECKPOINT_INTERVAL_S, Due, LeaseClock
from kvstore.replica.outcome import OnResult, as_kv_error
from kvstore.replica.replica import Replica
from raft.node import NodeError, NodeEvent

logger = logging.getLogger("kvstore.server")

LEASE_TTL_SECONDS_MAX = 9_000_000_000
"""etcd's bound (`MaxLeaseTTL`)."""

EXPIRY_SCAN_S = 0.25
"""Between two scans for expired leases: a key outlives its lease by at most about this."""

EXPIRIES_PER_SCAN_MAX = 500
"""2000 leases a second: a hundred thousand that expire together are gone within a minute, and a scan costs
the loop some milliseconds."""

EXPIRIES_IN_FLIGHT_MAX = 1000
"""Expiries proposed without an outcome: a slow log slows the expiries to its own rate."""

LEASES_PER_RPC_MAX = LEASE_CHECKPOINTS_MAX
"""Leases in one leader RPC: a few kilobytes, some milliseconds of the leader's loop."""

HELD_PER_LEASE_MAX = 16
"""Keep-alives that wait for one proposed expiry. The leader drops older ones; their clients retry."""

WAITING_MAX = 65_536
"""Keep-alives and time-to-live requests of this member without an answer; more are refused."""

KEEP_ALIVE, TIME_TO_LIVE = 1, 2

_LEASE = Struct(">q")
_LEFT = Struct(">qq")


class TimeLeft(NamedTuple):
    """The leader's answer for one lease."""

    granted_seconds: int
    """0 for an unknown lease."""
    remaining_ms: int


class _KeepAlive:
    """The keep-alives of one leader RPC, on the leader; some may wait for a proposed expiry."""

    __slots__ = ("answers", "open", "reply")

    def __init__(self, count: int, reply: Callable[[bytes], None]) -> None:
        self.answers = [TimeLeft(0, 0)] * count
        self.open = 0
        """Leases whose expiry is proposed without an outcome."""
        self.reply = reply


class Lessor:
    """One per member; only the leader's measures time."""

    _loop: asyncio.AbstractEventLoop
    """Its clock is the leader's; set by `start`."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._rng = random.Random()  # noqa: S311  replaced at the start; names leases, guards no secret
        self.ttl_seconds_min = 1
        """Shorter TTLs are raised to it."""
        self._clock = LeaseClock(lambda: replica.engine.leases)
        self._outgoing: dict[int, list[tuple[int, OnResult[TimeLeft]]]] = {KEEP_ALIVE: [], TIME_TO_LIVE: []}
        """By kind: requests that go to the leader in the next loop iteration."""
        self._waiting_count = 0
        """Requests of this member without an answer. At most WAITING_MAX."""
        self._held: dict[int, list[tuple[_KeepAlive, int]]] = {}
        """Lease with a proposed expiry, to the keep-alives (with its position in each) that wait for it."""
        self._retries: deque[Due] = deque()
        """Expiries without a known outcome, to be proposed again."""
        self._checkpoints: deque[int] = deque()
        """Leases whose checkpoint is due, one command's worth in each scan. Their remaining TTL is read only
        then: a checkpoint must not undo a keep-alive that came before it."""
        self._checkpoint_commands = 0
        """Proposed so far; numbers the checkpoints."""
        self._checkpoints_at_s = 0.0
        """When the next round of checkpoints begins; only while this member leads."""
        self._in_flight = 0
        """Expiries proposed without an outcome. At most EXPIRIES_IN_FLIGHT_MAX."""
        self._scan_timer: asyncio.TimerHandle | None = None
        """Set exactly while this member leads and is not stopped."""
        self.kept_alive = 0
        """Keep-alives acknowledged by this member as the leader, since start."""

    def start(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        election_timeout_ms: int,
        checkpoints: bool = False,
    ) -> None:
        """Subscribe to leader changes and serve leader RPCs. Before the node starts."""
        self._clock.checkpoints = checkpoints
        self._loop = loop
        self._rng = rng
        # etcd: three halves of the election timeout, rounded up to whole seconds.
        self.ttl_seconds_min = -(-3 * election_timeout_ms // 2000)
        self._replica.node.subscribe(self._on_event)
        self._replica.node.answer_with(self._answer)

    def stop(self) -> None:
        """Expire nothing any more; idempotent."""
        if self._scan_timer is not None:
            self._scan_timer.cancel()
            self._scan_timer = None

    # -- any member's side -----------------------------------------------------------------------

    def grant(self, lease_id: int, ttl_seconds: int, on_result: OnResult[LeaseGrantResult]) -> None:
        """Create a lease; id 0 lets this member choose one, too short a TTL is raised to the minimum.

        Raises NoSpace, LeaseTtlTooLarge; every other error, such as LeaseExists, goes to `on_result`.
        """
        command = LeaseGrant(lease_id, max(ttl_seconds, self.ttl_seconds_min))
        self._replica.quota.admit(command)
        if ttl_seconds > LEASE_TTL_SECONDS_MAX:
            raise LeaseTtlTooLarge
        while not command.id:
            command = command._replace(id=self._rng.getrandbits(63))
        self._replica.propose(command, on_result)

    def revoke(self, lease_id: int, on_result: OnResult[LeaseResult]) -> None:
        """Delete a lease and its keys now. Every error, such as LeaseNotFound, goes to `on_result`."""
        self._replica.propose(LeaseRevoke(lease_id), on_result)

    def keep_alive(self, lease_id: int, on_result: OnResult[TimeLeft]) -> None:
        """Reset a lease to its full TTL. Never raises."""
        self._call_leader(KEEP_ALIVE, lease_id, on_result)

    def time_left(self, lease_id: int, on_result: OnResult[TimeLeft]) -> None:
        """Look up the remaining TTL of a lease. Never raises."""
        self._call_leader(TIME_TO_LIVE, lease_id, on_result)

    def leases(self) -> list[int]:
        self._clock.sync(self._loop.time())
        return self._clock.by_deadline() if self._clock.term else self._replica.engine.leases.ids()

    def _call_leader(self, kind: int, lease_id: int, on_result: OnResult[TimeLeft]) -> None:
        if self._waiting_count >= WAITING_MAX:
            on_result(TooManyRequests())
            return
        self._waiting_count += 1
        outgoing = self._outgoing[kind]
        if not outgoing:
            self._loop.call_soon(self._send, kind)
        outgoing.append((lease_id, on_result))

    def _send(self, kind: int) -> None:
        outgoing, self._outgoing[kind] = self._outgoing[kind], []
        for start in range(0, len(outgoing), LEASES_PER_RPC_MAX):
            part = outgoing[start : start + LEASES_PER_RPC_MAX]
            data = bytes((kind,)) + b"".join(_LEASE.pack(lease_id) for lease_id, _ in part)
            self._replica.node.call_leader(data, partial(self._answered, part))

    def _answered(
        self, sent: Sequence[tuple[int, OnResult[TimeLeft]]], data: bytes, error: NodeError | None
    ) -> None:
        self._waiting_count -= len(sent)
        if error is not None:
            failure = as_kv_error(error)
            for _, on_result in sent:
                on_result(failure)
            return
        for (_, on_result), left in zip(sent, _LEFT.iter_unpack(data), strict=True):
            on_result(TimeLeft(*left))

    # -- the leader's side -----------------------------------------------------------------------

    def _leads(self, term: int) -> bool:
        node = self._replica.node
        return bool(term) and self._clock.term == term == node.term and node.leader == self._replica.member_id

    def _answer(self, leader_request: bytes, reply: Callable[[bytes], None]) -> None:
        """Serve a leader RPC of any member, this one included. No response once another member leads."""
        lease_ids = [lease_id for (lease_id,) in _LEASE.iter_unpack(leader_request[1:])]
        confirmed = self._keep_alive if leader_request[0] == KEEP_ALIVE else self._look_up
        self._replica.barrier(partial(self._confirmed, self._clock.term, lease_ids, reply, confirmed))

    def _confirmed(
        self,
        term: int,
        lease_ids: list[int],
        reply: Callable[[bytes], None],
        confirmed: Callable[[int, list[int], Callable[[bytes], None]], None],
        error: KVError | None,
    ) -> None:
        """A round that began after the request arrived has confirmed that this member led."""
        if error is None and self._leads(term):
            self._clock.sync(self._loop.time())
            confirmed(term, lease_ids, reply)

    def _keep_alive(self, term: int, lease_ids: list[int], reply: Callable[[bytes], None]) -> None:
        shortened = [lease_id for lease_id in dict.fromkeys(lease_ids) if self._clock.shortened(lease_id)]
        if shortened:
            self._undo_checkpoints(term, shortened, partial(self._keep_alive, term, lease_ids, reply))
            return
        keep_alive = _KeepAlive(len(lease_ids), reply)
        for position, lease_id in enumerate(lease_ids):
            if lease_id in self._clock.expiring:
                keep_alive.open += 1
                held = self._held.setdefault(lease_id, [])
                del held[: max(0, len(held) + 1 - HELD_PER_LEASE_MAX)]
                held.append((keep_alive, position))
            else:
                self._keep_one_alive(keep_alive, position, lease_id)
        if not keep_alive.open:
            _reply(keep_alive)

    def _keep_one_alive(self, keep_alive: _KeepAlive, position: int, lease_id: int) -> None:
        granted_seconds = self._clock.keep_alive(lease_id, self._loop.time())
        self.kept_alive += granted_seconds > 0
        keep_alive.answers[position] = TimeLeft(granted_seconds, granted_seconds * 1000)

    def _undo_checkpoints(self, term: int, lease_ids: list[int], then: Callable[[], None]) -> None:
        """Make the next leader start these with their full TTL, then continue; no response on failure."""
        found = [lease for each in lease_ids if (lease := self._replica.engine.leases.find(each)) is not None]
        command = LeaseCheckpoint(term, tuple(Checkpoint(each.id, each.granted_at, 0) for each in found))
        checkpointed = self._clock.checkpointed
        undoing = {lease_id: checkpointed.get(lease_id) for lease_id in lease_ids}

        def undone(outcome: Outcome[LeaseResult]) -> None:
            if not isinstance(outcome, KVError) and self._leads(term):
                for lease_id, checkpoint in undoing.items():
                    if checkpointed.get(lease_id) == checkpoint:  # else another was proposed after this
                        checkpointed.pop(lease_id, None)
                self._clock.sync(self._loop.time())
                then()

        self._replica.propose(command, undone)

    def _take_checkpoints(self, now_s: float) -> None:
        """Replicate the remaining TTLs of long leases, for the next leader."""
        if now_s >= self._checkpoints_at_s:
            self._checkpoints_at_s = now_s + CHECKPOINT_INTERVAL_S
            self._checkpoints = deque(self._clock.long_lived(now_s))
        if not self._checkpoints:
            return
        count = min(len(self._checkpoints), LEASE_CHECKPOINTS_MAX)
        lease_ids = [self._checkpoints.popleft() for _ in range(count)]
        taken = self._clock.checkpoints_of(lease_ids, now_s)
        if not taken:
            return
        self._checkpoint_commands += 1
        self._clock.checkpointed.update(dict.fromkeys((each.id for each in taken), self._checkpoint_commands))
        self._replica.propose(LeaseCheckpoint(self._clock.term, taken), lambda _: None)

    def _look_up(self, _term: int, lease_ids: list[int], reply: Callable[[bytes], None]) -> None:
        now_s = self._loop.time()
        answers = []
        for lease_id in lease_ids:
            lease = self._replica.engine.leases.find(lease_id)
            remaining_ms = int(self._clock.remaining_s(lease_id, now_s) * 1000)
            answers.append(TimeLeft(0, 0) if lease is None else TimeLeft(lease.ttl_seconds, remaining_ms))
        reply(b"".join(_LEFT.pack(*left) for left in answers))

    # -- expiry ----------------------------------------------------------------------------------

    def _on_event(self, event: NodeEvent) -> None:
        leading = event.leader == self._replica.member_id
        if leading and self._clock.term == event.term:
            return
        self.stop()
        self._held.clear()  # unanswered: those members call the next leader
        self._retries.clear()
        if leading:
            self._clock.promote(event.term, self._loop.time())
            self._checkpoints.clear()
            self._checkpoints_at_s = self._loop.time() + CHECKPOINT_INTERVAL_S
            self._scan_timer = self._loop.call_later(EXPIRY_SCAN_S, self._scan)
        elif self._clock.term:
            self._clock.demote()

    def _scan(self) -> None:
        now_s = self._loop.time()
        self._clock.sync(now_s)
        if self._clock.checkpoints:
            self._take_checkpoints(now_s)
        space = min(EXPIRIES_PER_SCAN_MAX, EXPIRIES_IN_FLIGHT_MAX - self._in_flight)
        due: list[Due] = []
        while self._retries and len(due) < space:
            due.append(self._retries.popleft())
        due.extend(self._clock.due(now_s, space - len(due)))
        for each in due:
            self._in_flight += 1
            command = LeaseExpire(self._clock.term, each.id, each.granted_at)
            self._replica.propose(command, partial(self._expired, self._clock.term, each))
        self._scan_timer = self._loop.call_later(EXPIRY_SCAN_S, self._scan)

    def _expired(self, term: int, due: Due, outcome: Outcome[LeaseResult]) -> None:
        self._in_flight -= 1
        if self._clock.term != term:
            return
        if isinstance(outcome, KVError) and self._clock.expiring.get(due.id) == due.granted_at:
            logger.debug("the expiry of lease %016x is proposed again: %s", due.id, outcome)
            self._retries.append(due)
            return
        self._clock.sync(self._loop.time())
        if due.id in self._clock.expiring:
            return  # granted anew meanwhile, and the expiry of that grant is proposed: it answers the waiters
        for keep_alive, position in self._held.pop(due.id, ()):
            self._keep_one_alive(keep_alive, position, due.id)
            keep_alive.open -= 1
            if not keep_alive.open:
                _reply(keep_alive)


def _reply(keep_alive: _KeepAlive) -> None:
    keep_alive.reply(b"".join(_LEFT.pack(*left) for left in keep_alive.answers))

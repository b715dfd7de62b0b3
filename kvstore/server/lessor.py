"""The lessor: grants, renews and ends leases, and tells what they have left.

The rules, from which "whoever counts from the moment of sending cannot outlive its key" follows:

* Time is counted by the leader alone, on its monotonic clock. A new leader gives every lease its whole
  time again, from a moment after it was elected.
* A renewal is acknowledged only after a read round that began after it arrived on the leader: then no
  other leader had been elected before it arrived, so whoever counts next began to count later.
* With checkpoints, a new leader starts a long lease with what the last one left it; so a renewal is
  acknowledged only after the checkpoint is undone.
* The end of a lease is a command that names term and grant. While one is on its way, a renewal waits for
  its outcome.

A member that does not lead passes renewals and questions on to the leader, as many as wait in one turn
of the loop in one message. An unknown lease has 0 left for a renewal and -1 for a question, as in etcd.

    question   kind u8 | lease i64 ...
    answer     granted i64, remaining i64 (in milliseconds) per lease; granted 0: no such lease
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

from kvstore.engine import (
    LEASE_CHECKPOINTS_MAX,
    Checkpoint,
    LeaseCheckpoint,
    LeaseExpire,
    LeaseGrant,
    LeaseResult,
    LeaseRevoke,
)
from kvstore.errors import KVError, LeaseTtlTooLarge, TooManyRequests
from kvstore.server.faults import as_kv_error
from kvstore.server.lease_clock import CHECKPOINT_INTERVAL_S, Due, LeaseClock
from raft.node import NodeError, NodeEvent

if TYPE_CHECKING:
    from kvstore.server.local_member import LocalMember, OnResult

logger = logging.getLogger("kvstore.server")

LEASE_TTL_SECONDS_MAX = 9_000_000_000
"""etcd's bound (`MaxLeaseTTL`)."""

EXPIRY_SCAN_S = 0.25
"""Between two looks at what is due: a key outlives its lease by at most about this."""

EXPIRIES_PER_SCAN_MAX = 500
"""Leases ended per look, so 2000/s: a hundred thousand that end together are gone within a minute, and a
look costs the loop some milliseconds."""

EXPIRIES_IN_FLIGHT_MAX = 1000
"""Ends proposed and not decided; with a slow log the rate falls to its own."""

ASKED_TOGETHER_MAX = LEASE_CHECKPOINTS_MAX
"""Leases in one question: a few kilobytes, some milliseconds of the leader's loop."""

HELD_PER_LEASE_MAX = 16
"""Renewals that wait for one end on its way. Whoever is pushed out asks again after a second."""

WAITING_MAX = 65_536
"""Renewals and questions of this member without an answer; beyond it they are refused."""

KEEP_ALIVE, TIME_TO_LIVE = 1, 2

_LEASE = Struct(">q")
_LEFT = Struct(">qq")


class TimeLeft(NamedTuple):
    """What the leader says of a lease."""

    granted_seconds: int
    """0 for an unknown lease."""
    remaining_ms: int


OnTimeLeft = Callable[[TimeLeft | KVError], None]
"""Called exactly once."""


class _KeepAlive:
    """Renewals of one question, on the leader, some of which may wait for an end on its way."""

    __slots__ = ("answers", "open", "reply", "term")

    def __init__(self, term: int, count: int, reply: Callable[[bytes], None]) -> None:
        self.term = term
        self.answers = [TimeLeft(0, 0)] * count
        self.open = 0
        """Leases whose fate is not known yet."""
        self.reply = reply


class Lessor:
    """One per member; only the leader's measures time. Every method belongs to the event loop."""

    _loop: asyncio.AbstractEventLoop
    """Its clock is the leader's; set by `start`."""

    def __init__(self, member: LocalMember) -> None:
        self._member = member
        self._rng = random.Random()  # noqa: S311  replaced at the start; names leases, guards no secret
        self.ttl_seconds_min = 1
        """Shorter times are lengthened to it."""
        self._clock = LeaseClock(lambda: member.engine.leases)
        self._asking: dict[int, list[tuple[int, OnTimeLeft]]] = {KEEP_ALIVE: [], TIME_TO_LIVE: []}
        """By kind: what goes to the leader in this turn of the loop."""
        self._waiting_count = 0
        """Renewals and questions of this member without an answer. At most WAITING_MAX."""
        self._held: dict[int, list[tuple[_KeepAlive, int]]] = {}
        """Lease whose end is on its way to the renewals (and the place in them) that wait for it."""
        self._retries: deque[Due] = deque()
        """Ends whose proposal failed; proposed again, for they may or may not take effect."""
        self._checkpoints: deque[int] = deque()
        """Leases whose checkpoint is to be proposed next, a command's worth in each look. What they have left
        is looked up only then: a renewal in between must not be undone by what was left before it."""
        self._checkpoint_commands = 0
        """Proposed so far; tells one checkpoint of a lease from the next."""
        self._checkpoints_at_s = 0.0
        """When they are taken again; only while this member leads."""
        self._in_flight = 0
        """Ends proposed and not settled. At most EXPIRIES_IN_FLIGHT_MAX."""
        self._scan_timer: asyncio.TimerHandle | None = None
        """Set exactly while this member leads and is not stopped."""
        self.kept_alive = 0
        """Leases renewed by this member as the leader, since start."""

    def start(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        election_timeout_ms: int,
        checkpoints: bool = False,
    ) -> None:
        """Listen to who leads, and answer the other members. Before the driver starts."""
        self._clock.checkpoints = checkpoints
        self._loop = loop
        self._rng = rng
        # etcd: three halves of the election timeout, rounded up to whole seconds.
        self.ttl_seconds_min = -(-3 * election_timeout_ms // 2000)
        self._member.node.subscribe(self._on_event)
        self._member.node.answer_with(self._answer)

    def stop(self) -> None:
        """Count no more; idempotent."""
        if self._scan_timer is not None:
            self._scan_timer.cancel()
            self._scan_timer = None

    # -- asked by the services -------------------------------------------------------------------

    def grant(self, lease_id: int, ttl_seconds: int, on_result: OnResult) -> None:
        """Create a lease; id 0 lets this member choose one, too short a time is made the least one.

        Raises NoSpace, LeaseTtlTooLarge; LeaseExists and all else comes through `on_result`.
        """
        command = LeaseGrant(lease_id, max(ttl_seconds, self.ttl_seconds_min))
        self._member.quota.admit(command)
        if ttl_seconds > LEASE_TTL_SECONDS_MAX:
            raise LeaseTtlTooLarge
        while not command.id:
            command = command._replace(id=self._rng.getrandbits(63))
        self._member.propose(command, on_result)

    def revoke(self, lease_id: int, on_result: OnResult) -> None:
        """End a lease now. LeaseNotFound and all else comes through `on_result`."""
        self._member.propose(LeaseRevoke(lease_id), on_result)

    def keep_alive(self, lease_id: int, on_result: OnTimeLeft) -> None:
        """Give a lease its full time again. Never raises."""
        self._ask(KEEP_ALIVE, lease_id, on_result)

    def time_left(self, lease_id: int, on_result: OnTimeLeft) -> None:
        """What a lease has left. Never raises."""
        self._ask(TIME_TO_LIVE, lease_id, on_result)

    def leases(self) -> list[int]:
        """All leases this member knows of: in the order of their ends while it leads."""
        self._clock.sync(self._loop.time())
        return self._clock.by_deadline() if self._clock.term else self._member.engine.leases.ids()

    # -- passing on to the leader ----------------------------------------------------------------

    def _ask(self, kind: int, lease_id: int, on_result: OnTimeLeft) -> None:
        if self._waiting_count >= WAITING_MAX:
            on_result(TooManyRequests())
            return
        self._waiting_count += 1
        asking = self._asking[kind]
        if not asking:
            self._loop.call_soon(self._send, kind)
        asking.append((lease_id, on_result))

    def _send(self, kind: int) -> None:
        asking, self._asking[kind] = self._asking[kind], []
        for start in range(0, len(asking), ASKED_TOGETHER_MAX):
            part = asking[start : start + ASKED_TOGETHER_MAX]
            data = bytes((kind,)) + b"".join(_LEASE.pack(lease_id) for lease_id, _ in part)
            self._member.node.call_leader(data, partial(self._answered, part))

    def _answered(
        self, asked: Sequence[tuple[int, OnTimeLeft]], data: bytes, error: NodeError | None
    ) -> None:
        self._waiting_count -= len(asked)
        if error is not None:
            fault = as_kv_error(error)
            for _, on_result in asked:
                on_result(fault)
            return
        for (_, on_result), left in zip(asked, _LEFT.iter_unpack(data), strict=True):
            on_result(TimeLeft(*left))

    # -- the leader's side -----------------------------------------------------------------------

    def _leads(self, term: int) -> bool:
        node = self._member.node
        return bool(term) and self._clock.term == term == node.term and node.leader == self._member.member_id

    def _answer(self, leader_request: bytes, reply: Callable[[bytes], None]) -> None:
        """A member asks, perhaps this one. No answer when it turns out that another leads."""
        lease_ids = [lease_id for (lease_id,) in _LEASE.iter_unpack(leader_request[1:])]
        confirmed = self._keep_alive if leader_request[0] == KEEP_ALIVE else self._look_up
        self._member.barrier(partial(self._confirmed, self._clock.term, lease_ids, reply, confirmed))

    def _confirmed(
        self,
        term: int,
        lease_ids: list[int],
        reply: Callable[[bytes], None],
        confirmed: Callable[[int, list[int], Callable[[bytes], None]], None],
        error: KVError | None,
    ) -> None:
        """A round begun after the question arrived has proved that this member led."""
        if error is None and self._leads(term):
            self._clock.sync(self._loop.time())
            confirmed(term, lease_ids, reply)

    def _keep_alive(self, term: int, lease_ids: list[int], reply: Callable[[bytes], None]) -> None:
        shortened = [lease_id for lease_id in dict.fromkeys(lease_ids) if self._clock.shortened(lease_id)]
        if shortened:
            self._undo_checkpoints(term, shortened, partial(self._keep_alive, term, lease_ids, reply))
            return
        keep_alive = _KeepAlive(term, len(lease_ids), reply)
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
        """Have the next leader start these with their full time, then go on; no answer if that fails."""
        found = [lease for each in lease_ids if (lease := self._member.engine.leases.find(each)) is not None]
        command = LeaseCheckpoint(term, tuple(Checkpoint(each.id, each.granted_at, 0) for each in found))
        checkpointed = self._clock.checkpointed
        undoing = {lease_id: checkpointed.get(lease_id) for lease_id in lease_ids}

        def undone(outcome: Any) -> None:
            if not isinstance(outcome, KVError) and self._leads(term):
                for lease_id, checkpoint in undoing.items():
                    if checkpointed.get(lease_id) == checkpoint:  # else another is on its way behind this
                        checkpointed.pop(lease_id, None)
                self._clock.sync(self._loop.time())
                then()

        self._member.propose(command, undone)

    def _take_checkpoints(self, now_s: float) -> None:
        """Tell the members what long leases have left, for whoever leads next."""
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
        self._member.propose(LeaseCheckpoint(self._clock.term, taken), lambda _: None)

    def _look_up(self, _term: int, lease_ids: list[int], reply: Callable[[bytes], None]) -> None:
        now_s = self._loop.time()
        answers = []
        for lease_id in lease_ids:
            lease = self._member.engine.leases.find(lease_id)
            remaining_ms = int(self._clock.remaining_s(lease_id, now_s) * 1000)
            answers.append(TimeLeft(0, 0) if lease is None else TimeLeft(lease.ttl_seconds, remaining_ms))
        reply(b"".join(_LEFT.pack(*left) for left in answers))

    # -- ends ------------------------------------------------------------------------------------

    def _on_event(self, event: NodeEvent) -> None:
        leading = event.leader == self._member.member_id
        if leading and self._clock.term == event.term:
            return
        self.stop()
        self._held.clear()  # unanswered: whoever asked turns to the next leader
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
            self._member.propose(command, partial(self._ended, self._clock.term, each))
        self._scan_timer = self._loop.call_later(EXPIRY_SCAN_S, self._scan)

    def _ended(self, term: int, due: Due, outcome: Any) -> None:
        self._in_flight -= 1
        if self._clock.term != term:
            return
        if isinstance(outcome, KVError) and self._clock.expiring.get(due.id) == due.granted_at:
            logger.debug("the end of lease %016x is proposed again: %s", due.id, outcome)
            self._retries.append(due)
            return
        assert isinstance(outcome, (LeaseResult, KVError))
        self._clock.sync(self._loop.time())
        if due.id in self._clock.expiring:
            return  # granted anew meanwhile, and that grant's end is on its way: it decides for who waits
        for keep_alive, position in self._held.pop(due.id, ()):
            self._keep_one_alive(keep_alive, position, due.id)
            keep_alive.open -= 1
            if not keep_alive.open:
                _reply(keep_alive)


def _reply(keep_alive: _KeepAlive) -> None:
    keep_alive.reply(b"".join(_LEFT.pack(*left) for left in keep_alive.answers))

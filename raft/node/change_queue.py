"""Membership changes on their way to the leader: one at a time, each at most once, both ends.

The origin forwards the oldest change and completes it when its entry is applied *here*. The outcome rule
is that of all commands: a change forwarded in one term is forwarded again only after a refusal, or after
an entry of a later term was applied first. The leader deduplicates by (member, incarnation, counter): it
remembers the newest change of every origin that it appended in its term.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import NamedTuple

from raft.core import ProposalDropped
from raft.core.confchange import ConfChange, ConfStep, ConfStepKind, members_of
from raft.core.core_errors import DropReason
from raft.core.types import Role
from raft.node.envelope import decode_envelope, encode_envelope
from raft.node.identity_check import PeerIncarnations
from raft.node.node_config import RESEND_MS
from raft.node.node_errors import ChangeRefused, LearnerNotReady, NodeError, TooManyRequests
from raft.node.replica import Replica
from raft.node.request_outcome import OnResult, Session, fail, stopped, superseded, timed_out
from raft.node.transfer import best_successor
from raft.transport.transport_protocol import ChangeRefusal, ChangeReply, ChangeRequest

logger = logging.getLogger(__name__)

CHANGES_WAITING_MAX = 64
"""Changes waiting on one member, its own or forwarded; far more than administrators send at once."""

LEARNER_READY_RATIO = 0.9
"""A learner may be promoted when it holds this share of what the leader holds (etcd: readyPercent)."""

ORIGINS_MAX = 1024
"""Incarnations whose newest change the leader of a term remembers; the oldest is forgotten first. That is
safe: a change is resent only while its caller waits, for seconds, and before it is forgotten that many other
incarnations must have had one of theirs applied. Of a forgotten incarnation, any next change is new."""


class _Change:
    """A change proposed on this member and not completed."""

    __slots__ = ("change", "counter", "deadline_s", "on_result", "sent_s", "session")

    def __init__(self, change: ConfChange, counter: int, on_result: OnResult, deadline_s: float) -> None:
        self.change = change
        self.counter = counter
        self.on_result = on_result
        self.deadline_s = deadline_s
        self.session: Session | None = None
        """Where it was forwarded to; None while it is certainly in no log."""
        self.sent_s = 0.0


class _Forwarded(NamedTuple):
    """A change of another member, taken while this one leads."""

    origin: tuple[int, int]
    """(member, incarnation)."""
    counter: int
    change: ConfChange
    deadline_s: float


class ChangeQueue:
    """The changes proposed on this member, and those that others forwarded to it."""

    def __init__(self, replica: Replica, incarnations: PeerIncarnations) -> None:
        self._core = replica.core
        self._transport = replica.transport
        self._inbox = replica.inbox
        self._clock = replica.loop.time
        self._id = replica.member_id
        self._incarnation = replica.incarnation
        self._timeout_s = replica.config.request_timeout_ms / 1000
        self._incarnations = incarnations
        self._waiting: deque[_Change] = deque()
        """Proposed here, oldest first; only the first is ever forwarded."""
        self._counter = 0
        self._forwarded: deque[_Forwarded] = deque()
        """Taken while leading `_led_term` and not yet appended."""
        self._led_term = 0
        self._appended: dict[tuple[int, int], int] = {}
        """Origin to its newest change appended in `_led_term`."""
        self._yielded_term = 0
        """The term in which this leader last began a transfer, because it is to be removed."""
        self._closed = False

    # -- the origin

    def propose(self, change: ConfChange, command: bytes, on_result: OnResult) -> None:
        """See `Membership.change`."""
        if self._closed:
            on_result(None, stopped(forwarded=False))
            return
        if len(self._waiting) >= CHANGES_WAITING_MAX:
            on_result(None, TooManyRequests("too many requests"))
            return
        self._counter += 1
        context = encode_envelope(self._id, self._incarnation, self._counter, [command])
        change = change._replace(context=context)
        self._waiting.append(_Change(change, self._counter, on_result, self._clock() + self._timeout_s))
        self._inbox.wake()

    @property
    def in_flight(self) -> bool:
        """Whether a change proposed here was forwarded and is undecided."""
        return any(waiting.session is not None for waiting in self._waiting)

    def run(self) -> None:
        """Forward, or append, the changes that may go; in every round of a loop iteration."""
        if self._forwarded:
            self._append_forwarded()
        if self._waiting and self._waiting[0].session is None:
            self._forward(self._waiting[0])

    def tick(self, now_s: float) -> None:
        """Resend what may be lost, and fail what has waited too long."""
        for waiting in [one for one in self._waiting if one.deadline_s <= now_s]:
            self._waiting.remove(waiting)
            forwarded = waiting.session is not None
            fail(waiting.on_result, timed_out(forwarded=forwarded, leader=self._core.leader))
        while self._forwarded and self._forwarded[0].deadline_s <= now_s:
            self._forwarded.popleft()
        if self._waiting:
            waiting = self._waiting[0]
            if waiting.session is not None and now_s >= waiting.sent_s + RESEND_MS / 1000:
                self._send(waiting)
        self.run()

    def term_applied(self, term: int) -> None:
        """The first entry of `term` is applied: a change forwarded in a lower one never will be."""
        if self._waiting:
            waiting = self._waiting[0]
            if waiting.session is not None and waiting.session[0] < term:
                waiting.session = None
                self._inbox.wake()

    def complete(self, counter: int, outcome: object) -> None:
        """Our change `counter` is applied."""
        for waiting in self._waiting:
            if waiting.counter == counter:
                self._waiting.remove(waiting)
                waiting.on_result(outcome, None)
                self._inbox.wake()  # for the next one
                return

    def superseded(self) -> None:
        """The state is now that of a snapshot, which may contain the change that was forwarded."""
        for waiting in [one for one in self._waiting if one.session is not None]:
            self._waiting.remove(waiting)
            fail(waiting.on_result, superseded())

    def close(self) -> None:
        """The member stops: complete everything."""
        self._closed = True
        while self._waiting:
            waiting = self._waiting.popleft()
            fail(waiting.on_result, stopped(forwarded=waiting.session is not None))

    def on_reply(self, member: int, incarnation: int, reply: ChangeReply) -> None:
        """A leader refuses one of ours."""
        for waiting in self._waiting:
            if waiting.counter == reply.counter and waiting.session == (reply.term, member, incarnation):
                waiting.session = None
                if reply.reason is not ChangeRefusal.NOT_APPENDED:
                    self._waiting.remove(waiting)
                    fail(waiting.on_result, _error_of(reply.reason))
                return

    def _forward(self, waiting: _Change) -> None:
        core = self._core
        if core.leader != self._id:
            if core.leader:
                self._send(waiting)
            return
        refusal = self._append(waiting.change)
        if refusal is None:
            waiting.session = (core.term, self._id, self._incarnation)
            waiting.sent_s = self._clock()
        elif refusal is not ChangeRefusal.NOT_APPENDED:
            self._waiting.popleft()
            fail(waiting.on_result, _error_of(refusal))

    def _send(self, waiting: _Change) -> None:
        core = self._core
        incarnation = self._incarnations.latest(core.leader)
        if core.leader == self._id or incarnation is None:
            return
        session = (core.term, core.leader, incarnation)
        if waiting.session not in (None, session):
            return  # its outcome is not known yet
        kind = waiting.change.entry_kind
        request = ChangeRequest(core.leader, self._id, core.term, kind, waiting.change.encode())
        if self._transport.send(core.leader, request):
            waiting.session = session
            waiting.sent_s = self._clock()

    # -- the leader

    def on_request(self, member: int, request: ChangeRequest) -> None:
        """Another member forwards a change to us."""
        core = self._core
        if request.term < self._led_term:
            return  # of a term led before; the origin learns the outcome when it applies a later one
        leading = core.role is Role.LEADER and core.term == request.term
        if leading and self._led_term != core.term:
            self._led_term = core.term
            self._appended.clear()
            self._forwarded.clear()
        try:
            change = ConfChange.decode(request.data)
            envelope = decode_envelope(change.context)
        except ValueError:
            logger.warning("member %x forwards what is no membership change", member)
            return
        origin = (envelope.member_id, envelope.incarnation)
        counter = envelope.counter
        if request.term == self._led_term and counter <= self._appended.get(origin, 0):
            return  # it is in the log already
        if not leading:
            self._refuse(member, request.term, counter, ChangeRefusal.NOT_APPENDED)
            return
        known = any(one.origin == origin and one.counter == counter for one in self._forwarded)
        if not known and len(self._forwarded) < CHANGES_WAITING_MAX:
            self._forwarded.append(_Forwarded(origin, counter, change, self._clock() + self._timeout_s))
            self._inbox.wake()

    def _append_forwarded(self) -> None:
        if self._core.role is not Role.LEADER or self._core.term != self._led_term:
            while self._forwarded:  # another member leads, or none: what is not appended never will be by us
                lost = self._forwarded.popleft()
                self._refuse(lost.origin[0], self._led_term, lost.counter, ChangeRefusal.NOT_APPENDED)
            return
        forwarded = self._forwarded[0]
        if self._awaits_leaver(forwarded):
            return
        refusal = self._append(forwarded.change)
        if refusal is None:
            if len(self._appended) >= ORIGINS_MAX and forwarded.origin not in self._appended:
                del self._appended[next(iter(self._appended))]
            self._appended[forwarded.origin] = forwarded.counter
        elif refusal is not ChangeRefusal.NOT_APPENDED:
            self._refuse(forwarded.origin[0], self._led_term, forwarded.counter, refusal)
        else:
            return  # not now: an earlier change is not applied, or a leadership transfer is under way
        self._forwarded.popleft()

    def _awaits_leaver(self, forwarded: _Forwarded) -> bool:
        """Whether the member that proposes its own removal, mostly a former leader, has acknowledged nothing.

        Until it has, no append reaches it, and none does after the removal: it could not answer its caller.
        Its disk may be too slow to acknowledge, so half of its caller's time is the limit.
        """
        member = forwarded.origin[0]
        wait_ends_s = forwarded.deadline_s - self._timeout_s / 2
        return (
            ConfStep(ConfStepKind.REMOVE, member) in forwarded.change.steps
            and self._clock() < wait_ends_s
            and member in self._transport.connected_peers()
            and not any(peer.match for peer in self._core.status().peers if peer.member == member)
        )

    def _append(self, change: ConfChange) -> ChangeRefusal | None:
        """Propose to our own core; None when the change is in the log, else why not."""
        if not self._learners_ready(change):
            return ChangeRefusal.LEARNER_NOT_READY
        core = self._core
        if ConfStep(ConfStepKind.REMOVE, self._id) in change.steps and self._yielded_term != core.term:
            # The next leader may as well make the change: then no client waits for an election.
            self._yielded_term = core.term
            core.transfer_leader(best_successor(core))
        try:
            core.propose_conf(change)
        except ProposalDropped as dropped:
            invalid = dropped.reason is DropReason.CONF_INVALID
            return ChangeRefusal.DOES_NOT_FIT if invalid else ChangeRefusal.NOT_APPENDED
        # A member that the change removes receives nothing more once we apply it.
        core.hasten_commit_broadcast(members_of(core.conf))
        return None

    def _learners_ready(self, change: ConfChange) -> bool:
        """Whether every learner that the change promotes holds nearly what we hold."""
        learners = self._core.conf.learners
        promoted = [
            step.member
            for step in change.steps
            if step.kind is ConfStepKind.ADD_VOTER and step.member in learners
        ]
        if not promoted:
            return True
        match = {peer.member: peer.match for peer in self._core.status().peers}
        enough = match.get(self._id, 0) * LEARNER_READY_RATIO
        return all(match.get(member, 0) >= enough for member in promoted)

    def _refuse(self, member: int, term: int, counter: int, reason: ChangeRefusal) -> None:
        self._transport.send(member, ChangeReply(member, self._id, term, counter, reason))


def _error_of(reason: ChangeRefusal) -> NodeError:
    if reason is ChangeRefusal.LEARNER_NOT_READY:
        return LearnerNotReady("the learner does not hold enough of the log yet")
    return ChangeRefused("the change does not fit the present configuration")

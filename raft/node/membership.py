"""Membership: changing it, living by it, and knowing who left it.

A change travels as one entry that holds both halves: the steps for consensus, and a command for the
state machine (names, addresses). The machine judges the command when the entry is applied, in log
order and alike on every member; only what it accepts changes the configuration. So two changes that
were asked for at once never both pass a rule that allows one of them.

Whoever receives a request hands it to the leader of the term, one at a time, and settles its caller
when the entry is applied *here*. The rule of fates is that of all commands: handed over for a term,
a change is handed over again only when it was refused, or when an entry of a later term was applied
first. The leader takes each once: it knows the newest it appended of every origin in its term.

Who belongs to the cluster comes from the log and the state image only, and so do the peers of the
transport. A member this one has not heard of yet is let in if it shows the cluster's id, since its
addition may stand in entries still to come; one that was removed never is, and is told so.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from raft.core import ProposalDropped, RaftCore
from raft.core.confchange import ConfChange, ConfStep, ConfStepKind, apply_change, members_of
from raft.core.core_errors import ConfChangeRefused, DropReason
from raft.core.messages import Message, MessageType
from raft.core.types import ConfState, Entry, Role
from raft.node.envelope import decode_envelope, encode_envelope
from raft.node.node_config import RESEND_MS, NodeConfig
from raft.node.node_errors import (
    ChangeRefused,
    LearnerNotReady,
    NodeError,
    NoLeader,
    NotApplied,
    OutcomeUnknown,
    RequestTimedOut,
    Stopped,
    TooManyRequests,
)
from raft.node.proposals import OnResult
from raft.node.state_machine import StateMachine
from raft.node.transfer import best_successor
from raft.transport.transport_protocol import Handshake, Transport

logger = logging.getLogger(__name__)

CHANGES_WAITING_MAX = 64
"""Changes waiting on one member, asked here or forwarded; more than anybody ever asks for at once."""

LEARNER_READY_RATIO = 0.9
"""A learner may be promoted when it holds this share of what the leader holds (etcd: readyPercent)."""

ORIGINS_MAX = 1024
"""Processes whose newest change the leader of a term remembers; the oldest goes first. Nothing can come of
it: a change is sent again only while its caller waits, for seconds, and before it is forgotten that many
other processes must have had one of theirs applied. Of a process forgotten later, any next change is news."""

REMOVAL_TICKS = 10
"""How long streams to a removed member stay, so that it hears of it and its answers leave (as in etcd)."""

REMOVAL_PATIENCE_TICKS = 600
"""How long a removed member waits at most for the others to say so: a minute with etcd's heartbeat."""

REMOVED_REASON = "the member has been permanently removed from the cluster"

_NOT_APPENDED, _NOT_READY, _DOES_NOT_FIT = 1, 2, 3
"""Why a leader refuses a forwarded change; on the wire in `reject_hint`."""


class _Request:
    """A change asked for here and not settled."""

    __slots__ = ("change", "counter", "deadline_s", "on_result", "sent_s", "target")

    def __init__(self, change: ConfChange, counter: int, on_result: OnResult, deadline_s: float) -> None:
        self.change = change
        self.counter = counter
        self.on_result = on_result
        self.deadline_s = deadline_s
        self.target: tuple[int, int, int] | None = None
        """(term, leader, its process) it was handed to; None while it is certainly in no log."""
        self.sent_s = 0.0


class _Forwarded:
    """A change another member handed to us while we lead."""

    __slots__ = ("change", "counter", "deadline_s", "origin")

    def __init__(self, origin: tuple[int, int], counter: int, change: ConfChange, deadline_s: float) -> None:
        self.origin = origin
        """(member, boot id of its process)."""
        self.counter = counter
        self.change = change
        self.deadline_s = deadline_s


class Membership:
    """The configuration as applied, and the changes on their way to it. Owned by the core's owner."""

    def __init__(
        self,
        *,
        config: NodeConfig,
        incarnation: int,
        core: RaftCore,
        transport: Transport,
        machine: StateMachine,
        conf: ConfState,
        process_of: Callable[[int], int | None],
        loop: asyncio.AbstractEventLoop,
        wake: Callable[[], None],
        adopted: Callable[[ConfState], None],
        leave: Callable[[str], None],
    ) -> None:
        self._config = config
        self._id = config.member_id
        self._incarnation = incarnation
        self._removal_s = REMOVAL_TICKS * config.heartbeat_interval_ms / 1000
        self._core = core
        self._transport = transport
        self._machine = machine
        self.conf = conf
        """The configuration as of the newest applied entry."""
        self._process_of = process_of
        """The newest process of a member, None before its first hello."""
        self._loop = loop
        self._clock = loop.time
        self._wake = wake
        self._adopted = adopted
        """Called with each new configuration."""
        self._leave = leave
        """Called when this member was removed and is not needed any more; perhaps more than once."""
        self._peers: dict[int, tuple[str, ...]] = {}
        """Peers the transport was given, with their URLs."""
        self._acquaintances: dict[int, tuple[str, ...]] = {}
        """Members met that no applied entry names yet, with the URLs they gave."""
        self._connected_s: dict[int, float] = {}
        """Member to the time since when its stream is whole."""
        self._waiting: deque[_Request] = deque()
        """Asked here, oldest first; only the first is ever handed over."""
        self._counter = 0
        self._forwarded: deque[_Forwarded] = deque()
        """Taken while leading `_led_term` and not yet appended."""
        self._led_term = 0
        self._appended: dict[tuple[int, int], int] = {}
        """Origin to its newest change appended in `_led_term`."""
        self._yielded_term = 0
        """The term in which this leader last tried to hand over, because it is to be removed."""
        self._closed = False
        self._removed_by: dict[int, None] = {}
        """Members who said that this one was removed."""
        self._leaving = False
        self.removed = False
        """This member was removed from the cluster, and its process is about to end."""

    # -- asked from above

    def change(self, change: ConfChange, command: bytes, on_result: OnResult) -> None:
        """Have the change made; `settle(outcome, error)` is called once, with the machine's outcome.

        NotApplied errors are certain, LearnerNotReady and ChangeRefused among them; OutcomeUnknown ones
        are not. Never raises.
        """
        if self._closed:
            on_result(None, Stopped("server stopped"))
            return
        if len(self._waiting) >= CHANGES_WAITING_MAX:
            on_result(None, TooManyRequests("too many requests"))
            return
        self._counter += 1
        deadline_s = self._clock() + self._config.request_timeout_ms / 1000
        context = encode_envelope(self._id, self._incarnation, self._counter, [command])
        change = change._replace(context=context)
        self._waiting.append(_Request(change, self._counter, on_result, deadline_s))
        self._wake()

    def connected_seconds(self) -> dict[int, float]:
        """Member to how long its stream has been whole; members that are away are not there."""
        now_s = self._clock()
        up = self._transport.connected_peers()
        return {member: now_s - since for member, since in self._connected_s.items() if member in up}

    def superseded(self) -> None:
        """The state is now an image, which may hold the change that was handed over."""
        for request in [one for one in self._waiting if one.target is not None]:
            self._waiting.remove(request)
            request.on_result(None, OutcomeUnknown("overtaken by an image of the state; it may be made"))

    def close(self) -> None:
        """The member stops: settle everything."""
        self._closed = True
        while self._waiting:
            request = self._waiting.popleft()
            if request.target is None:
                request.on_result(None, Stopped("server stopped"))
            else:
                request.on_result(None, OutcomeUnknown("stopped; the change may be made"))

    # -- who belongs to the cluster

    def accepts(self, handshake: Handshake) -> bool:
        """Whether the sender of a hello that shows our cluster may speak: False once it was removed."""
        member = handshake.member_id
        if self._machine.is_removed(member):
            return False
        if member not in members_of(self.conf) and handshake.urls != self._acquaintances.get(member):
            logger.info("member %x is not known here yet; listening to it", member)
            self._acquaintances[member] = handshake.urls
            self.refresh()
        return True

    def refresh(self, conf: ConfState | None = None) -> None:
        """Bring the transport's peers in line with the machine; `conf` when an image brought a new one."""
        if conf is not None:
            self.conf = conf
            self._adopted(conf)
        wanted: dict[int, tuple[str, ...]] = {}
        for member in members_of(self.conf):
            urls = self._machine.peer_urls(member)
            if urls is not None:
                wanted[member] = urls
                self._acquaintances.pop(member, None)
        for member, urls in list(self._acquaintances.items()):
            if self._machine.is_removed(member):
                del self._acquaintances[member]
            else:
                wanted.setdefault(member, urls)
        wanted.pop(self._id, None)
        for member in [member for member in self._peers if member not in wanted]:
            self._connected_s.pop(member, None)
            if not self._closed:  # what is on its way to it may be the news that it is removed
                self._loop.call_later(self._removal_s, self._transport.remove_peer, member)
        for member, urls in wanted.items():
            if self._peers.get(member) != urls:
                self._set_peer(member, urls)
        self._peers = wanted
        if self._machine.is_removed(self._id):
            self._remove()

    def on_removed(self, by: int) -> None:
        """A member says that this one was removed."""
        self._removed_by[by] = None
        self._remove()

    def _remove(self) -> None:
        """This member was removed, and leaves when it is not needed any more.

        Until they have applied the removal, the others count its vote: if too many of them are gone, they
        cannot elect without it. So it stays until most of the others have said that it is removed; and
        until the changes it has handed over are settled, its own removal perhaps, which a slow disk may
        not have let it apply yet. They end with their time at the latest.
        """
        if self._closed:
            return
        if not self.removed:
            self.removed = True
            logger.warning("this member was removed from the cluster")
            patience_s = REMOVAL_PATIENCE_TICKS * self._config.heartbeat_interval_ms / 1000
            self._loop.call_later(patience_s, self._leave, REMOVED_REASON)
        others = [voter for voter in self.conf.voters if voter != self._id]
        dismissed = sum(other in self._removed_by for other in others) > len(others) // 2
        asking = any(request.target is not None for request in self._waiting)
        if dismissed and not asking and not self._leaving:
            self._leaving = True
            self._loop.call_soon(self._leave, REMOVED_REASON)

    def _set_peer(self, member: int, urls: tuple[str, ...]) -> None:
        try:
            self._transport.set_peer(member, urls)
        except ValueError as error:  # only a hello can bring such URLs: those of a request are checked
            logger.warning("cannot reach member %x: %s", member, error)

    def connected(self, member: int) -> None:
        """A stream to the member has opened."""
        self._connected_s[member] = self._clock()

    def disconnected(self, member: int) -> None:
        """A stream to or from the member has ended."""
        if member in self._connected_s:
            self._connected_s[member] = self._clock()

    # -- on the way

    def run(self) -> None:
        """Hand over, or append, what waits and may go; in every round of the owner's turn."""
        if self._forwarded:
            self._append_forwarded()
        if self._waiting and self._waiting[0].target is None:
            self._forward(self._waiting[0])

    def tick(self, now_s: float) -> None:
        """Send again what may be lost, and give up what has waited too long."""
        for request in [one for one in self._waiting if one.deadline_s <= now_s]:
            self._waiting.remove(request)
            if request.target is not None:
                request.on_result(None, RequestTimedOut("request timed out; it may be applied later"))
            elif self._core.leader:
                request.on_result(None, NotApplied("timed out before the change could be proposed"))
            else:
                request.on_result(None, NoLeader("no leader"))
        while self._forwarded and self._forwarded[0].deadline_s <= now_s:
            self._forwarded.popleft()
        if self._waiting:
            request = self._waiting[0]
            if request.target is not None and now_s >= request.sent_s + RESEND_MS / 1000:
                self._send(request)
        self.run()
        if self.removed:
            self._remove()

    def on_message(self, member: int, incarnation: int, message: Message) -> None:
        """A change handed to us, or the refusal of one of ours."""
        if message.reject:
            self._refused(member, incarnation, message)
            return
        core = self._core
        if len(message.entries) != 1 or message.term < self._led_term:
            return  # nonsense; or of a term led before, whose fate shows when a later one is applied
        leading = core.role is Role.LEADER and core.term == message.term
        if leading and self._led_term != core.term:
            self._lead(core.term)
        try:
            change = ConfChange.decode(message.entries[0].data)
            envelope = decode_envelope(change.context)
        except ValueError:
            logger.warning("member %x forwards what is no membership change", member)
            return
        origin = (envelope.member_id, envelope.incarnation)
        counter = envelope.counter
        if message.term == self._led_term and counter <= self._appended.get(origin, 0):
            return  # has it already
        if not leading:
            self._refuse(member, message.term, counter, _NOT_APPENDED)
            return
        known = any(one.origin == origin and one.counter == counter for one in self._forwarded)
        if not known and len(self._forwarded) < CHANGES_WAITING_MAX:
            deadline_s = self._clock() + self._config.request_timeout_ms / 1000
            self._forwarded.append(_Forwarded(origin, counter, change, deadline_s))
            self._wake()

    def stepped_down(self) -> None:
        """Another leads, or nobody: what was not appended never will be by us."""
        while self._forwarded:
            forwarded = self._forwarded.popleft()
            self._refuse(forwarded.origin[0], self._led_term, forwarded.counter, _NOT_APPENDED)

    def term_applied(self, term: int) -> None:
        """The first entry of `term` is applied: a change handed over for a lower one never will be."""
        if self._waiting:
            request = self._waiting[0]
            if request.target is not None and request.target[0] < term:
                request.target = None
                self._wake()

    # -- applying

    def apply(self, entry: Entry) -> None:
        """Apply a committed change, in log order."""
        change = ConfChange.decode(entry.data)
        try:
            apply_change(self.conf, change)
            accepted = True
        except ConfChangeRefused:
            accepted = False
        outcome: object = None
        counter = 0
        if change.context:
            member, incarnation, counter, commands = decode_envelope(change.context)
            accepted, outcome = self._machine.apply_change(entry.index, entry.term, commands[0], accepted)
            if (member, incarnation) != (self._id, self._incarnation):
                counter = 0
        if accepted:
            self.conf = self._core.apply_conf(change)
            logger.info("the cluster is now %s", self.conf)
            self._adopted(self.conf)
            self.refresh()
            self._wake()  # the core may have something to say about it
        if counter:
            self._complete(counter, outcome)

    def _complete(self, counter: int, outcome: object) -> None:
        for request in self._waiting:
            if request.counter == counter:
                self._waiting.remove(request)
                request.on_result(outcome, None)
                self._wake()  # for the next one
                return

    # -- handing over

    def _forward(self, request: _Request) -> None:
        core = self._core
        if core.leader != self._id:
            if core.leader:
                self._send(request)
            return
        refusal = self._append(request.change)
        if refusal is None:
            request.target = (core.term, self._id, self._incarnation)
            request.sent_s = self._clock()
        elif refusal != _NOT_APPENDED:
            self._waiting.popleft()
            request.on_result(None, _error_of(refusal))

    def _send(self, request: _Request) -> None:
        """Hand a change to the leader, or once more to the one that may have missed it."""
        core = self._core
        process = self._process_of(core.leader)
        if core.leader == self._id or process is None:
            return
        target = (core.term, core.leader, process)
        if request.target not in (None, target):
            return  # its fate is not known yet
        kind = request.change.entry_kind
        entry = Entry(0, 0, kind, request.change.encode())
        message = Message(MessageType.PROPOSE, core.leader, self._id, core.term, entries=(entry,))
        if self._transport.send(core.leader, message):
            request.target = target
            request.sent_s = self._clock()

    def _append_forwarded(self) -> None:
        if self._core.role is not Role.LEADER or self._core.term != self._led_term:
            self.stepped_down()
            return
        forwarded = self._forwarded[0]
        if self._awaits_leaver(forwarded):
            return
        refusal = self._append(forwarded.change)
        if refusal is None:
            if len(self._appended) >= ORIGINS_MAX and forwarded.origin not in self._appended:
                del self._appended[next(iter(self._appended))]
            self._appended[forwarded.origin] = forwarded.counter
        elif refusal != _NOT_APPENDED:
            self._refuse(forwarded.origin[0], self._led_term, forwarded.counter, refusal)
        else:
            return  # not now: an earlier change is not applied, or leadership is being handed on
        self._forwarded.popleft()

    def _awaits_leaver(self, forwarded: _Forwarded) -> bool:
        """Whether a member that asked for its own removal, a former leader mostly, has not answered yet.

        Until then it is not sent what is appended, and once removed it is sent nothing: it could not tell
        its caller. A sick disk may keep it from answering, so half of its caller's time must do.
        """
        member = forwarded.origin[0]
        wait_ends_s = forwarded.deadline_s - self._config.request_timeout_ms / 2000
        return (
            ConfStep(ConfStepKind.REMOVE, member) in forwarded.change.steps
            and self._clock() < wait_ends_s
            and member in self._transport.connected_peers()
            and not any(peer.match for peer in self._core.status().peers if peer.member == member)
        )

    def _append(self, change: ConfChange) -> int | None:
        """Propose to our own core; why not, or None when it is in the log."""
        if not self._learners_ready(change):
            return _NOT_READY
        core = self._core
        if ConfStep(ConfStepKind.REMOVE, self._id) in change.steps and self._yielded_term != core.term:
            # Whoever follows us may as well make the change: then nobody waits for an election.
            self._yielded_term = core.term
            core.transfer_leader(best_successor(core))
        try:
            core.propose_conf(change)
        except ProposalDropped as dropped:
            return _DOES_NOT_FIT if dropped.reason is DropReason.CONF_INVALID else _NOT_APPENDED
        core.hasten_commit_broadcast(
            members_of(core.conf)
        )  # whom it removes hears nothing more once we apply it
        return None

    def _learners_ready(self, change: ConfChange) -> bool:
        """Whether everyone the change would promote holds nearly what we hold."""
        learners = self._core.conf.learners
        if not any(step.kind is ConfStepKind.ADD_VOTER and step.member in learners for step in change.steps):
            return True
        match = {peer.member: peer.match for peer in self._core.status().peers}
        enough = match.get(self._id, 0) * LEARNER_READY_RATIO
        return all(
            match.get(step.member, 0) >= enough
            for step in change.steps
            if step.kind is ConfStepKind.ADD_VOTER and step.member in learners
        )

    # -- refusing

    def _lead(self, term: int) -> None:
        self._led_term = term
        self._appended.clear()
        self._forwarded.clear()

    def _refuse(self, member: int, term: int, counter: int, reason: int) -> None:
        message = Message(MessageType.PROPOSE, member, self._id, term, reject=True, reject_hint=reason)
        message.context = counter
        self._transport.send(member, message)

    def _refused(self, member: int, incarnation: int, message: Message) -> None:
        for request in self._waiting:
            if request.counter == message.context and request.target == (message.term, member, incarnation):
                request.target = None
                if message.reject_hint != _NOT_APPENDED:
                    self._waiting.remove(request)
                    request.on_result(None, _error_of(message.reject_hint))
                return


def _error_of(reason: int) -> NodeError:
    if reason == _NOT_READY:
        return LearnerNotReady("the learner does not hold enough of the log yet")
    return ChangeRefused("the change does not fit the present configuration")

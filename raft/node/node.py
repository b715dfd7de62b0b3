"""One member: the loop callback that owns the core, and the order in which its effects happen.

Theory of operation. Whatever happens (a message, a finished sync, a tick, a proposal, a read) is put
into the inbox or a queue and wakes the owner, at most once per turn of the event loop. A *turn* drains
the inbox, ticks if ticks are due, hands over what waits, and carries out the core's effects until
there are none. So work is done per batch, and cost per operation falls as load grows. Nothing else
touches the core.

Messages of one Ready leave first, so that others write while we do; the append work goes to the log, and its
responses leave when it is durable; what is committed and durable here is applied in slices, so that
heartbeats are never late. Ticks come after the inbox: a paused member first receives what was sent meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from raft.core import BootState, Config, RaftCore
from raft.core.messages import Message, MessageType
from raft.core.ready import AppendWork, Ready
from raft.core.types import ConfState, Role
from raft.node.applying import Applier
from raft.node.checkpointer import Checkpointer
from raft.node.commit_broadcast import CommitBroadcast
from raft.node.description import describe
from raft.node.disk_health import DiskHealth
from raft.node.failover import Failover
from raft.node.hand_over import ForwardToLeader
from raft.node.identity_check import HELD_MESSAGES_MAX, IdentityCheck, TornTailGuard
from raft.node.leader_rpc import Answerer, LeaderRpc, OnReply
from raft.node.membership import Membership
from raft.node.node_config import (
    INBOX_MAX,
    INBOX_PER_ITERATION_MAX,
    ITERATION_ROUNDS_MAX,
    TICKS_PER_STALL_MAX,
    NodeConfig,
)
from raft.node.node_errors import BackendBeyondLog, NoSpace, OutcomeUnknown, Stopped, TooManyRequests
from raft.node.node_status import NodeEvent, NodeStatus
from raft.node.outbox import Outbox
from raft.node.proposals import OnResult, Proposals
from raft.node.reads import OnRead, Reads
from raft.node.snapshots import Snapshots
from raft.node.state_machine import StateMachine
from raft.node.transfer import Transfer
from raft.storage.snapshot_store import SnapshotStore
from raft.storage.storage_protocol import Backend, Checkpoint, LogWriter, Recovered
from raft.transport.liveness import HANDSHAKE_FORMAT_VERSION
from raft.transport.transport_protocol import (
    ForwardedBatch,
    ForwardRefused,
    Handshake,
    HandshakeReply,
    LeaderReply,
    LeaderRequest,
    PeerMessage,
    ReplicaRecorded,
    SnapshotOffer,
    SnapshotSink,
    Transport,
)

logger = logging.getLogger(__name__)

_FromPeer = tuple[int, int, PeerMessage]
"""Member, boot id of its process, message."""

_InboxItem = _FromPeer | AppendWork | Callable[[], None]


class Node:
    """A member of the cluster, from `start` to `stop`; implements the transport's `Receiver`."""

    def __init__(
        self,
        *,
        config: NodeConfig,
        recovered: Recovered,
        log: LogWriter,
        state: Backend,
        snapshot_store: SnapshotStore,
        transport: Transport,
        machine: StateMachine,
        rng: random.Random,
        incarnation: int,
        fatal: Callable[[str], None],
        peer_urls: tuple[str, ...] = (),
        bootstrap_voters: Sequence[int] | None = None,
    ) -> None:
        """`incarnation`: 64 fresh random bits. `fatal(reason)` is called once, when the process must end.

        `peer_urls`: where others reach this member. `bootstrap_voters`: the voters of the running cluster
        that it was founded to join; None for a member that began with its cluster.
        """
        config.validate()
        if recovered.identity.member_id != config.member_id:
            raise ValueError("the data directory belongs to another member")
        self._config = config
        self._tick_s = config.heartbeat_interval_ms / 1000
        self._timeout_s = config.request_timeout_ms / 1000
        self._id = config.member_id
        self._incarnation = incarnation
        self._recovered = recovered
        self._log = log
        self._state = state
        self._snapshot_store = snapshot_store
        self._transport = transport
        self._machine = machine
        self._rng = rng
        self._fatal = fatal
        self._peer_urls = peer_urls
        self._bootstrap_voters = bootstrap_voters
        self._proposals = Proposals(config, incarnation)
        self._reads = Reads(incarnation, gather_s=config.gather_ms / 1000, linger_s=config.linger_ms / 1000)
        self._leader_rpc = LeaderRpc(
            member_id=config.member_id,
            incarnation=incarnation,
            leader=lambda: self._core.leader,
            clock=lambda: self._loop.time(),
            send=transport.send,
        )
        self._inbox: deque[_InboxItem] = deque()
        """Whatever the core has to hear, in order of arrival. Bounded by INBOX_MAX for peer messages."""
        self._held: dict[int, list[_FromPeer]] = {}
        """Messages of members whose disk is being recorded. At most HELD_MESSAGES_MAX each."""
        self._iterations = 0
        self._leader_changes = 0
        self._seen = NodeEvent(0, 0, Role.FOLLOWER)
        """What subscribers were last told."""
        self._listeners: list[Callable[[NodeEvent], None]] = []
        self.on_applied: Callable[[], None] = lambda: None
        """Called in the loop after each turn in which entries were applied; set before `start`."""
        self._installed_listeners: list[Callable[[int], None]] = []
        self._iteration_scheduled = False
        self._ticks_due = 0
        """Ticks to deliver in the next turn, at most TICKS_PER_STALL_MAX."""
        self._tick_at_s = 0.0
        """Loop time of the next tick."""
        self._tick_timer: asyncio.TimerHandle | None = None
        self._ended = True
        """Not started, stopping, or failed: nothing may be answered from here."""
        self._stopped = False
        """`stop` has begun."""

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Load the state image, join the peers, begin to tick.

        Raises BackendBeyondLog when log and state file do not belong together, and whatever the state
        file, the machine and the transport raise.
        """
        self._loop = asyncio.get_running_loop()
        mark = await self._load()
        conf = mark.conf if mark.conf.voters else self._recovered.snapshot.conf
        self._core = self._make_core(mark, conf)
        handshake = Handshake(
            format_version=HANDSHAKE_FORMAT_VERSION,
            cluster_id=self._config.cluster_id,
            member_id=self._id,
            disk_id=self._recovered.identity.disk_id,
            incarnation=self._incarnation,
            urls=self._peer_urls,
        )
        self._meet(conf, handshake)
        self._join(mark)
        self._recovered = replace(self._recovered, entries=())  # the core holds them now
        self._ended = False
        self.membership.refresh()
        # Planned before the transport starts, which may bring this member's end; at a random phase, so
        # that members started together do not count their silence in step.
        self._tick_at_s = self._loop.time() + self._rng.random() * self._tick_s
        self._tick_timer = self._loop.call_at(self._tick_at_s, self._on_tick)
        try:
            await self._transport.start(handshake, self)
        except BaseException:
            self._end()
            raise
        self._wake()

    def _meet(self, conf: ConfState, handshake: Handshake) -> None:
        """Make the parts that know the members."""
        self.membership = Membership(
            config=self._config,
            incarnation=self._incarnation,
            core=self._core,
            transport=self._transport,
            machine=self._machine,
            conf=conf,
            process_of=lambda member_id: self._identity_check.incarnation(member_id),
            loop=self._loop,
            wake=self._wake,
            adopted=lambda new: self._torn_tail_guard.voters_changed((*new.voters, *new.voters_outgoing)),
            leave=self._leave,
        )
        self.transfer = Transfer(self._config, self._core, self._transport, self._loop, self._wake)
        self._identity_check = IdentityCheck(
            handshake=handshake,
            recovered=self._recovered,
            voters=conf.voters if self._bootstrap_voters is None else self._bootstrap_voters,
            accepts=self.membership.accepts,
            on_removed=self.membership.on_removed,
            log=self._log,
            recorded=self._peer_recorded,
            new_process=self._peer_restarted,
        )
        self._torn_tail_guard = TornTailGuard(self._recovered, conf.voters, self._log.record_vote_eligible)

    def _join(self, mark: Checkpoint) -> None:
        """Make the parts that work around the core."""
        self._checkpointer = Checkpointer(
            config=self._config,
            machine=self._machine,
            state=self._state,
            durable=mark,
            loop=self._loop,
            mark=self._mark,
            fatal=self.fail,
        )
        self._applier = Applier(
            machine=self._machine,
            proposals=self._proposals,
            membership=self.membership,
            member_id=self._id,
            incarnation=self._incarnation,
            clock=self._loop.time,
            start=mark,
            on_entry=lambda nbytes: self._checkpointer.applied(nbytes, self._loop.time()),
            on_work=self._core.on_apply_done,
        )
        self._disk = DiskHealth(
            core=self._core,
            log=self._log,
            stall_s=self._config.election_timeout_ms / 2000,
            post=self._post,
        )
        self._failover = Failover(
            core=self._core,
            transport=self._transport,
            rng=self._rng,
            loop=self._loop,
            post=self._post,
            may_campaign=self._may_campaign,
        )
        self._join_log()

    def _join_log(self) -> None:
        """Make the parts between the core, the log and the images."""
        self.snapshots = Snapshots(
            config=self._config,
            core=self._core,
            log=self._log,
            snapshot_store=self._snapshot_store,
            transport=self._transport,
            machine=self._machine,
            identity_check=self._identity_check,
            membership=self.membership,
            checkpointer=self._checkpointer,
            applier=self._applier,
            proposals=self._proposals,
            reads=self._reads,
            loop=self._loop,
            post=self._post,
            listeners=self._installed_listeners,
        )
        self._outbox = Outbox(
            core=self._core,
            log=self._log,
            transport=self._transport,
            disk=self._disk,
            torn_tail_guard=self._torn_tail_guard,
            loop=self._loop,
            completed=self._append_done,
            snapshot_request=self.snapshots.snapshot_request,
            install=self.snapshots.log_names,
        )
        self._commit_broadcast = CommitBroadcast(self._core, self._loop, self._post)
        self._forward = ForwardToLeader(
            config=self._config,
            incarnation=self._incarnation,
            core=self._core,
            transport=self._transport,
            proposals=self._proposals,
            reads=self._reads,
            identity_check=self._identity_check,
            disk=self._disk,
            checkpointer=self._checkpointer,
            loop=self._loop,
            wake=self._wake,
        )

    async def stop(self) -> None:
        """Leave at once, so that the others elect at once; then settle, flush and close. Idempotent."""
        if self._stopped:
            return
        failed, self._stopped = self._ended, True
        if not failed:
            self._end()
        async with AsyncExitStack() as steps:  # from the last to the first; all are taken, whichever fails
            steps.push_async_callback(self._log.close)
            steps.push_async_callback(lambda: self._checkpointer.state.close())
            steps.push_async_callback(self._checkpointer.close, flush=not failed)
            steps.push_async_callback(self.snapshots.close)
            steps.push_async_callback(self._failover.close)
            steps.push_async_callback(self._transport.close)

    def fail(self, reason: str) -> None:
        """Something happened after which nothing may be promised or answered: give up this process.

        Also the inner step of the log's fatal hook. Every request is settled as unknown or stopped.
        """
        if self._ended:
            self._inbox.append(lambda: self.fail(reason))  # not started yet: heard in the first turn
            return
        logger.critical("member %x stops: %s", self._id, reason)
        self._end()
        self._transport.reset_connections()
        self._fatal(reason)

    def _end(self) -> None:
        self._ended = True
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        self._forward.cancel()
        self._outbox.close()
        self.snapshots.cancel()
        self._failover.cancel()
        self._proposals.fail_all(Stopped("server stopped"), OutcomeUnknown("stopped; it may be applied"))
        self._reads.fail_all(Stopped("server stopped"))
        self._leader_rpc.fail_all(Stopped("server stopped"))
        self.membership.close()
        self.transfer.close()

    def _leave(self, reason: str) -> None:
        """This member was removed from the cluster: end in good order."""
        if not self._ended:
            self._end()
            self._fatal(reason)

    async def _load(self) -> Checkpoint:
        base, entries = self._recovered.snapshot, self._recovered.entries
        mark = await self._state.mark()
        last = base.index + len(entries)
        if not base.index <= mark.index <= last:
            raise BackendBeyondLog(
                f"the state file stands at index {mark.index}, the log holds {base.index} to {last}: damage"
            )
        async for rows in self._state.scan(b"", None):
            self._machine.load(rows)
        self._machine.load_done()
        return mark

    def _make_core(self, mark: Checkpoint, conf: ConfState) -> RaftCore:
        recovered = self._recovered
        config = Config(
            member_id=self._id, election_ticks=self._config.election_ticks, commit_broadcast_deferred=True
        )
        boot = BootState(
            hard_state=recovered.hard_state,
            snapshot=recovered.snapshot,
            entries=recovered.entries,
            applied=mark.index,
            conf=conf,
        )
        return RaftCore(config, boot, self._rng)

    # ------------------------------------------------------------------ asked from above

    def propose(self, command: bytes, on_result: OnResult) -> None:
        """Have `command` applied; `settle(outcome, error)` is called once. Never raises.

        NotApplied errors are certain; OutcomeUnknown ones are not. Commands are applied in the order
        of their proposal, except around those whose outcome is unknown.
        """
        if self._ended:
            on_result(None, Stopped("server stopped"))
        elif self._disk.full and self.is_leader:
            on_result(None, NoSpace("no space left for the log"))
        elif self._checkpointer.full:
            on_result(None, TooManyRequests("too much is applied that the state file does not hold yet"))
        elif self._proposals.offer(command, on_result, self._loop.time() + self._timeout_s):
            self._wake()
        else:
            on_result(None, TooManyRequests("too many requests"))

    def read_barrier(self, on_result: OnRead) -> None:
        """Call `settle(None)` once the local state holds everything acknowledged before this call.

        Otherwise `settle(error)`: ReadTimedOut, TooManyRequests or Stopped. Never raises.
        """
        if self._ended:
            on_result(Stopped("server stopped"))
        elif self._reads.offer(on_result, self._loop.time() + self._timeout_s):
            self._wake()
        else:
            on_result(TooManyRequests("too many requests"))

    def call_leader(self, data: bytes, on_result: OnReply) -> None:
        """Have the leader's `answer_with` answer `data`; `settle(answer, error)` is called once.

        Never raises. Errors: ReadTimedOut, NoLeader, TooManyRequests or Stopped. It may be asked twice.
        """
        if self._ended:
            on_result(b"", Stopped("server stopped"))
        else:
            self._leader_rpc.ask(data, on_result, self._loop.time() + self._timeout_s)

    def answer_with(self, answerer: Answerer) -> None:
        """Whom to pass the questions to that reach this member while it leads."""
        self._leader_rpc.answerer = answerer

    @property
    def member_id(self) -> int:
        return self._id

    @property
    def term(self) -> int:
        return self._core.term

    @property
    def leader(self) -> int:
        """The leader of the current term, 0 while none is known."""
        return self._core.leader

    @property
    def is_leader(self) -> bool:
        return self._core.role is Role.LEADER

    @property
    def applied(self) -> int:
        return self._applier.applied

    def subscribe(self, listener: Callable[[NodeEvent], None]) -> None:
        """Call `listener` in the loop whenever term, leader or role has changed."""
        self._listeners.append(listener)

    def subscribe_installed(self, listener: Callable[[int], None]) -> None:
        """Call `listener(index)` in the loop whenever an image has replaced the machine's whole state."""
        self._installed_listeners.append(listener)

    def status(self) -> NodeStatus:
        """A consistent snapshot; costs tens of microseconds, not for hot paths."""
        return describe(
            core=self._core,
            applier=self._applier,
            proposals=self._proposals,
            reads=self._reads,
            checkpointer=self._checkpointer,
            identity_check=self._identity_check,
            torn_tail_guard=self._torn_tail_guard,
            snapshots=self.snapshots,
            log=self._log,
            transport=self._transport,
            leader_changes=self._leader_changes,
            iterations=self._iterations,
        )

    def on_disk_stalled(self) -> None:
        """A sync hangs: the watchdog's `on_stall` hook. Ticks notice it too."""
        self._disk.on_stalled()

    def on_log_space(self, available: bool) -> None:
        """The disk has no room for the log's next segment, or has again: the log's `on_space` hook."""
        if self._ended:  # not started yet: heard in the first turn
            self._inbox.append(lambda: self._disk.on_space(available))
        else:
            self._disk.on_space(available)

    # ------------------------------------------------------------------ said by the transport

    def on_handshake(self, handshake: Handshake) -> HandshakeReply:
        return self._identity_check.on_handshake(handshake)

    def on_answer(self, member_id: int, answer: HandshakeReply) -> None:
        if not self._ended:
            self._identity_check.on_answer(member_id, answer)

    def on_message(self, member_id: int, incarnation: int, message: PeerMessage) -> None:
        if self._ended:
            return
        if type(message) is ReplicaRecorded:
            self._identity_check.on_recorded(member_id, message.disk_id)
        elif not self._identity_check.vote_eligible:
            return
        elif not self._identity_check.ready(member_id):
            held = self._held.setdefault(member_id, [])
            if self._identity_check.recording(member_id) and len(held) < HELD_MESSAGES_MAX:
                held.append((member_id, incarnation, message))
        elif len(self._inbox) < INBOX_MAX:
            self._inbox.append((member_id, incarnation, message))
            self._wake()

    def on_snapshot(self, handshake: Handshake, offer: SnapshotOffer) -> SnapshotSink:
        return self.snapshots.on_snapshot(handshake, offer)

    def on_connected(self, member_id: int) -> None:
        def connected() -> None:
            self._tell_disk(member_id)
            self.membership.connected(member_id)
            self._forward.connected(member_id)
            if member_id == self._core.leader:
                self._leader_rpc.ask_again()

        self._post(connected)

    def on_disconnected(self, member_id: int) -> None:
        self._post(lambda: self._core.report_unreachable(member_id))
        if not self._ended:
            self.membership.disconnected(member_id)
            self._failover.stream_ended(member_id)

    def on_dropped(self, member_id: int, message: PeerMessage) -> None:
        if type(message) is Message and message.type is MessageType.APPEND:
            self._post(lambda: self._core.report_unreachable(member_id))

    def _peer_restarted(self, member_id: int, incarnation: int, is_known: bool) -> None:
        """The member speaks as another process than before; a known one has not replaced the one before."""
        self._torn_tail_guard.process_changed(member_id, incarnation)
        if not is_known:
            self._failover.process_gone(member_id)
        self._post(lambda: self._core.report_restarted(member_id))

    def _tell_disk(self, member_id: int) -> None:
        """Tell the member which disk of it is on record, at each opening of its stream and when recorded."""
        disk_id = self._identity_check.disk_of(member_id)
        if disk_id is not None:
            self._transport.send(member_id, ReplicaRecorded(disk_id))

    def _peer_recorded(self, member_id: int) -> None:
        self._tell_disk(member_id)
        for item in self._held.pop(member_id, ()):
            self._inbox.append(item)
        self._wake()

    # ------------------------------------------------------------------ the turn

    def _post(self, action: Callable[[], None]) -> None:
        """Have `action` done by the owner."""
        if not self._ended:
            self._inbox.append(action)
            self._wake()

    def _wake(self) -> None:
        if not self._iteration_scheduled and not self._ended:
            self._iteration_scheduled = True
            self._loop.call_soon(self._iterate)

    def _on_tick(self) -> None:
        now_s = self._loop.time()
        missed = 1 + int((now_s - self._tick_at_s) / self._tick_s)
        self._ticks_due = min(self._ticks_due + missed, TICKS_PER_STALL_MAX)
        self._tick_at_s += missed * self._tick_s
        self._tick_timer = self._loop.call_at(self._tick_at_s, self._on_tick)
        self._wake()

    def _iterate(self) -> None:
        self._iteration_scheduled = False
        if self._ended:
            return
        self._iterations += 1
        try:
            if not self._run_iteration():
                self._wake()
        except Exception as error:  # a broken invariant: whatever this process would say next may be wrong
            logger.exception("member %x cannot go on", self._id)
            self.fail(f"internal error: {error!r}")

    def _run_iteration(self) -> bool:
        """Do what there is to do; False when some of it is left for the next turn."""
        core = self._core
        self._applier.begin_iteration()
        for _ in range(ITERATION_ROUNDS_MAX):
            self._drain_inbox()
            now_s = self._loop.time()
            if self._ticks_due:
                self._tick(now_s)
            self._forward.run(now_s)
            self.membership.run()
            ready = core.has_ready()
            if ready:
                self._execute(core.take_ready())
            applied = self._apply()
            if not ready and not self._inbox:
                return applied
        return False

    def _drain_inbox(self) -> None:
        inbox = self._inbox
        for _ in range(min(len(inbox), INBOX_PER_ITERATION_MAX)):
            item = inbox.popleft()
            if type(item) is tuple:
                self._from_peer(*item)
            elif type(item) is AppendWork:
                self._outbox.durable(item)
            else:
                assert callable(item)
                item()

    def _from_peer(self, member_id: int, incarnation: int, message: PeerMessage) -> None:
        core = self._core
        if incarnation != self._identity_check.incarnation(member_id):
            return  # a process that is gone: what it acknowledged may be lost with it
        if type(message) is Message:
            if message.from_ != member_id or message.to != self._id:
                return
            if message.type is MessageType.SNAPSHOT or self._disk.drops_inbound(message):
                return  # the core must not take a snapshot whose bytes are not here: see `snapshot_receiver`
            if self._torn_tail_guard.active and not self._torn_tail_guard.may_step(
                member_id, incarnation, message
            ):
                return
            if message.type is MessageType.PROPOSE:
                self.membership.on_message(member_id, incarnation, message)
            else:
                core.step(message)
        elif type(message) is ForwardedBatch:
            self._forward.on_forwarded(member_id, message)
        elif type(message) is ForwardRefused:
            self._forward.on_refused(member_id, incarnation, message)
        elif type(message) is LeaderRequest:
            self._leader_rpc.on_leader_request(member_id, message)
        elif type(message) is LeaderReply:
            self._leader_rpc.on_answer(message)

    def _append_done(self, work: AppendWork) -> None:
        self._inbox.append(work)
        self._wake()

    def _tick(self, now_s: float) -> None:
        self._disk.look()
        ticks, self._ticks_due = self._ticks_due, 0
        if self._identity_check.vote_eligible and (self.is_leader or self._disk.may_campaign):
            for _ in range(ticks):
                self._core.tick()
        self._forward.tick(now_s)
        self._leader_rpc.sweep()
        self.membership.tick(now_s)
        self.transfer.look()
        if self._checkpointer.due(now_s):
            self._checkpointer.begin()
        self.snapshots.look()

    # ------------------------------------------------------------------ effects

    def _execute(self, ready: Ready) -> None:
        if ready.messages:
            self._outbox.send(ready.messages)
        if ready.append is not None:
            self._outbox.write(ready.append, after_messages=bool(ready.messages))
        if ready.apply is not None:
            self._applier.add(ready.apply)
        for context, index in ready.read_states:
            self._reads.confirmed(context, index, self._applier.applied, self._loop.time())
        if ready.dropped_reads:
            self._reads.dropped(ready.dropped_reads, self._loop.time())
        self._commit_broadcast.look()
        self._observe()

    def _observe(self) -> None:
        """Notice a change of term, leader or role, and tell everybody it matters to."""
        core, seen = self._core, self._seen
        if core.term == seen.term and core.leader == seen.leader and core.role is seen.role:
            return
        event = self._seen = NodeEvent(core.term, core.leader, core.role)
        self._forward.changed(event, other_leader=(event.term, event.leader) != (seen.term, seen.leader))
        self.transfer.look()
        if event.role is Role.LEADER:
            self._torn_tail_guard.release()
        if event.leader:
            self._post(self._leader_rpc.ask_again)
            self._leader_changes += event.leader != seen.leader
            self._failover.cancel()
        for listener in self._listeners:
            listener(event)

    def _may_campaign(self) -> bool:
        return self._identity_check.vote_eligible and self._disk.may_campaign and not self._ended

    def _apply(self) -> bool:
        """Apply what this turn's slice allows; False when entries are left over."""
        applier = self._applier
        before = applier.applied
        finished = applier.run()
        if applier.applied != before:
            self.on_applied()
            self._reads.applied(applier.applied)
            if self._checkpointer.due(self._loop.time()):
                self._checkpointer.begin()
        return finished

    def _mark(self) -> Checkpoint:
        return Checkpoint(self._applier.applied, self._applier.applied_term, self.membership.conf)

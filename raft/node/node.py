"""One member: the loop callback that owns the core, and the order in which its effects happen.

Theory of operation. Whatever happens (a message, a finished sync, a tick, a proposal, a read) is put
into the inbox or a queue and wakes the owner, at most once per turn of the event loop. A *turn* drains
the inbox, ticks if ticks are due, hands over what waits, and carries out the core's effects until
there are none. So work is done per batch, and cost per operation falls as load grows. Nothing else
touches the core.

The order within one Ready is the promise of `raft.core.ready`: messages leave first, so that others
write while we do; the append work goes to the log, and its responses leave when it is durable; what
is committed and durable here is applied, in slices, so that heartbeats are never late.

Ticks come after the inbox: a member that stood still must first hear what was said meanwhile.
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
from raft.node.admission import HELD_MESSAGES_MAX, Admission, CutGuard
from raft.node.applying import Applier
from raft.node.config import (
    INBOX_MAX,
    INBOX_PER_TURN_MAX,
    TICKS_PER_STALL_MAX,
    TURN_ROUNDS_MAX,
    NodeConfig,
)
from raft.node.description import describe
from raft.node.disk_health import DiskHealth
from raft.node.errors import NoSpace, OutcomeUnknown, StateBeyondLog, Stopped, TooManyRequests
from raft.node.failover import Failover
from raft.node.hand_over import HandOver
from raft.node.machine import Machine
from raft.node.membership import Membership
from raft.node.notices import CommitNotices
from raft.node.outbox import Outbox
from raft.node.proposals import Proposals, Settle
from raft.node.questions import Answerer, AnswerSettle, Questions
from raft.node.reads import Reads, ReadSettle
from raft.node.snapshots import Snapshots
from raft.node.status import NodeEvent, NodeStatus
from raft.node.transfer import Transfer
from raft.node.write_behind import WriteBehind
from raft.storage.images import ImageStore
from raft.storage.protocol import LogWriter, Recovered, StateFile, StateMark
from raft.transport.protocol import (
    Answer,
    DiskRecorded,
    ForwardedBatch,
    ForwardRefused,
    Hello,
    HelloAnswer,
    ImageOffer,
    ImageSink,
    PeerMessage,
    Question,
    Transport,
)
from raft.transport.rules import HELLO_FORMAT_VERSION

logger = logging.getLogger(__name__)

_FromPeer = tuple[int, int, PeerMessage]
"""Member, boot id of its process, message."""

_InboxItem = _FromPeer | AppendWork | Callable[[], None]


class Node:
    """A member of the cluster, from `start` to `stop`. Implements `raft.transport.protocol.Receiver`.

    Every method is called in the event loop that ran `start`.
    """

    def __init__(
        self,
        *,
        config: NodeConfig,
        recovered: Recovered,
        log: LogWriter,
        state: StateFile,
        images: ImageStore,
        transport: Transport,
        machine: Machine,
        rng: random.Random,
        boot_id: int,
        fatal: Callable[[str], None],
        peer_urls: tuple[str, ...] = (),
        found_voters: Sequence[int] | None = None,
    ) -> None:
        """`boot_id`: 64 fresh random bits. `fatal(reason)` is called once, when the process must end.

        `peer_urls`: where others reach this member. `found_voters`: the voters of the running cluster
        that it was founded to join; None for a member that began with its cluster.
        """
        config.validate()
        if recovered.identity.member_id != config.member_id:
            raise ValueError("the data directory belongs to another member")
        self._config = config
        self._tick_s = config.heartbeat_interval_ms / 1000
        self._timeout_s = config.request_timeout_ms / 1000
        self._id = config.member_id
        self._boot_id = boot_id
        self._recovered = recovered
        self._log = log
        self._state = state
        self._images = images
        self._transport = transport
        self._machine = machine
        self._rng = rng
        self._fatal = fatal
        self._peer_urls = peer_urls
        self._found_voters = found_voters
        self._proposals = Proposals(config, boot_id)
        self._reads = Reads(boot_id, gather_s=config.gather_ms / 1000, linger_s=config.linger_ms / 1000)
        self._questions = Questions(
            member_id=config.member_id,
            boot_id=boot_id,
            leader=lambda: self._core.leader,
            clock=lambda: self._loop.time(),
            send=transport.send,
        )
        self._inbox: deque[_InboxItem] = deque()
        """Whatever the core has to hear, in order of arrival. Bounded by INBOX_MAX for peer messages."""
        self._held: dict[int, list[_FromPeer]] = {}
        """Messages of members whose disk is being recorded. At most HELD_MESSAGES_MAX each."""
        self._turns = 0
        self._leader_changes = 0
        self._seen = NodeEvent(0, 0, Role.FOLLOWER)
        """What subscribers were last told."""
        self._listeners: list[Callable[[NodeEvent], None]] = []
        self.on_applied: Callable[[], None] = lambda: None
        """Called in the loop after each turn in which entries were applied; set before `start`."""
        self._installed_listeners: list[Callable[[int], None]] = []
        self._turn_planned = False
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

        Raises StateBeyondLog when log and state file do not belong together, and whatever the state
        file, the machine and the transport raise.
        """
        self._loop = asyncio.get_running_loop()
        mark = await self._load()
        conf = mark.conf if mark.conf.voters else self._recovered.snapshot.conf
        self._core = self._make_core(mark, conf)
        hello = Hello(
            format_version=HELLO_FORMAT_VERSION,
            cluster_id=self._config.cluster_id,
            member_id=self._id,
            disk_id=self._recovered.identity.disk_id,
            boot_id=self._boot_id,
            urls=self._peer_urls,
        )
        self._meet(conf, hello)
        self._join(mark)
        self._recovered = replace(self._recovered, entries=())  # the core holds them now
        self._ended = False
        self.membership.refresh()
        # Planned before the transport starts, which may bring this member's end; at a random phase, so
        # that members started together do not count their silence in step.
        self._tick_at_s = self._loop.time() + self._rng.random() * self._tick_s
        self._tick_timer = self._loop.call_at(self._tick_at_s, self._on_tick)
        try:
            await self._transport.start(hello, self)
        except BaseException:
            self._end()
            raise
        self._wake()

    def _meet(self, conf: ConfState, hello: Hello) -> None:
        """Make the parts that know the members."""
        self.membership = Membership(
            config=self._config,
            boot_id=self._boot_id,
            core=self._core,
            transport=self._transport,
            machine=self._machine,
            conf=conf,
            process_of=lambda member_id: self._admission.boot_id(member_id),
            loop=self._loop,
            wake=self._wake,
            adopted=lambda new: self._cut_guard.voters_changed((*new.voters, *new.voters_outgoing)),
            leave=self._leave,
        )
        self.transfer = Transfer(self._config, self._core, self._transport, self._loop, self._wake)
        self._admission = Admission(
            hello=hello,
            recovered=self._recovered,
            voters=conf.voters if self._found_voters is None else self._found_voters,
            admits=self.membership.admits,
            expelled=self.membership.expelled,
            log=self._log,
            recorded=self._peer_recorded,
            new_process=self._peer_restarted,
        )
        self._cut_guard = CutGuard(self._recovered, conf.voters, self._log.record_admitted)

    def _join(self, mark: StateMark) -> None:
        """Make the parts that work around the core."""
        self._write_behind = WriteBehind(
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
            boot_id=self._boot_id,
            clock=self._loop.time,
            start=mark,
            on_entry=lambda nbytes: self._write_behind.applied(nbytes, self._loop.time()),
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
            images=self._images,
            transport=self._transport,
            machine=self._machine,
            admission=self._admission,
            membership=self.membership,
            write_behind=self._write_behind,
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
            cut_guard=self._cut_guard,
            loop=self._loop,
            completed=self._append_done,
            wish=self.snapshots.wish,
            install=self.snapshots.log_names,
        )
        self._notices = CommitNotices(self._core, self._loop, self._post)
        self._hand_over = HandOver(
            config=self._config,
            boot_id=self._boot_id,
            core=self._core,
            transport=self._transport,
            proposals=self._proposals,
            reads=self._reads,
            admission=self._admission,
            disk=self._disk,
            write_behind=self._write_behind,
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
            steps.push_async_callback(lambda: self._write_behind.state.close())
            steps.push_async_callback(self._write_behind.close, flush=not failed)
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
        self._transport.sever()
        self._fatal(reason)

    def _end(self) -> None:
        self._ended = True
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        self._hand_over.cancel()
        self._outbox.close()
        self.snapshots.cancel()
        self._failover.cancel()
        self._proposals.fail_all(Stopped("server stopped"), OutcomeUnknown("stopped; it may be applied"))
        self._reads.fail_all(Stopped("server stopped"))
        self._questions.fail_all(Stopped("server stopped"))
        self.membership.close()
        self.transfer.close()

    def _leave(self, reason: str) -> None:
        """This member was removed from the cluster: end in good order."""
        if not self._ended:
            self._end()
            self._fatal(reason)

    async def _load(self) -> StateMark:
        base, entries = self._recovered.snapshot, self._recovered.entries
        mark = await self._state.mark()
        last = base.index + len(entries)
        if not base.index <= mark.index <= last:
            raise StateBeyondLog(
                f"the state file stands at index {mark.index}, the log holds {base.index} to {last}: damage"
            )
        async for rows in self._state.scan(b"", None):
            self._machine.load(rows)
        self._machine.load_done()
        return mark

    def _make_core(self, mark: StateMark, conf: ConfState) -> RaftCore:
        recovered = self._recovered
        config = Config(member_id=self._id, election_ticks=self._config.election_ticks, notices_deferred=True)
        boot = BootState(
            hard_state=recovered.hard_state,
            snapshot=recovered.snapshot,
            entries=recovered.entries,
            applied=mark.index,
            conf=conf,
        )
        return RaftCore(config, boot, self._rng)

    # ------------------------------------------------------------------ asked from above

    def propose(self, command: bytes, settle: Settle) -> None:
        """Have `command` applied; `settle(outcome, error)` is called once. Never raises.

        NotApplied errors are certain; OutcomeUnknown ones are not. Commands are applied in the order
        of their proposal, except around those whose outcome is unknown.
        """
        if self._ended:
            settle(None, Stopped("server stopped"))
        elif self._disk.full and self.is_leader:
            settle(None, NoSpace("no space left for the log"))
        elif self._write_behind.full:
            settle(None, TooManyRequests("too much is applied that the state file does not hold yet"))
        elif self._proposals.offer(command, settle, self._loop.time() + self._timeout_s):
            self._wake()
        else:
            settle(None, TooManyRequests("too many requests"))

    def read_barrier(self, settle: ReadSettle) -> None:
        """Call `settle(None)` once the local state holds everything acknowledged before this call.

        Otherwise `settle(error)`: ReadTimedOut, TooManyRequests or Stopped. Never raises.
        """
        if self._ended:
            settle(Stopped("server stopped"))
        elif self._reads.offer(settle, self._loop.time() + self._timeout_s):
            self._wake()
        else:
            settle(TooManyRequests("too many requests"))

    def ask_leader(self, data: bytes, settle: AnswerSettle) -> None:
        """Have the leader's `answer_with` answer `data`; `settle(answer, error)` is called once.

        Never raises. Errors: ReadTimedOut, NoLeader, TooManyRequests or Stopped. It may be asked twice.
        """
        if self._ended:
            settle(b"", Stopped("server stopped"))
        else:
            self._questions.ask(data, settle, self._loop.time() + self._timeout_s)

    def answer_with(self, answerer: Answerer) -> None:
        """Whom to pass the questions to that reach this member while it leads."""
        self._questions.answerer = answerer

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
            write_behind=self._write_behind,
            admission=self._admission,
            cut_guard=self._cut_guard,
            snapshots=self.snapshots,
            log=self._log,
            transport=self._transport,
            leader_changes=self._leader_changes,
            turns=self._turns,
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

    def on_hello(self, hello: Hello) -> HelloAnswer:
        return self._admission.on_hello(hello)

    def on_answer(self, member_id: int, answer: HelloAnswer) -> None:
        if not self._ended:
            self._admission.on_answer(member_id, answer)

    def on_message(self, member_id: int, boot_id: int, message: PeerMessage) -> None:
        if self._ended:
            return
        if type(message) is DiskRecorded:
            self._admission.on_recorded(member_id, message.disk_id)
        elif not self._admission.admitted:
            return
        elif not self._admission.ready(member_id):
            held = self._held.setdefault(member_id, [])
            if self._admission.recording(member_id) and len(held) < HELD_MESSAGES_MAX:
                held.append((member_id, boot_id, message))
        elif len(self._inbox) < INBOX_MAX:
            self._inbox.append((member_id, boot_id, message))
            self._wake()

    def on_image(self, hello: Hello, offer: ImageOffer) -> ImageSink:
        return self.snapshots.on_image(hello, offer)

    def on_connected(self, member_id: int) -> None:
        def connected() -> None:
            self._tell_disk(member_id)
            self.membership.connected(member_id)
            self._hand_over.connected(member_id)
            if member_id == self._core.leader:
                self._questions.ask_again()

        self._post(connected)

    def on_disconnected(self, member_id: int) -> None:
        self._post(lambda: self._core.report_unreachable(member_id))
        if not self._ended:
            self.membership.disconnected(member_id)
            self._failover.stream_ended(member_id)

    def on_dropped(self, member_id: int, message: PeerMessage) -> None:
        if type(message) is Message and message.type is MessageType.APPEND:
            self._post(lambda: self._core.report_unreachable(member_id))

    def _peer_restarted(self, member_id: int, boot_id: int, is_known: bool) -> None:
        """The member speaks as another process than before; a known one has not replaced the one before."""
        self._cut_guard.process_changed(member_id, boot_id)
        if not is_known:
            self._failover.process_gone(member_id)
        self._post(lambda: self._core.report_restarted(member_id))

    def _tell_disk(self, member_id: int) -> None:
        """Tell the member which disk of it is on record, at each opening of its stream and when recorded."""
        disk_id = self._admission.disk_of(member_id)
        if disk_id is not None:
            self._transport.send(member_id, DiskRecorded(disk_id))

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
        if not self._turn_planned and not self._ended:
            self._turn_planned = True
            self._loop.call_soon(self._turn)

    def _on_tick(self) -> None:
        now_s = self._loop.time()
        missed = 1 + int((now_s - self._tick_at_s) / self._tick_s)
        self._ticks_due = min(self._ticks_due + missed, TICKS_PER_STALL_MAX)
        self._tick_at_s += missed * self._tick_s
        self._tick_timer = self._loop.call_at(self._tick_at_s, self._on_tick)
        self._wake()

    def _turn(self) -> None:
        self._turn_planned = False
        if self._ended:
            return
        self._turns += 1
        try:
            if not self._run_turn():
                self._wake()
        except Exception as error:  # a broken invariant: whatever this process would say next may be wrong
            logger.exception("member %x cannot go on", self._id)
            self.fail(f"internal error: {error!r}")

    def _run_turn(self) -> bool:
        """Do what there is to do; False when some of it is left for the next turn."""
        core = self._core
        self._applier.begin_turn()
        for _ in range(TURN_ROUNDS_MAX):
            self._drain_inbox()
            now_s = self._loop.time()
            if self._ticks_due:
                self._tick(now_s)
            self._hand_over.run(now_s)
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
        for _ in range(min(len(inbox), INBOX_PER_TURN_MAX)):
            item = inbox.popleft()
            if type(item) is tuple:
                self._from_peer(*item)
            elif type(item) is AppendWork:
                self._outbox.durable(item)
            else:
                assert callable(item)
                item()

    def _from_peer(self, member_id: int, boot_id: int, message: PeerMessage) -> None:
        core = self._core
        if boot_id != self._admission.boot_id(member_id):
            return  # a process that is gone: what it acknowledged may be lost with it
        if type(message) is Message:
            if message.from_ != member_id or message.to != self._id:
                return
            if message.type is MessageType.SNAPSHOT or self._disk.deaf(message):
                return  # the core must not take a snapshot whose bytes are not here: see `image_receiver`
            if self._cut_guard.active and not self._cut_guard.may_step(member_id, boot_id, message):
                return
            if message.type is MessageType.PROPOSE:
                self.membership.on_message(member_id, boot_id, message)
            else:
                core.step(message)
        elif type(message) is ForwardedBatch:
            self._hand_over.on_forwarded(member_id, message)
        elif type(message) is ForwardRefused:
            self._hand_over.on_refused(member_id, boot_id, message)
        elif type(message) is Question:
            self._questions.on_question(member_id, message)
        elif type(message) is Answer:
            self._questions.on_answer(message)

    def _append_done(self, work: AppendWork) -> None:
        self._inbox.append(work)
        self._wake()

    def _tick(self, now_s: float) -> None:
        self._disk.look()
        ticks, self._ticks_due = self._ticks_due, 0
        if self._admission.admitted and (self.is_leader or self._disk.may_campaign):
            for _ in range(ticks):
                self._core.tick()
        self._hand_over.tick(now_s)
        self._questions.sweep()
        self.membership.tick(now_s)
        self.transfer.look()
        if self._write_behind.due(now_s):
            self._write_behind.begin()
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
        self._notices.look()
        self._observe()

    def _observe(self) -> None:
        """Notice a change of term, leader or role, and tell everybody it matters to."""
        core, seen = self._core, self._seen
        if core.term == seen.term and core.leader == seen.leader and core.role is seen.role:
            return
        event = self._seen = NodeEvent(core.term, core.leader, core.role)
        self._hand_over.changed(event, other_leader=(event.term, event.leader) != (seen.term, seen.leader))
        self.transfer.look()
        if event.role is Role.LEADER:
            self._cut_guard.release()
        if event.leader:
            self._post(self._questions.ask_again)
            self._leader_changes += event.leader != seen.leader
            self._failover.cancel()
        for listener in self._listeners:
            listener(event)

    def _may_campaign(self) -> bool:
        return self._admission.admitted and self._disk.may_campaign and not self._ended

    def _apply(self) -> bool:
        """Apply what this turn's slice allows; False when entries are left over."""
        applier = self._applier
        before = applier.applied
        finished = applier.run()
        if applier.applied != before:
            self.on_applied()
            self._reads.applied(applier.applied)
            if self._write_behind.due(self._loop.time()):
                self._write_behind.begin()
        return finished

    def _mark(self) -> StateMark:
        return StateMark(self._applier.applied, self._applier.applied_term, self.membership.conf)

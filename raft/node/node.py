"""One member: the loop that owns the core, and the order in which its effects happen.

Theory of operation. Whatever happens (a message, a finished sync, a tick, a proposal, a read) is put
into the inbox or a queue and schedules a loop iteration, at most one at a time. An *iteration* drains the
inbox, ticks if ticks are due, forwards what waits, and carries out the core's effects until there are none.
So work is done per batch, and cost per operation falls as load grows. Nothing else touches the core.

The order within one Ready is the contract of `raft.core.ready`: messages leave first, so that others
write while we do; the append work goes to the log, and its responses leave when it is durable; what
is committed and durable here is applied, in slices, so that heartbeats are never late.

Ticks come after the inbox: a member that was paused must first take the messages of the meantime.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

from raft.core.ready import AppendWork, Ready
from raft.core.types import Role
from raft.node.forwarder import Forwarder
from raft.node.leader_rpc import Answerer
from raft.node.node_config import INBOX_PER_ITERATION_MAX, ITERATION_ROUNDS_MAX, TICKS_PER_STALL_MAX
from raft.node.node_status import NodeEvent, NodeStatistics, NodeStatus
from raft.node.outbox import Outbox
from raft.node.peer_receiver import PeerReceiver, Peers
from raft.node.replica import Replica
from raft.node.snapshots import ReplicatedState
from raft.node.transfer import Transfer

logger = logging.getLogger(__name__)


class Node:
    """A member from `start` to `stop`, in the event loop in which `raft.node.assemble` made it."""

    def __init__(
        self,
        replica: Replica,
        peers: Peers,
        receiver: PeerReceiver,
        forwarder: Forwarder,
        state: ReplicatedState,
        outbox: Outbox,
    ) -> None:
        self._replica = replica
        self._config = replica.config
        self._core = replica.core
        self._transport = replica.transport
        self._inbox = replica.inbox
        self._inbox.iterate = self._iterate
        self._loop = replica.loop
        self._identity_check = peers.identity_check
        self._torn_tail_guard = peers.torn_tail_guard
        self.membership = peers.membership
        self._failover = peers.failover
        self.transfer = Transfer(replica)
        self._receiver = receiver
        self._forwarder = forwarder
        self.propose = forwarder.propose
        self.read_barrier = forwarder.read_barrier
        self.call_leader = forwarder.call_leader
        """See `Forwarder` for each of the three."""
        self._reads = forwarder.reads
        self._machine = state.machine
        self._applier = state.applier
        self._checkpointer = state.checkpointer
        self._outbox = outbox
        self._log = outbox.log
        self._disk = outbox.disk
        self.snapshots = outbox.snapshots
        self._iterations = self._leader_changes = 0
        self._seen = NodeEvent(0, 0, Role.FOLLOWER)
        """The latest event that subscribers received."""
        self._listeners: list[Callable[[NodeEvent], None]] = []
        self.on_applied: Callable[[], None] = lambda: None
        """Called after each round of an iteration in which entries were applied; set before `start`."""
        self._tick_s = replica.config.heartbeat_interval_ms / 1000
        self._ticks_due = 0
        """Ticks to deliver in the next iteration, at most TICKS_PER_STALL_MAX."""
        self._tick_at_s = 0.0
        """Loop time of the next tick."""
        self._tick_timer: asyncio.TimerHandle | None = None
        self._stopped = False
        """`stop` has begun."""

    # ------------------------------------------------------------------ start and stop

    async def start(self) -> None:
        """Load the state, join the peers, begin to tick. Raises what backend, machine and transport raise."""
        await self._checkpointer.load()
        self._inbox.open = True
        self.membership.refresh()
        # Planned before the transport starts, in which this member may fail; at a random phase, so that
        # members started together do not count silence in step.
        self._tick_at_s = self._loop.time() + self._replica.options.rng.random() * self._tick_s
        self._tick_timer = self._loop.call_at(self._tick_at_s, self._on_tick)
        try:
            await self._transport.start(self._identity_check.handshake, self._receiver)
        except BaseException:
            self._end()
            raise
        self._failover.campaign_if_starting()
        self._inbox.wake()

    async def stop(self) -> None:
        """Disconnect at once, so that the others elect at once; then flush and close. Idempotent."""
        if self._stopped:
            return
        failed, self._stopped = not self._inbox.open, True
        if not failed:
            self._end()
        async with AsyncExitStack() as steps:  # from the last to the first; all are taken, whichever fails
            steps.push_async_callback(self._log.close)
            steps.push_async_callback(lambda: self._checkpointer.backend.close())
            steps.push_async_callback(self._checkpointer.close, flush=not failed)
            steps.push_async_callback(self.snapshots.close)
            steps.push_async_callback(self._failover.close)
            steps.push_async_callback(self._transport.close)

    def fail(self, reason: str) -> None:
        """Stop answering after an error that leaves nothing to guarantee, and have the process exit.

        Also the inner step of the log's fatal hook. Every request completes as unknown or stopped.
        """
        if not self._inbox.open:
            self._inbox.items.append(lambda: self.fail(reason))  # before start: for the first iteration
            return
        logger.critical("member %x stops: %s", self.member_id, reason)
        self._end()
        self._transport.reset_connections()
        self._replica.options.fatal(reason)

    def leave(self, reason: str) -> None:
        """This member was removed from the cluster: have the process exit in good order."""
        if self._inbox.open:
            self._end()
            self._replica.options.fatal(reason)

    def _end(self) -> None:
        self._inbox.open = False
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        self._outbox.close()
        self.snapshots.cancel()
        self._failover.cancel()
        self.membership.close()
        self._forwarder.close()
        self.transfer.close()

    # ------------------------------------------------------------------ for the layers above

    def answer_with(self, answerer: Answerer) -> None:
        """Set what answers the leader calls that reach this member while it leads."""
        self._forwarder.leader_rpc.answerer = answerer

    @property
    def member_id(self) -> int:
        return self._config.member_id

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
        self._listeners.append(listener)

    def subscribe_installed(self, listener: Callable[[int], None]) -> None:
        """Call `listener(index)` in the loop whenever a snapshot has replaced the machine's whole state."""
        self.snapshots.listeners.append(listener)

    def on_disk_stalled(self) -> None:
        """A sync hangs: the watchdog's `on_stall` hook. Ticks detect it too."""
        self._disk.on_stalled()

    def on_log_space(self, available: bool) -> None:
        """The disk has no space for the log's next segment, or has again: the log's `on_space` hook."""
        if self._inbox.open:
            self._disk.on_space(available)
        else:
            self._inbox.items.append(lambda: self._disk.on_space(available))  # before start

    def status(self) -> NodeStatus:
        """A consistent view of this moment; costs tens of microseconds, not for hot paths."""
        status, applier, checkpointer = self._core.status(), self._applier, self._checkpointer
        proposals, reads = self._forwarder.proposals, self._reads
        return NodeStatus(
            member_id=self.member_id,
            term=status.term,
            vote=status.vote,
            leader=status.leader,
            role=status.role,
            commit=status.commit,
            applied=applier.applied,
            first_index=self._core.first_index,
            last_index=status.last_index,
            durable_index=checkpointer.durable.index,
            vote_eligible=self._identity_check.vote_eligible,
            trusted=not self._torn_tail_guard.active,
            conf=status.conf,
            matched={peer.member: peer.match for peer in status.peers},
            waiting_operations=len(proposals.waiting),
            in_flight_operations=proposals.flight_count,
            undurable_bytes=checkpointer.undurable_bytes,
            backend_bytes=checkpointer.backend.size_bytes(),
            statistics=NodeStatistics(
                batches_proposed=proposals.batches,
                operations_proposed=proposals.operations,
                entries_applied=applier.entries,
                operations_applied=applier.operations,
                read_rounds=reads.rounds,
                reads=reads.reads,
                leader_changes=self._leader_changes,
                state_commits=checkpointer.commits,
                state_commit_buckets=tuple(checkpointer.buckets),
                state_commit_seconds=checkpointer.seconds,
                iterations=self._iterations,
            ),
            snapshots=self.snapshots.statistics(),
            writer=self._log.statistics(),
            peers=self._transport.statistics(),
        )

    # ------------------------------------------------------------------ the loop

    def _on_tick(self) -> None:
        now_s = self._loop.time()
        missed = 1 + int((now_s - self._tick_at_s) / self._tick_s)
        self._ticks_due = min(self._ticks_due + missed, TICKS_PER_STALL_MAX)
        self._tick_at_s += missed * self._tick_s
        self._tick_timer = self._loop.call_at(self._tick_at_s, self._on_tick)
        self._inbox.wake()

    def _iterate(self) -> None:
        inbox = self._inbox
        inbox.scheduled = False
        if not inbox.open:
            return
        self._iterations += 1
        try:
            if not self._run_iteration():
                inbox.wake()
        except Exception as error:  # a broken invariant: any further message or answer may be wrong
            logger.exception("member %x cannot go on", self.member_id)
            self.fail(f"internal error: {error!r}")

    def _run_iteration(self) -> bool:
        """Do what there is to do; False when some of it is left for the next iteration."""
        core = self._core
        self._applier.begin_iteration()
        for _ in range(ITERATION_ROUNDS_MAX):
            self._drain_inbox()
            now_s = self._loop.time()
            if self._ticks_due:
                self._tick(now_s)
            self._forwarder.run(now_s)
            ready = core.has_ready()
            if ready:
                self._execute(core.take_ready())
            applied = self._apply()
            if not ready and not self._inbox.items:
                return applied
        return False

    def _drain_inbox(self) -> None:
        items = self._inbox.items
        for _ in range(min(len(items), INBOX_PER_ITERATION_MAX)):
            item = items.popleft()
            if type(item) is tuple:
                self._receiver.take(*item)
            elif type(item) is AppendWork:
                self._outbox.durable(item)
            else:
                assert callable(item)
                item()

    def _tick(self, now_s: float) -> None:
        self._disk.tick()
        ticks, self._ticks_due = self._ticks_due, 0
        if self._identity_check.vote_eligible and (self.is_leader or self._disk.may_campaign):
            for _ in range(ticks):
                self._core.tick()
        self._forwarder.tick(now_s)
        self.membership.tick()
        self.transfer.tick()
        if self._checkpointer.due(now_s):
            self._checkpointer.begin()
        self.snapshots.tick()

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
        self._outbox.commit_broadcast.plan_if_due()
        self._observe()

    def _observe(self) -> None:
        """Detect a change of term, leader or role, and notify every part and subscriber."""
        core, seen = self._core, self._seen
        if core.term == seen.term and core.leader == seen.leader and core.role is seen.role:
            return
        event = self._seen = NodeEvent(core.term, core.leader, core.role)
        self._forwarder.changed(event, other_leader=(event.term, event.leader) != (seen.term, seen.leader))
        self.transfer.tick()
        if event.role is Role.LEADER:
            self._torn_tail_guard.release()
        if event.leader:
            self._inbox.post(self._forwarder.leader_rpc.resend)
            self._leader_changes += event.leader != seen.leader
            self._failover.cancel()
        for listener in self._listeners:
            listener(event)

    def _apply(self) -> bool:
        """Apply what this iteration's slice allows; False when entries are left over."""
        applier = self._applier
        before = applier.applied
        finished = applier.run()
        if applier.applied != before:
            self.on_applied()
            self._reads.applied(applier.applied)
            if self._checkpointer.due(self._loop.time()):
                self._checkpointer.begin()
        return finished

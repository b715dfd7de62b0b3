"""The way to the leader: ordered, deduplicated by incarnation, with one guarantee to choose per request.

* `propose`: a command, in order with the others and applied at most once. It waits in `proposal_queue`; the
  leader takes it by its forwarding session (`forwarding_sessions`).
* `call_leader`: a request that may be repeated, answered by the leader's application (`leader_rpc`).
* `Membership.change`: a membership change, one at a time and made at most once (`change_queue`).
* `read_barrier`: a read round, which the core itself forwards (`reads`).

When this member leads, its own commands go into its own core, in one proposal with the batches that others
have forwarded. Otherwise they go to the leader of the current term, and only to the incarnation of it that
was known when it began to lead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from raft.core import ProposalDropped
from raft.core.types import Role
from raft.node.change_queue import ChangeQueue
from raft.node.checkpointer import Checkpointer
from raft.node.disk_health import DiskHealth
from raft.node.forwarding_sessions import ForwardingSessions
from raft.node.identity_check import PeerIncarnations
from raft.node.leader_rpc import LeaderRpc, OnReply
from raft.node.node_config import RESEND_MS, TIMER_RESOLUTION_S
from raft.node.node_errors import NoSpace, Stopped, TooManyRequests
from raft.node.node_status import NodeEvent
from raft.node.proposal_queue import Batch, ProposalQueue
from raft.node.reads import OnRead, Reads
from raft.node.replica import Replica
from raft.node.request_outcome import OnResult, stopped
from raft.transport.transport_protocol import ForwardedBatch, ForwardRefused


@dataclass(frozen=True, slots=True)
class RequestQueues:
    """What waits for the leader, by guarantee."""

    proposals: ProposalQueue
    reads: Reads
    leader_rpc: LeaderRpc
    changes: ChangeQueue


class Forwarder:
    """Moves requests from the queues of this member to the leader, and takes those of other members."""

    def __init__(
        self,
        replica: Replica,
        queues: RequestQueues,
        incarnations: PeerIncarnations,
        disk: DiskHealth,
        checkpointer: Checkpointer,
    ) -> None:
        self._core = replica.core
        self._transport = replica.transport
        self._inbox = replica.inbox
        self._loop = replica.loop
        self._id = replica.member_id
        self._incarnation = replica.incarnation
        self._timeout_s = replica.config.request_timeout_ms / 1000
        self._gather_s = replica.config.gather_ms / 1000
        self._incarnations = incarnations
        self._disk = disk
        self._checkpointer = checkpointer
        self.proposals = queues.proposals
        self.reads = queues.reads
        self.leader_rpc = queues.leader_rpc
        self.changes = queues.changes
        self._sessions = ForwardingSessions()
        self._gather_timer: asyncio.TimerHandle | None = None
        """Set while commands or reads gather behind earlier ones."""
        self._send_blocked = False
        """The stream to the leader took no batch; tried again at its next opening or the next tick."""
        self._known_leader: tuple[int, int, int | None] = (0, 0, None)
        """Term, leader, and the latest incarnation of the leader when it was first known to lead."""

    # -- requests of this member

    def propose(self, command: bytes, on_result: OnResult) -> None:
        """Have `command` applied; `on_result(outcome, error)` is called once. Never raises.

        NotApplied errors are certain; OutcomeUnknown ones are not. Commands are applied in the order
        of their proposal, except around those whose outcome is unknown.
        """
        if not self._inbox.open:
            on_result(None, Stopped("server stopped"))
        elif self._disk.full and self._core.role is Role.LEADER:
            on_result(None, NoSpace("no space left for the log"))
        elif self._checkpointer.full:
            on_result(None, TooManyRequests("too much is applied that the backend does not hold yet"))
        elif self.proposals.offer(command, on_result, self._loop.time() + self._timeout_s):
            self._inbox.wake()
        else:
            on_result(None, TooManyRequests("too many requests"))

    def read_barrier(self, on_result: OnRead) -> None:
        """Call `on_result(None)` once the local state holds everything acknowledged before this call.

        Otherwise `on_result(error)`: ReadTimedOut, TooManyRequests or Stopped. Never raises.
        """
        if not self._inbox.open:
            on_result(Stopped("server stopped"))
        elif self.reads.offer(on_result, self._loop.time() + self._timeout_s):
            self._inbox.wake()
        else:
            on_result(TooManyRequests("too many requests"))

    def call_leader(self, data: bytes, on_result: OnReply) -> None:
        """Have the leader's `answer_with` answer `data`; `on_result(reply, error)` is called once.

        Never raises. Errors: ReadTimedOut, NoLeader, TooManyRequests or Stopped. May be answered twice.
        """
        if not self._inbox.open:
            on_result(b"", Stopped("server stopped"))
        else:
            self.leader_rpc.call(data, on_result, self._loop.time() + self._timeout_s)

    # -- events

    def tick(self, now_s: float) -> None:
        """Fail requests past their deadline, and resend what may be lost."""
        self._send_blocked = False
        self.proposals.expire(now_s, self._core.leader)
        self.reads.sweep(now_s)
        if now_s >= self.proposals.forwarded_s + RESEND_MS / 1000:
            self._resend(now_s)
        self.leader_rpc.tick()
        self.changes.tick(now_s)

    def connected(self, member_id: int) -> None:
        if member_id == self._core.leader:
            self._send_blocked = False
            self.reads.restart()
            self._resend(self._loop.time())
            self.leader_rpc.resend()

    def changed(self, event: NodeEvent, *, other_leader: bool) -> None:
        """Term, leader or role changed; `other_leader`: not only the role."""
        if other_leader:
            self.reads.restart()
            self._send_blocked = False
            self._known_leader = (event.term, event.leader, self._incarnations.latest(event.leader))
        if event.role is Role.LEADER:
            self._sessions.lead(event.term)
        else:
            for member_id, refusal in self._sessions.step_down():
                self._transport.send(member_id, refusal)

    def on_batch(self, member_id: int, batch: ForwardedBatch) -> None:
        """Another member forwards its commands to us."""
        leading_term = 0
        if self._core.role is Role.LEADER:
            leading_term = self._core.term
            self._sessions.lead(leading_term)
        refusal = self._sessions.on_batch(member_id, batch, leading_term)
        if refusal is not None:
            self._transport.send(member_id, refusal)

    def on_refused(self, member_id: int, incarnation: int, message: ForwardRefused) -> None:
        """A leader takes our batches no more."""
        if message.incarnation == self._incarnation:
            self.proposals.refused(message.term, member_id, incarnation, message.counter)

    def superseded(self, term: int) -> None:
        """The state is now that of a snapshot up to an entry of `term`."""
        self.proposals.superseded(term)
        self.changes.superseded()

    def close(self) -> None:
        """The member stops: complete every request, as unknown if it may be in a log."""
        if self._gather_timer is not None:
            self._gather_timer.cancel()
        not_applied = stopped(forwarded=False)
        self.proposals.fail_all(not_applied, stopped(forwarded=True))
        self.reads.fail_all(not_applied)
        self.leader_rpc.fail_all(not_applied)
        self.changes.close()

    # -- forwarding

    def run(self, now_s: float) -> None:
        """Forward what waits and may go; in every round of a loop iteration."""
        if self.proposals.waiting or self._sessions.waiting or self.proposals.marker_due:
            self._forward(now_s)
        if self.reads.waiting:
            self._begin_reads(now_s)
        self.changes.run()

    def _forward(self, now_s: float) -> None:
        core, leader = self._core, self._core.leader
        if leader == self._id:
            self._propose_here(now_s)
        elif leader and self._has_own() and not self._send_blocked:
            incarnation = self._leader_incarnation()
            if incarnation is None or not self.proposals.open_session(core.term, leader, incarnation):
                return
            for batch in self._take_batches(now_s):
                message = ForwardedBatch(core.term, self._incarnation, batch.position, batch.data)
                if not self._transport.send(leader, message):
                    self.proposals.take_back(batch)
                    self._send_blocked = True
                    return

    def _has_own(self) -> bool:
        return bool(self.proposals.waiting) or self.proposals.marker_due

    def _leader_incarnation(self) -> int | None:
        """The incarnation that leads; None if this member leads, or the leader may have restarted."""
        core, incarnation = self._core, self._incarnations.latest(self._core.leader)
        return incarnation if (core.term, core.leader, incarnation) == self._known_leader else None

    def _propose_here(self, now_s: float) -> None:
        """We lead: our own commands and the batches forwarded to us, in one proposal."""
        if self._checkpointer.full or not self._disk.well:
            return
        datas = self._sessions.pending()
        batches: list[Batch] = []
        if self._has_own() and self.proposals.open_session(self._core.term, self._id, self._incarnation):
            batches.extend(self._take_batches(now_s))
            datas.extend(batch.data for batch in batches)
        if not datas:
            return
        try:
            self._core.propose(datas)
        except ProposalDropped:
            # Too much is uncommitted, or a leadership transfer is under way: all of it waits as before.
            for batch in reversed(batches):
                self.proposals.take_back(batch)
        else:
            self._core.hasten_commit_broadcast(self._sessions.appended())

    def _take_batches(self, now_s: float) -> Iterator[Batch]:
        proposals = self.proposals
        while proposals.waiting or proposals.marker_due:
            wait_s = proposals.gather_wait_s(now_s)
            if wait_s > 0:
                self._gather(wait_s)
                return
            batch = proposals.take_batch(now_s)
            if batch is None:
                return
            yield batch

    def _resend(self, now_s: float) -> None:
        """Send every batch in flight to the leader once more; it takes each once."""
        leader, incarnation = self._core.leader, self._leader_incarnation()
        if incarnation is None:
            return
        for message in self.proposals.unapplied(self._core.term, leader, incarnation, now_s):
            if not self._transport.send(leader, message):
                return

    def _begin_reads(self, now_s: float) -> None:
        wait_s = self.reads.begin_wait_s(now_s)
        if wait_s is None or not self._core.leader or self._disk.stalled:
            return
        if wait_s > 0:
            self._gather(wait_s)
        else:
            self._core.read_index(self.reads.begin(now_s))

    def _gather(self, wait_s: float) -> None:
        """Run again when requests have gathered long enough; a tick is soon enough for longer waits."""
        if self._gather_timer is None and wait_s <= self._gather_s:
            self._gather_timer = self._loop.call_later(max(wait_s, TIMER_RESOLUTION_S), self._gathered)

    def _gathered(self) -> None:
        self._gather_timer = None
        self._inbox.wake()

"""Giving what waits to whoever leads: commands in batches, reads in rounds.

Our own commands go into our own core when this member leads, in one proposal with what others have
forwarded; else to the leader of the current term, and to that process of it that was heard leading. What
may be handed over, and in which order, is decided by `proposals` and `forwarding`; when a read round may
begin, by `reads`. This is the place that knows where to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from raft.core import ProposalDropped, RaftCore
from raft.core.types import Role
from raft.node.checkpointer import Checkpointer
from raft.node.disk_health import DiskHealth
from raft.node.forwarding import Forwarding
from raft.node.identity_check import IdentityCheck
from raft.node.node_config import RESEND_MS, TIMER_RESOLUTION_S, NodeConfig
from raft.node.node_status import NodeEvent
from raft.node.proposals import Batch, Proposals
from raft.node.reads import Reads
from raft.transport.transport_protocol import ForwardedBatch, ForwardRefused, Transport


class ForwardToLeader:
    """The way of commands and reads from this member's queues to the leader. Called by the core's owner."""

    def __init__(
        self,
        *,
        config: NodeConfig,
        incarnation: int,
        core: RaftCore,
        transport: Transport,
        proposals: Proposals,
        reads: Reads,
        identity_check: IdentityCheck,
        disk: DiskHealth,
        checkpointer: Checkpointer,
        loop: asyncio.AbstractEventLoop,
        wake: Callable[[], None],
    ) -> None:
        self._config = config
        self._id = config.member_id
        self._incarnation = incarnation
        self._core = core
        self._transport = transport
        self._proposals = proposals
        self._reads = reads
        self._identity_check = identity_check
        self._disk = disk
        self._checkpointer = checkpointer
        self._loop = loop
        self._wake = wake
        """Plans a turn of the owner."""
        self._forwarding = Forwarding()
        self._gather_timer: asyncio.TimerHandle | None = None
        """Set while commands or reads gather behind earlier ones."""
        self._send_blocked = False
        """The stream to the leader took no batch; tried again at its next opening or the next tick."""
        self._heard: tuple[int, int, int | None] = (0, 0, None)
        """Term, leader, and the process of it that said so: of a member only the newest is listened to."""

    # -- what happened

    def tick(self, now_s: float) -> None:
        self._send_blocked = False
        self._proposals.expire(now_s, self._core.leader)
        self._reads.sweep(now_s)
        if now_s >= self._proposals.forwarded_s + RESEND_MS / 1000:
            self._send_again(now_s)

    def connected(self, member_id: int) -> None:
        """A stream to the member has opened."""
        if member_id == self._core.leader:
            self._send_blocked = False
            self._reads.restart()
            self._send_again(self._loop.time())

    def changed(self, event: NodeEvent, *, other_leader: bool) -> None:
        """Term, leader or role changed; `other_leader`: not only the role."""
        if other_leader:
            self._reads.restart()
            self._send_blocked = False
            self._heard = (event.term, event.leader, self._identity_check.incarnation(event.leader))
        if event.role is Role.LEADER:
            self._forwarding.lead(event.term)
        else:
            for member_id, refusal in self._forwarding.step_down():
                self._transport.send(member_id, refusal)

    def on_forwarded(self, member_id: int, batch: ForwardedBatch) -> None:
        """Another member hands its commands to us."""
        leading_term = 0
        if self._core.role is Role.LEADER:
            leading_term = self._core.term
            self._forwarding.lead(leading_term)
        refusal = self._forwarding.on_batch(member_id, batch, leading_term)
        if refusal is not None:
            self._transport.send(member_id, refusal)

    def on_refused(self, member_id: int, incarnation: int, message: ForwardRefused) -> None:
        """A leader takes ours no more."""
        if message.incarnation == self._incarnation:
            self._proposals.refused(message.term, member_id, incarnation, message.counter)

    def cancel(self) -> None:
        """The member ends."""
        if self._gather_timer is not None:
            self._gather_timer.cancel()

    # -- what waits

    def run(self, now_s: float) -> None:
        """Hand over what waits and may go; in every round of the owner's turn."""
        if self._proposals.waiting or self._forwarding.waiting or self._proposals.marker_due:
            self._forward(now_s)
        if self._reads.waiting:
            self._begin_reads(now_s)

    def _forward(self, now_s: float) -> None:
        """Give waiting commands to whoever leads."""
        core, leader = self._core, self._core.leader
        if leader == self._id:
            self._propose_here(now_s)
        elif leader and not self._forwarding_only() and not self._send_blocked:
            incarnation = self._leader_process()
            if incarnation is None or not self._proposals.open_window(core.term, leader, incarnation):
                return
            for batch in self._take_batches(now_s):
                message = ForwardedBatch(core.term, self._incarnation, batch.position, batch.data)
                if not self._transport.send(leader, message):
                    self._proposals.take_back(batch)
                    self._send_blocked = True
                    return

    def _forwarding_only(self) -> bool:
        """Whether nothing of our own is to be handed over."""
        return not (self._proposals.waiting or self._proposals.marker_due)

    def _leader_process(self) -> int | None:
        """The process that leads, as it said itself; None if we lead, or it may be gone."""
        core, incarnation = self._core, self._identity_check.incarnation(self._core.leader)
        return incarnation if (core.term, core.leader, incarnation) == self._heard else None

    def _propose_here(self, now_s: float) -> None:
        """We lead: our own commands and the forwarded batches of the turn, in one proposal."""
        if self._checkpointer.full or not self._disk.well:
            return
        datas = self._forwarding.pending()
        batches: list[Batch] = []
        if not self._forwarding_only() and self._proposals.open_window(
            self._core.term, self._id, self._incarnation
        ):
            batches.extend(self._take_batches(now_s))
            datas.extend(batch.data for batch in batches)
        if not datas:
            return
        try:
            self._core.propose(datas)
        except ProposalDropped:
            # Too much uncommitted, or leadership is being handed on: all of it waits where it was.
            for batch in reversed(batches):
                self._proposals.take_back(batch)
        else:
            self._core.hasten_commit_broadcast(self._forwarding.appended())

    def _take_batches(self, now_s: float) -> Iterator[Batch]:
        proposals = self._proposals
        while proposals.waiting or proposals.marker_due:
            wait_s = proposals.gather_wait_s(now_s)
            if wait_s > 0:
                self._gather(wait_s)
                return
            batch = proposals.take_batch(now_s)
            if batch is None:
                return
            yield batch

    def _send_again(self, now_s: float) -> None:
        """Send everything in flight to the leader once more; it takes each batch once."""
        leader, incarnation = self._core.leader, self._leader_process()
        if incarnation is None:
            return
        for message in self._proposals.unapplied(self._core.term, leader, incarnation, now_s):
            if not self._transport.send(leader, message):
                return

    def _begin_reads(self, now_s: float) -> None:
        wait_s = self._reads.begin_wait_s(now_s)
        if wait_s is None or not self._core.leader or self._disk.stalled:
            return
        if wait_s > 0:
            self._gather(wait_s)
        else:
            self._core.read_index(self._reads.begin(now_s))

    def _gather(self, wait_s: float) -> None:
        """Come back when what waits has gathered long enough; ticks look after longer waits."""
        if self._gather_timer is None and wait_s <= self._config.gather_ms / 1000:
            self._gather_timer = self._loop.call_later(max(wait_s, TIMER_RESOLUTION_S), self._gathered)

    def _gathered(self) -> None:
        self._gather_timer = None
        self._wake()

"""Fast elections: a dead leader is replaced by evidence, a silent one by the election timeout.

When a stream to or from the leader of the current term ends, one plain connection distinguishes a living
leader (same incarnation: nothing changes) from a dead one (refused, reset, another incarnation). Only for a
dead one does this member forget the leader and request pre-votes at once, in its slot, so that the survivors
do not split. Forgetting is what lets the others' pre-votes be granted before the election timeout; it is
safe because terms and votes stay as they are.

A member that starts knows of no leader either. As `NodeConfig.start_campaign` says, it waits for one no
longer than it takes to connect to a quorum, then requests pre-votes in its slot as well. Only the moment of a
campaign changes: members that hear a leader ignore pre-votes, and it sends none before it is vote-eligible.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from raft.node.node_config import StartCampaign
from raft.node.replica import Replica
from raft.transport.transport_protocol import Liveness

logger = logging.getLogger(__name__)

SLOT_MS = 60
"""Distance between the campaigns of two survivors: an election among living members takes a few
round trips and two syncs, well below this, so the first usually wins before the second begins."""

SLOT_JITTER_MS = 20
"""Spread within a slot, so that members who rank one another differently do not collide for ever."""

RETRY_MIN_MS = 100
RETRY_MAX_MS = 300
"""A lost fast round (the other survivors still waited for their probes) is tried again after this."""

RETRIES_MAX = 5
"""Then the usual timeouts take over: what prevents the election lasts longer than milliseconds."""


class Failover:
    """At most one probe and one planned campaign of one member."""

    def __init__(self, replica: Replica, may_campaign: Callable[[], bool]) -> None:
        self._core = replica.core
        self._transport = replica.transport
        self._rng = replica.options.rng
        self._loop = replica.loop
        self._post = replica.inbox.post
        self._may_campaign = may_campaign
        self._start_campaign = replica.config.start_campaign
        """AFTER_TIMEOUT once a campaign was planned or a leader known."""
        self._probe: asyncio.Task[None] | None = None
        """The probe under way. Kept here, awaited by `close`."""
        self._campaign: asyncio.TimerHandle | None = None
        """The planned campaign. Set only while no leader is known that came after the dead one."""
        self._rounds_left = 0
        self._closed = False

    def campaign_if_starting(self) -> None:
        """Called when this member has started, has become vote-eligible, or is connected to another one."""
        when, voters = self._start_campaign, self._core.conf.voters
        if when is StartCampaign.AFTER_TIMEOUT or self._closed or not self._may_campaign():
            return
        alone = voters == (self._core.id,)
        reached = {self._core.id, *self._transport.connected_peers()}.intersection(voters)
        if self._core.id not in voters or 2 * len(reached) <= len(voters):
            return
        if when is StartCampaign.IF_ALONE and not alone:
            return
        self._start_campaign = StartCampaign.AFTER_TIMEOUT
        self._rounds_left = 1 + RETRIES_MAX
        if alone:
            self._run()
        else:
            self._plan(voters.index(self._core.id) * SLOT_MS + self._rng.uniform(0, SLOT_JITTER_MS))

    def stream_ended(self, member_id: int) -> None:
        """A stream to or from a member ended; matters when it leads."""
        if self._closed or member_id != self._core.leader or member_id == self._core.id:
            return
        if self._probe is None:
            term = self._core.term
            self._probe = self._loop.create_task(
                self._run_probe(member_id, term), name=f"probe {member_id:x}"
            )

    def restarted(self, member_id: int) -> None:
        """The member has come back in a new incarnation: if it led, it leads no more."""
        if not self._closed and member_id == self._core.leader and member_id != self._core.id:
            self._leader_dead(member_id)

    def cancel(self) -> None:
        """A leader is known, or this member stops: plan no campaign."""
        self._start_campaign = StartCampaign.AFTER_TIMEOUT
        if self._campaign is not None:
            self._campaign.cancel()
            self._campaign = None

    async def close(self) -> None:
        self._closed = True
        self.cancel()
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)

    async def _run_probe(self, member_id: int, term: int) -> None:
        try:
            liveness = await self._transport.probe(member_id)
        finally:
            self._probe = None
        core = self._core
        if liveness is Liveness.DEAD and not self._closed and (core.leader, core.term) == (member_id, term):
            self._leader_dead(member_id)

    def _leader_dead(self, leader: int) -> None:
        core = self._core
        logger.info("leader %x of term %d is dead; electing another at once", leader, core.term)
        self._post(lambda: self._forget(leader))
        self._rounds_left = 1 + RETRIES_MAX
        voters = [member for member in core.conf.voters if member != leader]
        rank = voters.index(core.id) if core.id in voters else len(voters)
        self._plan(rank * SLOT_MS + self._rng.uniform(0, SLOT_JITTER_MS))

    def _forget(self, leader: int) -> None:
        if self._core.leader == leader:  # and no other one is known yet
            self._core.forget_leader()

    def _plan(self, wait_ms: float) -> None:
        if self._campaign is not None:
            self._campaign.cancel()
        self._campaign = self._loop.call_later(wait_ms / 1000, self._run)

    def _run(self) -> None:
        self._campaign = None
        if self._closed or self._core.leader or not self._may_campaign():
            return
        self._rounds_left -= 1
        self._post(self._core.campaign)
        if self._rounds_left > 0:
            self._plan(self._rng.uniform(RETRY_MIN_MS, RETRY_MAX_MS))

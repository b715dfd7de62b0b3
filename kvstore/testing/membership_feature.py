"""The feature `members`: guests join, are promoted, lead and are removed during the faults.

The bootstrap members stay, so that what a run checks of a healed majority of them holds with any guests,
which are healed too. Faults are drawn for bootstrap members only, but faults of the leader and of links hit
guests as well: a guest may lead, and be removed while it does. The oracle: acknowledged changes are applied
and stay, a removed member never runs again, and all agree on the configuration.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kvstore.engine import (
    MemberAdd,
    MemberCommand,
    MemberPromote,
    MemberRemove,
    MembersResult,
    encode_member_command,
)
from raft.core.confchange import ConfChange, ConfStep, ConfStepKind, members_of
from raft.core.types import ConfState
from raft.node import LearnerNotReady, NodeError, NotApplied

if TYPE_CHECKING:
    from kvstore.testing.nodes import Simulation
    from kvstore.testing.simulation import SimulatedNode

GUESTS_MAX = 2
"""Guests at once: with more, a majority of the bootstrap members and all guests need not be a quorum."""

THINK_S = (0.2, 1.5)
"""Between two changes."""

TRANSFER_S = 3.0
"""A member that leads throughout, and is not paused, ends a transfer well before. Without a leader the caller
waits for one as long as any request does."""

CONVERGE_S = 10.0
"""After healing: until all have applied the same changes, and removed members have stopped."""


class MembershipFeature:
    """Implements `Feature`."""

    def __init__(self, cluster: Simulation, rng: random.Random) -> None:
        self._cluster = cluster
        self._rng = rng
        self._guests: list[int] = []
        """Added, perhaps, and not acknowledged as removed."""
        self._voters: set[int] = set()
        """Guests whose promotion was acknowledged. Never iterated without sorting."""
        self._present: set[int] = set()
        """Guests whose addition was acknowledged and whose removal was not yet requested."""
        self._removed: set[int] = set()
        """Guests whose removal was acknowledged."""
        self._next = max(cluster.members) + 100
        self._stopping = False
        self._counts: Counter[str] = Counter()

    def started(self, member_id: int, node: SimulatedNode) -> None:
        """Nothing to do: guests need no client of their own."""

    def ended(self, member_id: int) -> None:
        """See `started`."""

    def operations(self) -> Mapping[str, int]:
        return self._counts

    def stop(self) -> None:
        self._stopping = True

    async def live(self) -> None:
        while not self._stopping:
            await asyncio.sleep(self._rng.uniform(*THINK_S))
            if self._stopping:
                return
            await self._step()

    async def _step(self) -> None:
        rng, draw = self._rng, self._rng.random()
        if len(self._guests) < GUESTS_MAX and draw < 0.5:
            await self._add()
        elif self._guests and draw < 0.8:
            guest = rng.choice(self._guests)
            if guest not in self._voters:
                await self._promote(guest)
            elif rng.random() < 0.5:
                await self._transfer(guest)
            else:
                await self._remove(guest)
        elif self._guests and draw < 0.95:
            await self._remove(rng.choice(self._guests))
        elif self._guests:
            self._cluster.kill(rng.choice(self._guests), rng.uniform(0, 1), power=True)

    # -- changes

    async def _add(self) -> None:
        if self._cluster.leader() is None:
            return  # joining needs a cluster with a leader
        guest, self._next = self._next, self._next + 1
        voter = self._rng.random() < 0.3
        self._cluster.enlist(guest)  # whatever the outcome of the request: it may be added
        self._guests.append(guest)
        kind = ConfStepKind.ADD_VOTER if voter else ConfStepKind.ADD_LEARNER
        command = MemberAdd(guest, (f"http://guest{guest}:1",), not voter, GUESTS_MAX)
        if await self._change("add", kind, command):
            self._present.add(guest)
            if voter:
                self._voters.add(guest)

    async def _promote(self, guest: int) -> None:
        if await self._change("promote", ConfStepKind.ADD_VOTER, MemberPromote(guest)):
            self._voters.add(guest)

    async def _remove(self, guest: int) -> None:
        self._present.discard(guest)
        self._voters.discard(guest)
        self._cluster.may_leave.add(guest)
        if await self._change("remove", ConfStepKind.REMOVE, MemberRemove(guest)):
            self._removed.add(guest)
            self._guests.remove(guest)

    async def _change(self, name: str, kind: ConfStepKind, command: MemberCommand) -> bool:
        """Request a change from any member; whether it was acknowledged."""
        usable = self._cluster.usable()
        if not usable:
            return False
        change = ConfChange((ConfStep(kind, command.id),))
        requested = self._cluster.change(self._rng.choice(usable), change, encode_member_command(command))
        try:
            outcome = await requested
        except LearnerNotReady:
            self._counts[f"{name} too early"] += 1
        except NotApplied:
            self._counts[f"{name} fail"] += 1
        except NodeError:
            self._counts[f"{name} unknown"] += 1
        else:
            acknowledged = isinstance(outcome, MembersResult)
            self._counts[f"{name} {'ok' if acknowledged else 'refused'}"] += 1
            return acknowledged
        return False

    async def _transfer(self, to: int) -> None:
        found = self._cluster.leader()
        if found is None:
            return
        leader = self._cluster.members[found.member_id].running
        ended = asyncio.Event()
        failed: list[NodeError | None] = []

        def on_result(error: NodeError | None) -> None:
            failed.append(error)
            ended.set()

        term, began_s = leader.term, self._cluster.loop.time() - leader.paused_s
        leader.transfer.begin(to, on_result)
        await ended.wait()
        self._counts["transfer ok" if failed == [None] else "transfer fail"] += 1
        took_s = self._cluster.loop.time() - leader.paused_s - began_s
        if took_s > TRANSFER_S and leader.is_leader and leader.term == term:
            self._violate("a transfer of leadership ends", f"to {to}: only after {took_s:.1f} s")

    # -- the oracle

    def _violate(self, invariant: str, detail: str) -> None:
        self._cluster.judge.violate(invariant, detail)

    async def check_liveness(self, core: Sequence[int]) -> None:
        cluster = self._cluster
        end_s = cluster.loop.time() + CONVERGE_S
        while len(confs := self._confs(core)) > 1 or any(self._runs(guest) for guest in self._removed):
            if cluster.loop.time() > end_s:
                alive = sorted(guest for guest in self._removed if self._runs(guest))
                self._violate("membership converges", f"{confs}; removed and alive: {alive}")
                return
            await asyncio.sleep(0.05)  # virtual time; there is no event to await
        (conf,) = confs
        if conf.voters_outgoing:
            self._violate("membership converges", f"still joint: {conf}")
        lost = [member for member in cluster.bootstrap_members if member not in conf.voters]
        missing = sorted(guest for guest in self._present if guest not in members_of(conf))
        back = sorted(guest for guest in self._removed if guest in members_of(conf))
        if lost or missing or back:
            self._violate(
                "an acknowledged change of the membership holds",
                f"lost: {lost + missing}, back: {back}, in {conf}",
            )
        silent = sorted(guest for guest in self._voters if guest not in conf.voters)
        if silent:
            self._violate("a promoted member votes", f"{silent} in {conf}")
        for member_id in core:
            engine = cluster.witness(member_id).engine
            listed = {member.id: member.is_learner for member in engine.members()}
            guests = [member for member in members_of(conf) if member not in cluster.bootstrap_members]
            if listed != {guest: guest in conf.learners for guest in guests}:
                self._violate("the list of members is the configuration", f"{listed} and {conf}")
            unknown = sorted(guest for guest in self._removed if not engine.is_removed(guest))
            if unknown:
                self._violate("a removed member is remembered", f"{unknown} on member {member_id}")

    def _confs(self, core: Sequence[int]) -> list[ConfState]:
        """The different configurations that the members of `core` have applied."""
        confs = [self._cluster.members[member_id].running.membership.conf for member_id in core]
        return list(dict.fromkeys(confs))

    def _runs(self, guest: int) -> bool:
        node = self._cluster.members[guest].node
        return node is not None and not node.failed

    def revisions(self) -> Sequence[int]:
        return ()

    def judge(self) -> None:
        """Nothing to do: `check_liveness` needed running members."""

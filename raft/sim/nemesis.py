"""Carries out a schedule's faults against a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raft.core import (
    ConfChange,
    ConfState,
    ConfStep,
    ConfStepKind,
    ConfTransition,
    ProposalDropped,
    RaftCore,
    Role,
)
from raft.sim.kernel import stream
from raft.sim.network import Link
from raft.sim.schedule import Fault

if TYPE_CHECKING:
    from raft.sim.cluster import Cluster
    from raft.sim.member import Member

_LINK_FAULTS = frozenset(("drop", "slow", "tail", "duplicate", "partition", "isolate", "lure", "narrow"))


class Nemesis:
    """Begins and ends faults; knows which are active."""

    def __init__(self, cluster: Cluster, faults: tuple[Fault, ...]) -> None:
        self._cluster = cluster
        self._links: dict[int, tuple[Fault, int]] = {}
        """Active link faults: number -> (fault, its member)."""
        self._broken: dict[int, int] = {}
        """Active crashes, pauses and slow disks: number -> member."""
        self._faults = faults
        self._eager: list[Fault] = []
        """Membership changes to propose to each next leader, at the moment it is elected."""
        self.begun: dict[str, int] = {}
        self.over = False
        """Once healed, no fault begins any more."""
        cluster.network.inject = self._inject
        for number, fault in enumerate(faults):
            cluster.kernel.at(fault.at, self._begin, number)

    def heal(self, reachable: dict[int, bool]) -> None:
        """End all faults of `reachable` members; the others stay isolated."""
        self.over = True
        self._links.clear()
        for number in list(self._broken):
            if reachable.get(self._broken[number]):
                self._end(number)
        apart = [member for member in self._cluster.members if not reachable.get(member)]
        for number, member in enumerate(apart):
            fault = Fault("isolate", 0, 0, {"member": member, "way": "both"})
            self._links[-1 - number] = (fault, member)
        self._cluster.network.refresh()

    # ------------------------------------------------------------------ links

    def _inject(self, source: int, target: int, link: Link) -> None:
        for fault, member in self._links.values():
            kind, args = fault.kind, fault.args
            if kind == "drop":
                link.drop = max(link.drop, args["share"])
            elif kind == "duplicate":
                link.duplicate = max(link.duplicate, args["share"])
            elif kind == "tail":
                link.tail = max(link.tail, args["share"])
            elif kind == "slow":
                if member in (source, target):
                    link.slow = max(link.slow, args["us"])
            elif kind == "narrow":
                link.capacity = args["capacity"]
            elif kind == "partition":
                link.down = link.down or [source, target] in args["pairs"]
            elif kind == "lure":
                apart = args["with"] not in (source, target)
                link.down = link.down or (apart and member in (source, target))
            elif (member == target and args["way"] in ("both", "in")) or (
                member == source and args["way"] in ("both", "out")
            ):
                link.down = True

    # ------------------------------------------------------------------ beginning and ending

    def _begin(self, number: int) -> None:
        if self.over:
            return
        fault = self._faults[number]
        cluster = self._cluster
        member = fault.args.get("member", 0) or cluster.leader() or 1
        self.begun[fault.kind] = self.begun.get(fault.kind, 0) + 1
        if fault.kind in _LINK_FAULTS:
            self._links[number] = (fault, member)
            cluster.network.refresh()
            cluster.kernel.at(fault.until, self._end_link, number)
            return
        if fault.kind in ("crash", "pause", "disk"):
            self._broken[number] = member
            self._break(cluster.members[member], fault)
            cluster.kernel.at(fault.until, self._end, number)
        elif fault.kind == "member":
            self._change_members(fault.args["pick"])
            if fault.until > fault.at:
                self._eager.append(fault)
        elif fault.kind == "transfer":
            self._transfer(fault.args["to"])
        else:
            self._nudge(cluster.members[member], fault.args["pick"])

    def leads(self, member: Member) -> None:
        now = self._cluster.kernel.now
        for fault in self._eager:
            if fault.until >= now and not self.over:
                self._cluster.after(0, self._change_members, fault.args["pick"] + now)

    def _end_link(self, number: int) -> None:
        if self._links.pop(number, None) is not None:
            self._cluster.network.refresh()

    def _break(self, member: Member, fault: Fault) -> None:
        if fault.kind == "crash":
            member.down += 1
            if fault.args["amid"] and member.sync_us:
                member.crash_during = fault.args["amid"]
            elif member.up:
                member.crash()
        elif fault.kind == "pause":
            member.paused += 1
        else:
            member.sync_us = max(member.sync_us, fault.args["us"])

    def _end(self, number: int) -> None:
        member_id = self._broken.pop(number, None)
        if member_id is None:
            return
        member = self._cluster.members[member_id]
        kind = self._faults[number].kind
        if kind == "crash":
            member.down -= 1
            member.crash_during = ""
            if not member.down and not member.up:
                member.boot()
                self._cluster.restarted(member)
        elif kind == "pause":
            member.paused -= 1
            if member.up and not member.paused:
                member.resume()
        else:
            member.sync_us = self._cluster.schedule.sync_us

    # ------------------------------------------------------------------ requests

    def _leading(self) -> Member | None:
        leader = self._cluster.leader()
        member = self._cluster.members.get(leader)
        return member if member is not None and member.up and not member.paused else None

    def _transfer(self, to: int) -> None:
        member = self._leading()
        if member is not None:
            member.led_since = member.transfer_since = member.ticks
            member.do(lambda core: core.transfer_leader(to))

    def _change_members(self, pick: int) -> None:
        member = self._leading()
        if member is None:
            return
        change = self._draw_change(member.core.conf, pick)
        learners = member.core.conf.learners
        promoted = [m for kind, m in change.steps if kind is ConfStepKind.ADD_VOTER and m in learners]
        probes = self._cluster.probes
        try:
            member.core.propose_conf(change)
        except ProposalDropped:
            probes.hit("a membership change is refused")
        probes.hit("a learner is promoted", when=bool(promoted))
        member.process_ready()

    def _draw_change(self, conf: ConfState, pick: int) -> ConfChange:
        """Some change of the members; one in a joint configuration mostly leaves it."""
        rng = stream(pick, "change")
        if conf.voters_outgoing and rng.random() < 0.5:
            return ConfChange()
        everyone = list(self._cluster.members)
        steps = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            kinds = [ConfStepKind.ADD_VOTER, ConfStepKind.ADD_VOTER, ConfStepKind.ADD_LEARNER]
            if len(conf.voters) > 1:
                kinds += [ConfStepKind.REMOVE, ConfStepKind.REMOVE]
            steps.append(ConfStep(rng.choice(kinds), rng.choice(everyone)))
        transition = ConfTransition.AUTO
        if rng.random() < 0.4:
            transition = rng.choice((ConfTransition.JOINT_IMPLICIT, ConfTransition.JOINT_EXPLICIT))
        return ConfChange(tuple(steps), transition)

    def _nudge(self, member: Member, pick: int) -> None:
        """A report or request that may come at any time and must do no harm."""
        if not member.up or member.paused:
            return
        rng = stream(pick, "nudge")
        other = rng.choice([m for m in self._cluster.members if m != member.id] or [member.id])
        choices = [RaftCore.forget_leader, RaftCore.campaign]
        choice = rng.randrange(5)
        if choice < 2:
            member.do(choices[choice])
        elif choice == 2:
            member.checkpoint()
            member.compact(member.applied)
            member.process_ready()
        elif choice == 3 and other != member.id:
            member.do(lambda core: core.report_unreachable(other))
        elif member.core.role is not Role.LEADER:
            member.do(lambda core: core.transfer_leader(other))

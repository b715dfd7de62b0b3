"""One run: members, network, faults and clients on one virtual clock, checked after every event.

`run(schedule)` is the whole interface. At the end the cluster must recover: a random majority is healed, all
others stay down or isolated, and that majority must agree, commit and serve reads within a bounded time.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from raft.core import ConfChange, ConfState, CoreError, Message, ProposalDropped, Role
from raft.core.confchange import is_joint, leave_joint
from raft.core.invariants import InvariantViolated
from raft.core.quorum import VoteResult, joint_vote
from raft.sim.busy import busy_s
from raft.sim.checkers import Judge, Violation
from raft.sim.disk import Backend
from raft.sim.kernel import SECOND, Kernel
from raft.sim.member import Member
from raft.sim.nemesis import Nemesis
from raft.sim.network import Network
from raft.sim.probes import Probes
from raft.sim.schedule import Op, Schedule

RECOVERY_TIMEOUTS_MAX = 60
"""Election timeouts (of the longest draw) in which a healed majority must recover. A few elections, the
catching up of every member one entry per round trip, and a membership change left half done."""

STABLE_TIMEOUTS = 10
"""Longest election timeouts (twenty shortest ones) that the term must then stay the same."""


@dataclass(slots=True)
class Report:
    seed: int
    invariant: str | None
    """The violated invariant, None when all held."""
    detail: str
    at_us: int
    """Virtual time of the violation, or of the end."""
    events: int
    digest: int
    """Of everything that happened: equal runs have equal digests."""
    writes: dict[str, int] = field(default_factory=dict)
    """By outcome: ok, failed (certainly not applied), unknown."""
    reads: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    probes: dict[str, int] = field(default_factory=dict)
    terms: int = 0
    """Terms that had a leader."""
    virtual_us: int = 0
    busy_us: int = 0
    """Of it, the time with enough client calls and a fault active or ended shortly before."""


class Cluster:
    """All of one run. Everything hangs on `kernel`; nothing here outlives the run."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.kernel = Kernel(schedule.seed)
        self.probes = Probes()
        self.members: dict[int, Member] = {}
        self.snapshots: dict[tuple[int, int], Backend] = {}
        """Every snapshot sent, by index and term; equal keys hold equal snapshots."""
        conf = ConfState(voters=tuple(range(1, schedule.size + 1)))
        self.judge = Judge(conf, self.members)
        self.network = Network(
            self.kernel,
            self._deliver,
            base_us=schedule.base_us,
            jitter_us=schedule.jitter_us,
            ordered=schedule.ordered,
            hit=self.probes.hit,
        )
        self.digest = 0
        self.writes = {"ok": 0, "failed": 0, "unknown": 0}
        self.reads = {"ok": 0, "dropped": 0}
        self._serial = 0
        self._asked = (0, 0, 0)
        """Last requests of the recovery check: leader, its term, and reads dropped before them."""
        self._last_data = b""
        """Last write of the recovery check."""
        self._last_read = 0
        """Last read of the recovery check, made at every member under one context."""
        self.nemesis = Nemesis(self, schedule.faults)
        for member_id in range(1, schedule.size + schedule.spares + 1):
            self.members[member_id] = Member(self, member_id, conf)
        self._ops = iter(schedule.ops)
        self._next_op()

    # ------------------------------------------------------------------ used by members

    def after(self, delay_us: int, action: Callable[..., None], *args: Any) -> None:
        self.kernel.at(self.kernel.now + delay_us, action, *args)

    def _deliver(self, message: Message, incarnation: int) -> None:
        if self.members[message.from_].incarnation != incarnation:
            self.probes.hit("a message comes from an earlier incarnation")
        self.members[message.to].receive(message)

    def note(self, member: Member) -> None:
        """Add one member's present state to the digest of the run."""
        s = member.core._state
        text = b"%d %d %d %d %d" % (self.kernel.now, member.id, s.term, s.log.committed, s.log.last_index)
        self.digest = crc32(text, self.digest)

    def complete_write(self, data: bytes, outcome: str) -> None:
        self.writes[outcome] += 1
        if outcome == "failed":
            self.probes.hit("a write is known lost")
            if data in self.judge.written:
                raise Violation("a write known lost stays lost", data)
            self.judge.refuted.add(data)
        elif outcome == "unknown":
            self.probes.hit("a write's outcome is unknown")
            self.judge.unknown.add(data)
        elif data not in self.judge.written:
            raise Violation("an acknowledged write is committed", data)

    def drop_reads(self, count: int) -> None:
        self.reads["dropped"] += count
        self.probes.hit("a read is dropped", when=count > 0)

    def serve_reads(self, member: Member, count: int) -> None:
        self.reads["ok"] += count

    def restarted(self, member: Member) -> None:
        """A member restarted; some of the others report it to their cores."""
        for other in self.members.values():
            if other is not member and other.up and not other.paused and other.rng.random() < 0.5:
                progress = other.core._state.tracker.progress.get(member.id)
                leads = other.core.role is Role.LEADER and progress is not None and progress.match > 0
                self.probes.hit("a restarted follower must be probed again", when=leads)
                other.do(lambda core: core.report_restarted(member.id))

    def leader(self) -> int:
        """The leader of the highest term that is up, 0 if there is none."""
        leading = [(m.core.term, m.id) for m in self.members.values() if m.up and m.core.role is Role.LEADER]
        self.probes.hit("two members believe they lead", when=len(leading) > 1)
        return max(leading, default=(0, 0))[1]

    # ------------------------------------------------------------------ clients

    def _next_op(self) -> None:
        op = next(self._ops, None)
        if op is not None:
            self.kernel.at(max(op.at, self.kernel.now), self._operate, op)

    def _operate(self, op: Op) -> None:
        self._next_op()
        if op.kind == "write":
            # To any member that believes it leads: the others would refuse.
            able = [m for m in self.members.values() if self._serves(m) and m.core.role is Role.LEADER]
            if not able or not able[op.pick % len(able)].propose(self._new_data()):
                self.writes["failed"] += 1
            return
        able = [m for m in self.members.values() if self._serves(m)]
        if not able:
            self.reads["dropped"] += 1
            return
        self._serial += 1
        able[op.pick % len(able)].read(self._serial, self.judge.committed)

    def _serves(self, member: Member) -> bool:
        return member.up and not member.paused

    def _new_data(self) -> bytes:
        self._serial += 1
        return b"w%d" % self._serial

    # ------------------------------------------------------------------ recovery

    def check_recovery(self) -> None:
        """Heal a random majority only, and check that it recovers."""
        core = self._choose_core()
        self.nemesis.heal(core)
        ticks = 2 * self.members[1].config.election_ticks
        timeout = ticks * self.schedule.tick_us
        timeout += 4 * (self.schedule.base_us + self.schedule.jitter_us + self.schedule.sync_us)
        for _ in range(RECOVERY_TIMEOUTS_MAX):
            self.kernel.run(self.kernel.now + timeout)
            if self._has_recovered(core):
                break
        else:
            raise Violation("a majority recovers", self._describe(core))
        leader = self.members[self.leader()]
        conf = leader.core.conf
        # A removed member may still learn of the term.
        healed = [self.members[m] for m in core if core[m] and (m in conf.voters or m in conf.learners)]
        before = [leader.id, *(member.core.term for member in healed)]
        self.kernel.run(self.kernel.now + STABLE_TIMEOUTS * timeout)
        if before != [self.leader(), *(member.core.term for member in healed)]:
            raise Violation("a recovered majority keeps its leader", before, self._describe(core))

    def _choose_core(self) -> dict[int, bool]:
        """Members that will be healed: at random, until every configuration that may be in force or
        come into force has a majority among them."""
        rng = self.kernel.stream("calm")  # a key that recorded seeds depend on
        confs = self.judge.possible_confs()
        confs += [leave_joint(conf) for conf in confs if is_joint(conf)]
        core = dict.fromkeys(self.members, False)
        order = list(self.members)
        rng.shuffle(order)
        for member in order:
            lacking = [conf for conf in confs if self._lacks(conf, core)]
            core[member] = any(member in conf.voters + conf.voters_outgoing for conf in lacking)
        if self.members[1].config.withhold_votes:
            # Learners may follow, and members removed may ask for votes: neither may do harm.
            for member in order:
                voted = any(member in conf.voters + conf.voters_outgoing for conf in confs)
                core[member] = core[member] or (not voted and rng.random() < 0.5)
        return core

    def _lacks(self, conf: ConfState, core: dict[int, bool]) -> bool:
        return joint_vote(conf.voters, conf.voters_outgoing, core) is not VoteResult.WON

    def _has_recovered(self, core: dict[int, bool]) -> bool:
        """Whether the healed majority serves; otherwise makes the requests that would show it."""
        leader = self.members.get(self.leader())
        if leader is None or not core[leader.id]:
            return False
        conf = leader.core.conf
        if is_joint(conf) and not conf.auto_leave:
            self._leave_joint(leader)
            return False
        healed = [self.members[m] for m in core if core[m]]
        members = [m for m in healed if m.id in conf.voters or m.id in conf.learners]
        if self._asked == (leader.id, leader.core.term, self.reads["dropped"]) and not is_joint(conf):
            index = self.judge.written.get(self._last_data)
            if index is not None and all(
                m.applied >= index
                and self._last_read not in m.reads
                and m.core.leader == leader.id
                and m.conf == conf
                for m in members
            ):
                return True
        self._ask(leader, members)
        return False

    def _ask(self, leader: Member, members: list[Member]) -> None:
        """One write at the leader, and one read at each member."""
        self._last_data = self._new_data()
        leader.propose(self._last_data)
        self._serial += 1
        self._last_read = self._serial
        for member in members:
            member.read(self._last_read, self.judge.committed)
        self._asked = (leader.id, leader.core.term, self.reads["dropped"])

    def _leave_joint(self, leader: Member) -> None:
        try:
            leader.core.propose_conf(ConfChange())
        except ProposalDropped:
            return
        leader.process_ready()

    def _describe(self, core: dict[int, bool]) -> str:
        return "; ".join(
            f"{m.id}{'' if core[m.id] else ' apart'}: {m.core.status() if m.up else 'down'}"
            for m in self.members.values()
        )


def run(schedule: Schedule, *, until_us: int | None = None) -> Report:
    """Play a schedule, up to `until_us` if given (then without the recovery check)."""
    cluster = Cluster(schedule)
    invariant, detail = None, ""
    try:
        cluster.kernel.run(schedule.duration_us if until_us is None else until_us)
        if schedule.liveness and until_us is None:
            cluster.check_recovery()
        for member in cluster.members.values():
            if member.up:
                cluster.judge.full(member)
    except Violation as violation:
        invariant, detail = violation.invariant, str(violation)
    except InvariantViolated as violation:
        invariant, detail = str(violation).split(":")[0], str(violation)
    except (AssertionError, CoreError, LookupError, TypeError, ValueError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        invariant = f"{type(error).__name__} in {where.name}"
        detail = "".join(traceback.format_exception(error)[-6:])
    end_us = min(cluster.kernel.now, schedule.duration_us)
    busy = busy_s(
        [op.at / SECOND for op in schedule.ops],
        ((fault.at / SECOND, fault.until / SECOND) for fault in schedule.faults),
        end_us / SECOND,
    )
    return Report(
        schedule.seed,
        invariant,
        detail,
        cluster.kernel.now,
        cluster.kernel.events,
        cluster.digest,
        cluster.writes,
        cluster.reads,
        cluster.nemesis.begun,
        cluster.probes.counts,
        len(cluster.judge.leaders),
        cluster.kernel.now,
        int(busy * SECOND),
    )

"""One seeded run of whole members under faults: the schedule, the clients, the judge, and recovery.

    start -> all vote-eligible -> clients and faults -> heal a majority -> check liveness -> check the history

`play` takes a plan, `run_seed` draws one; they return a Report or raise SimulationFailed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kvstore.engine import Engine
from kvstore.testing.clients import Clients
from kvstore.testing.features import FEATURES, Feature, stream_key
from kvstore.testing.history_check import judge_history, with_other_revisions
from kvstore.testing.node_nemesis import NEVER_S, FaultyCluster, Nemesis
from kvstore.testing.plan import LENGTH_S, Plan, generate
from kvstore.testing.simulation import CLUSTER_ID, POLL_S, SimulatedNode
from kvstore.testing.simulation_judge import Broken, Judge, WitnessedEngine
from kvstore.testing.virtual_loop import run_virtual
from raft.core import RaftCore
from raft.node import NodeConfig
from raft.sim.busy import busy_s
from raft.sim.kernel import stream

OPERATIONS_PER_S_MIN = 17
"""Acknowledged operations per second of faults below which a run is inconclusive: 500 in a run of
full length. Where faults left too few, the clients catch up after healing."""

SERVED_MIN = 60
"""Acknowledged operations that a healed majority must reach at least."""

IN_FLIGHT_S = 6.0
"""Time after the last fault for messages in flight, which are delayed by up to 5 s."""

LEADER_WITHIN_TIMEOUTS = 10
"""A healed majority has a leader within so many election timeouts."""

SERVED_WITHIN_S = 10.0
"""With a leader, every healed member takes a write and serves a read within this time: a request timeout
for earlier requests, and a margin."""

POLL_STATUS_S = 0.05
"""How often, in virtual time, the probes poll the members' status."""

CATCH_UP_S = 20.0
"""Then the clients reach SERVED_MIN within this time, and have as long again for the rest."""


class SimulationFailed(Broken):
    def __init__(self, run: Run, broken: Broken) -> None:
        super().__init__(broken.invariant, str(broken))
        self.args = (f"{run.plan.name}, {run.report.virtual_s:.1f} s: {broken}",)
        self.report = run.report


@dataclass
class Report:
    seed: int
    size: int
    virtual_s: float = 0.0
    wall_s: float = 0.0
    digest: int = 0
    """Equal for two runs of one seed."""
    faults: dict[str, int] = field(default_factory=dict)
    processes: dict[str, int] = field(default_factory=dict)
    """How processes ended."""
    operations: dict[str, int] = field(default_factory=dict)
    leaders: int = 0
    """Terms that had a leader."""
    applied: int = 0
    torn: int = 0
    """Starts that found a torn log tail."""
    searched: int = 0
    """Keys whose history the search checked as well."""
    undecided: int = 0
    """1 when the revisions left the history undecided."""
    beyond_budget: int = 0
    """1 when more was lost than the design tolerates, so that liveness was not checked."""

    acknowledged: int = 0
    """Operations that were answered."""
    busy_s: float = 0.0
    """Virtual time with enough client calls and a fault active or healed shortly before."""
    inconclusive: str = ""
    """Why the run shows too little; empty when it is conclusive."""
    probes: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Simulation(FaultyCluster):
    """A cluster with the product's engine, observed by the judge. Implements `clients.Members`."""

    features: Sequence[Feature] = ()
    quiet = False
    """No feature injects faults of its own in this run."""

    faults_until_s = math.inf
    """Loop time after which features inject no faults either; known once faults begin."""

    def make_machine(self, member_id: int) -> WitnessedEngine:
        return WitnessedEngine(member_id, self.judge, Engine())

    async def begin(self, member_id: int) -> SimulatedNode:
        node = await super().begin(member_id)
        life = self.lives[member_id]
        self.witness(member_id).starts_at(node.applied)
        node.after_iteration = self._iteration_done
        node.subscribe_installed(self.witness(member_id).starts_at)
        node.subscribe(lambda event: self._role_seen(member_id, life, node))
        self.torn += not node.status().trusted
        for feature in self.features:
            feature.started(member_id, node)
        return node

    def ended(self, member_id: int) -> None:
        super().ended(member_id)
        for feature in self.features:
            feature.ended(member_id)

    def engine_of(self, member_id: int) -> Engine:
        return self.witness(member_id).engine

    def _iteration_done(self, core: RaftCore) -> None:
        self.judge.iteration_done(core, self.loop.time())
        self.probes.iteration_done(core)

    def _role_seen(self, member_id: int, life: int, node: SimulatedNode) -> None:
        if node.is_leader:
            self.judge.leads(node.term, member_id, life)
            self.judge.check_cores([node.core])

    torn = 0

    def witness(self, member_id: int) -> WitnessedEngine:
        machine = self.members[member_id].machine
        assert isinstance(machine, WitnessedEngine)
        return machine

    def usable(self) -> list[int]:
        return [node.member_id for node in self.running if not node.failed and self._belongs(node)]

    def _belongs(self, node: SimulatedNode) -> bool:
        """Whether clients would call this member: not one that has yet to join, or was removed."""
        conf = node.membership.conf
        return node.member_id in self.bootstrap_members or node.member_id in (*conf.voters, *conf.learners)

    def term(self, member_id: int) -> int:
        node = self.members[member_id].node
        return 0 if node is None else node.term

    def engine(self, member_id: int) -> Engine | None:
        node = self.members[member_id].node
        return None if node is None or node.failed else self.witness(member_id).engine


class Run:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = stream(plan.seed, "run")
        self.report = Report(plan.seed, plan.size)
        self.judge = Judge()
        self.operations_min = int(plan.length_s * OPERATIONS_PER_S_MIN)

    async def main(self) -> None:
        plan, seed = self.plan, self.plan.seed
        began_s = time.monotonic()  # real time, for the report only
        cluster = self.cluster = Simulation(
            seed=stream(seed, "cluster").getrandbits(64),
            size=plan.size,
            config=lambda member_id: NodeConfig(
                member_id=member_id,
                cluster_id=CLUSTER_ID,
                compaction_entries=plan.compaction_entries,
                catchup_entries=plan.catchup_entries,
                batch_bytes_max=plan.segment_bytes // 2,  # an entry must fit into a segment
                **plan.config,
            ),
        )
        cluster.prepare(self.judge)
        cluster.quiet = not plan.noise
        cluster.segment_bytes = plan.segment_bytes
        cluster.features = [
            FEATURES[name](cluster, stream(seed, f"feature/{stream_key(name)}")) for name in plan.features
        ]
        self.nemesis = Nemesis(cluster, stream(seed, "nemesis"))
        self.clients = Clients(
            cluster,
            self.judge,
            cluster.probes,
            stream(seed, "clients"),
            keys=plan.keys,
            padding=plan.padding,
            operations_max=plan.operations_max,
            roaming=plan.roaming,
        )
        try:
            await self._live()
        finally:
            report = self.report
            report.virtual_s, report.wall_s = cluster.loop.time(), time.monotonic() - began_s
            report.digest, report.leaders = self.judge.digest, self.judge.leaders
            report.faults, report.processes = dict(self.nemesis.fault_counts), dict(cluster.processes)
            operations = Counter(self.clients.outcomes)
            for feature in cluster.features:
                operations.update(feature.operations())
            report.operations, report.torn = dict(operations), cluster.torn
            report.acknowledged = self.clients.acknowledged
            cluster.probes.counts["a write of unknown outcome is applied"] += self.judge.unknown_applied()
            report.busy_s = busy_s(self.clients.called_s, self.nemesis.spans_s, report.virtual_s)
            report.applied = self.judge.applied_batches
        other_revisions = {revision for feature in cluster.features for revision in feature.revisions()}
        events = with_other_revisions(self.clients.events, sorted(other_revisions))
        decided, report.searched = judge_history(events, self.clients.keys)
        report.undecided = int(not decided)
        for feature in cluster.features:
            feature.judge()
        report.probes = {name: count for name, count in cluster.probes.counts.items() if count}
        self._no_violation()
        if report.acknowledged < self.operations_min:
            report.inconclusive = f"only {report.acknowledged} operations were acknowledged"

    async def _live(self) -> None:
        cluster, plan = self.cluster, self.plan
        await self._reach("every member starts", lambda: all(m.node for m in cluster.members.values()))
        await self._reach("a new cluster elects a leader", lambda: cluster.leader() is not None)
        await self._reach("every new member is vote-eligible", self._all_vote_eligible)
        loop = cluster.loop
        tasks = [loop.create_task(self.clients.run(plan.think_s)) for _ in range(plan.clients)]
        tasks += [loop.create_task(feature.live()) for feature in cluster.features]
        injections = loop.create_task(self.nemesis.run(plan.faults))
        try:
            await self._run_faults(tasks, injections)
            core = await self._heal() if plan.recovery else []
            if core:
                self.clients.targets = core
                await self._check_liveness(core)
                await self._check_progress()
            self.clients.stop()
            for feature in cluster.features:
                feature.stop()
            await asyncio.gather(*tasks)
        finally:
            for task in (*tasks, injections):
                task.cancel()
            await asyncio.gather(*tasks, injections, return_exceptions=True)
        if core:
            await self._agree(core)
            for feature in cluster.features:
                await feature.check_liveness(core)
        self._no_violation()
        for member_id in sorted(cluster.wiped):
            node = cluster.members[member_id].node
            if node is not None and node.status().vote_eligible:
                self.judge.violate("a member that lost its disk never votes", f"member {member_id}")
        await cluster.end()
        self._no_violation()

    async def _run_faults(self, tasks: Sequence[asyncio.Task[None]], injections: asyncio.Task[None]) -> None:
        loop = self.cluster.loop
        end_s = self.cluster.faults_until_s = loop.time() + self.plan.length_s
        while loop.time() < end_s:
            await asyncio.sleep(POLL_STATUS_S)
            self._no_violation()
            statuses = {node.member_id: node.status() for node in self.cluster.running}
            self.cluster.probes.polled(statuses, self.cluster.wiped)
            for task in tasks:
                if task.done():
                    task.result()  # only a failure ends it so early
        injections.cancel()
        (end,) = await asyncio.gather(injections, return_exceptions=True)
        assert end is None or isinstance(end, asyncio.CancelledError), f"the nemesis failed: {end!r}"

    async def _reach(
        self, invariant: str, condition: Callable[[], bool], timeout_s: float = 10.0, detail: str = ""
    ) -> None:
        """Wait in virtual time for a condition; raises Broken when it does not hold in time."""
        end_s = self.cluster.loop.time() + timeout_s
        while not condition():
            if self.cluster.loop.time() >= end_s:
                raise Broken(invariant, f"{detail} not within {timeout_s} s: {self.cluster.describe()}")
            await asyncio.sleep(POLL_S)
            self._no_violation()

    def _all_vote_eligible(self) -> bool:
        return all(
            node.status().vote_eligible
            and len(node.status().peers) == self.plan.size - 1
            and node.applied > 0
            for node in self.cluster.running
        )

    def _no_violation(self) -> None:
        if self.judge.violations:
            raise self.judge.violations[0]

    # ---- recovery and liveness

    async def _heal(self) -> list[int]:
        """Heal every fault of a random majority and return it; the others may stay faulty.

        Empty when more members lost their votes and acknowledged entries than the design tolerates.
        """
        cluster, rng = self.cluster, self.rng
        for member_id in cluster.members:
            cluster.hung_until_s[member_id] = cluster.sync_s[member_id] = 0.0
            cluster.repair(member_id)
        sound = [
            m for m in cluster.bootstrap_members if m not in cluster.wiped and m not in cluster.corrupted
        ]
        core = sorted(rng.sample(sound, rng.randint(self.plan.size // 2 + 1, len(sound))))
        back_s = max(at_s for at_s in cluster.start_at_s.values() if at_s != NEVER_S) - cluster.loop.time()
        await asyncio.sleep(max(0.0, back_s) + IN_FLIGHT_S if self.plan.faults else 0.0)
        if not self._can_elect(core):
            core = sound
        for other in cluster.bootstrap_members:
            if other in core or not self.plan.noise:
                continue
            noise = rng.choice(("dead", "receives nothing", "sends nothing", "up"))
            others = [member_id for member_id in cluster.members if member_id != other]
            if noise == "dead":
                cluster.kill(other, NEVER_S, power=True)
            elif noise == "receives nothing":
                self.nemesis.block([(source, other) for source in others])
            elif noise == "sends nothing":
                self.nemesis.block([(other, target) for target in others])
        if self._can_elect(core):
            return core
        self.report.beyond_budget = 1
        return []

    def _can_elect(self, core: Sequence[int]) -> bool:
        """Whether the design guarantees liveness: a quorum of trusted members, or the evidence of all voters
        that each untrusted member knows of (docs/decisions/0005)."""
        nodes = [self.cluster.members[member_id].running for member_id in core]
        states = [node.status() for node in nodes]
        if sum(state.vote_eligible and state.trusted for state in states) > self.plan.size // 2:
            return True
        campaigning = {node.member_id for node in self.cluster.running if is_voter(node)}
        return len(core) == self.plan.size and all(
            state.trusted or campaigning.issuperset(node.core.conf.voters)
            for node, state in zip(nodes, states, strict=True)
        )

    async def _check_liveness(self, core: Sequence[int]) -> None:
        cluster = self.cluster
        timeout_s = NodeConfig(member_id=1, cluster_id=1).election_timeout_ms / 1000

        def led() -> bool:
            leader = cluster.leader()
            return leader is not None and all(
                (n.leader, n.term) == (leader.member_id, leader.term)
                for n in cluster.running
                if n.member_id in core
            )

        await self._reach(
            "a healed majority elects a leader", led, LEADER_WITHIN_TIMEOUTS * timeout_s, f"{core}"
        )
        end_s = cluster.loop.time() + SERVED_WITHIN_S
        for member_id in core:
            while not await self.clients.put(member_id):
                if cluster.loop.time() > end_s:
                    raise Broken("every healed member takes a write", f"member {member_id} of {core}")
            while not await self.clients.get(member_id):
                if cluster.loop.time() > end_s:
                    raise Broken("every healed member serves a read", f"member {member_id} of {core}")
            self._no_violation()

    async def _check_progress(self) -> None:
        """The clients make progress, and catch up on the operations that the faults prevented."""
        clients, loop = self.clients, self.cluster.loop
        few = min(SERVED_MIN, self.operations_min, self.plan.operations_max)
        await self._reach(
            "clients of a healed cluster make progress", lambda: clients.acknowledged >= few, CATCH_UP_S
        )
        end_s = loop.time() + CATCH_UP_S
        while clients.acknowledged < self.operations_min and loop.time() < end_s:
            await asyncio.sleep(POLL_S)  # virtual time; there is no event to await
            self._no_violation()

    async def _agree(self, core: Sequence[int]) -> None:
        """All healed members reach the same state, and serve the same last values."""
        cluster = self.cluster
        nodes = [cluster.members[member_id].running for member_id in core]
        await self._reach(
            "healed members reach one index",
            lambda: len({node.applied for node in nodes}) == 1 and all(node.applied for node in nodes),
            SERVED_WITHIN_S,
            f"{core}",
        )
        for node in nodes:
            self.judge.state(node.member_id, node.applied, cluster.witness(node.member_id).engine)
            for key in self.clients.keys:
                await self.clients.get(node.member_id, key=key)
        self.judge.check_cores([node.core for node in nodes])


def is_voter(node: SimulatedNode) -> bool:
    """Whether the member is a voter as far as it knows, so that it campaigns and thereby shows its log."""
    return node.member_id in node.core.conf.voters


def play(plan: Plan) -> Report:
    """Run a plan to its end. Raises SimulationFailed when an invariant is violated.

    Logging is off meanwhile: members rightly report the injected faults.
    """
    run = Run(plan)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        run_virtual(run.main())
    except Broken as broken:
        raise SimulationFailed(run, broken) from broken
    except Exception as error:  # any exception of the product or the kit is a violation, named after it
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise SimulationFailed(run, Broken(f"{type(error).__name__} in {where.name}", str(error))) from error
    finally:
        logging.disable(level)
    return run.report


def run_seed(
    seed: int, *, length_s: float = LENGTH_S, classes: Sequence[str] = (), features: Sequence[str] = ()
) -> Report:
    """Run one seed to its end; `classes` and `features` instead of a drawn swarm, if given.

    Raises SimulationFailed, with the seed in its text, when an invariant is violated.
    """
    return play(generate(seed, length_s=length_s, classes=classes, features=features))


__all__ = ["Report", "Run", "SimulationFailed", "play", "run_seed"]

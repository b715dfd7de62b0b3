"""One seeded run of whole members under faults: the schedule, the clients, the judge, and the end.

    start -> everybody admitted -> clients and faults -> heal a majority -> it must live -> judge the history

`run_seed` returns a Report or raises SimulationFailed, whose text begins with the seed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kvstore.engine import Engine
from kvstore.testing.clients import Clients
from kvstore.testing.faults import Draw, Fault
from kvstore.testing.judge import Judge, WitnessedEngine
from kvstore.testing.nemesis import NEVER_S, FaultyCluster, Nemesis
from kvstore.testing.simulation import CLUSTER_ID, SimulatedNode, seeded
from kvstore.testing.virtual_loop import run_virtual
from kvstore.verify import (
    MODELS,
    Operation,
    Outcome,
    Semantics,
    VerdictKind,
    check_linearizability,
    check_revisions,
    pair_events,
)
from raft.node import NodeConfig
from raft.sim.busy import busy_s
from raft.storage.wal import SEGMENT_BYTES_MIN

LENGTH_S = 30.0
"""Virtual time under faults: dozens of elections' worth, and about a second of real time."""

OPERATIONS_PER_S_MIN = 17
"""Acknowledged operations per second of faults without which a run proves too little and is void: 500 in
a run of full length. Where faults left too few, the calm makes up for them."""

SERVED_MIN = 60
"""Acknowledged operations that a healed majority must at least have come to."""

SETTLE_S = 6.0
"""Time after the last fault for what is still on its way, which is up to 5 s late."""

LEADER_WITHIN_TIMEOUTS = 10
"""A healed majority has a leader within so many election timeouts."""

SERVED_WITHIN_S = 10.0
"""With a leader, every healed member takes a write and serves a read within this time: a request timeout
for what was begun before, and a margin."""

CALM_S = 20.0
"""Then the clients reach SERVED_MIN within this time, and then have as much again for the rest."""

SEARCH_BUDGET_S = 1.0
"""Real time for the cross-check by search; undecided is no verdict."""

SEARCH_OPERATIONS_MAX = 400
"""Histories of one key longer than this are left to the revisions."""


class SimulationFailed(AssertionError):
    """The run violates a promise; the text names the seed and what was seen."""


@dataclass
class Report:
    """What one run went through."""

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
    """Keys whose history the search judged as well."""
    undecided: int = 0
    """1 when the revisions left the history undecided."""
    beyond_budget: int = 0
    """1 when more had been lost than the design promises to survive, so that life was not demanded."""

    acknowledged: int = 0
    """Operations that were answered."""
    busy_s: float = 0.0
    """Virtual time with enough client calls and a fault at work or healed shortly before."""
    void: str = ""
    """Why the run proves too little; empty when it does not."""
    probes: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Simulation(FaultyCluster):
    """A cluster with the product's engine, watched by the judge. Implements what `Clients` asks for."""

    def make_machine(self, member_id: int) -> WitnessedEngine:
        return WitnessedEngine(member_id, self.judge, Engine())

    async def begin(self, member_id: int) -> SimulatedNode:
        node = await super().begin(member_id)
        life = self.lives[member_id]
        self.witness(member_id).starts_at(node.applied)
        node.turned = self.judge.turned
        node.subscribe_installed(self.witness(member_id).starts_at)
        node.subscribe(lambda event: self._role_seen(member_id, life, node))
        self.torn += not node.status().trusted
        return node

    def _role_seen(self, member_id: int, life: int, node: SimulatedNode) -> None:
        if node.is_leader:
            self.judge.leads(node.term, member_id, life)
            self.judge.look([node.core])

    torn = 0

    def witness(self, member_id: int) -> WitnessedEngine:
        machine = self.members[member_id].machine
        assert isinstance(machine, WitnessedEngine)
        return machine

    def usable(self) -> list[int]:
        return [node.member_id for node in self.running if not node.failed]

    def paused(self, member_id: int) -> bool:
        node = self.members[member_id].node
        return node is not None and node.paused

    def engine(self, member_id: int) -> Engine | None:
        node = self.members[member_id].node
        return None if node is None or node.failed else self.witness(member_id).engine


class Run:
    """One seed, from start to verdict."""

    def __init__(self, seed: int, *, length_s: float, classes: Sequence[str] = ()) -> None:
        """`classes` names the fault classes to use instead of the swarm's choice."""
        self.rng = rng = seeded(seed)
        self.size = rng.choice((3, 3, 5))
        self.report = Report(seed, self.size)
        self.length_s = length_s
        self.operations_min = int(length_s * OPERATIONS_PER_S_MIN)
        self.faults: list[Fault] = Draw(seeded(rng.getrandbits(64)), self.size).schedule(length_s, classes)
        self.judge = Judge()
        self.keys, self.clients_count = rng.choice((1, 3, 8)), rng.choice((4, 8, 16))
        self.think_s = rng.choice((0.02, 0.05, 0.1))
        self.segment_bytes = rng.choice((SEGMENT_BYTES_MIN, 1 << 16))
        self.compaction_entries = rng.choice((3, 40, 1024))
        self.catchup_entries = seeded(seed + 1).choice((1, 10, 5000))
        self.config = self._draw_config()

    def _draw_config(self) -> dict[str, Any]:
        """Small bounds reach their edges."""
        rng = self.rng
        return {
            "request_timeout_ms": rng.choice((1500, 3000, 7000)),
            "batch_operations_max": rng.choice((1, 3, 256)),
            "gather_ms": rng.choice((1, 10, 100)),
            "batches_in_flight_max": rng.choice((1, 2, 64)),
            "bytes_in_flight_max": rng.choice((300, 16 << 20)),
            "write_behind_bytes": rng.choice((500, 1 << 20)),
            "write_behind_ms": rng.choice((20, 1000)),
            "state_file_retry_ms": 500,
            "compaction_entries": self.compaction_entries,
            "catchup_entries": self.catchup_entries,
        }

    async def main(self) -> None:
        began_s = time.monotonic()  # real time, for the report only
        config = self.config
        cluster = self.cluster = Simulation(
            seed=self.rng.getrandbits(64),
            size=self.size,
            config=lambda member_id: NodeConfig(member_id=member_id, cluster_id=CLUSTER_ID, **config),
        )
        cluster.prepare(self.judge)
        cluster.segment_bytes = self.segment_bytes
        self.nemesis = Nemesis(cluster, seeded(self.rng.getrandbits(64)))
        self.clients = Clients(
            cluster,
            self.judge,
            seeded(self.rng.getrandbits(64)),
            keys=self.keys,
            padding=self.rng.choice((0, 2000)),
        )
        try:
            await self._live()
        finally:
            report = self.report
            report.virtual_s, report.wall_s = cluster.loop.time(), time.monotonic() - began_s
            report.digest, report.leaders = self.judge.digest, self.judge.leaders
            report.faults, report.processes = dict(self.nemesis.struck), dict(cluster.processes)
            report.operations, report.torn = dict(self.clients.outcomes), cluster.torn
            report.acknowledged = self.clients.acknowledged
            report.busy_s = busy_s(self.clients.called_s, self.nemesis.spans_s, report.virtual_s)
            report.applied = self.judge.applied_batches
        self._judge_history()
        if report.acknowledged < self.operations_min:
            report.void = f"only {report.acknowledged} operations were acknowledged"

    async def _live(self) -> None:
        cluster = self.cluster
        await cluster.wait_until(lambda: all(m.node for m in cluster.members.values()), what="every start")
        await cluster.wait_for_leader()
        await cluster.wait_until(self._all_admitted, what="every admission")
        crowd = range(self.clients_count)
        clients = [cluster.loop.create_task(self.clients.run(self.think_s)) for _ in crowd]
        strikes = cluster.loop.create_task(self.nemesis.run(self.faults))
        end_s = cluster.loop.time() + self.length_s
        while cluster.loop.time() < end_s:
            await asyncio.sleep(0.05)
            self._no_violation()
        strikes.cancel()
        (end,) = await asyncio.gather(strikes, return_exceptions=True)
        assert end is None or isinstance(end, asyncio.CancelledError), f"the nemesis failed: {end!r}"
        core = await self._heal()
        if core:
            await self._demand_life(core)
            await cluster.wait_until(
                lambda: self.clients.acknowledged >= SERVED_MIN, CALM_S, "enough operations"
            )
            end_s = cluster.loop.time() + CALM_S
            await cluster.wait_until(
                lambda: self.clients.acknowledged >= self.operations_min or cluster.loop.time() >= end_s,
                2 * CALM_S,
            )
        self.clients.stop()
        await asyncio.gather(*clients)
        if core:
            await self._agree(core)
        self._no_violation()
        for member_id in sorted(cluster.wiped):
            node = cluster.members[member_id].node
            if node is not None and node.status().admitted:
                self.judge.violate(f"member {member_id} lost its disk and votes again")
        await cluster.end()
        self._no_violation()

    def _all_admitted(self) -> bool:
        return all(
            node.status().admitted and len(node.status().peers) == self.size - 1 and node.applied > 0
            for node in self.cluster.running
        )

    def _no_violation(self) -> None:
        if self.judge.violations:
            raise SimulationFailed("; ".join(self.judge.violations[:3]))

    # ---- the liveness phase

    async def _heal(self) -> list[int]:
        """Lift every fault from a random majority, leave the others as they may be; the majority.

        Empty when so many members lost what they had promised that the design does not save them.
        """
        cluster, rng = self.cluster, self.rng
        for member_id in cluster.members:
            cluster.hung_until_s[member_id] = cluster.sync_s[member_id] = 0.0
            cluster.mend(member_id)
        sound = [member_id for member_id in cluster.members if member_id not in cluster.wiped]
        core = sorted(rng.sample(sound, rng.randint(self.size // 2 + 1, len(sound))))
        back_s = max(cluster.start_at_s.values()) - cluster.loop.time()
        await asyncio.sleep(max(0.0, back_s) + SETTLE_S)
        if not self._can_elect(core):
            core = sound
        for other in cluster.members:
            if other in core:
                continue
            noise = rng.choice(("dead", "deaf", "mute", "there"))
            others = [member_id for member_id in cluster.members if member_id != other]
            if noise == "dead":
                cluster.kill(other, NEVER_S, power=True)
            elif noise == "deaf":
                self.nemesis.cut([(source, other) for source in others])
            elif noise == "mute":
                self.nemesis.cut([(other, target) for target in others])
        if self._can_elect(core):
            return core
        self.report.beyond_budget = 1
        return []

    def _can_elect(self, core: Sequence[int]) -> bool:
        """Whether the design promises life: a quorum of trusted members, or all of them there."""
        states = [self.cluster.members[member_id].running.status() for member_id in core]
        voting = sum(state.admitted and state.trusted for state in states)
        return voting > self.size // 2 or len(core) == self.size

    async def _demand_life(self, core: Sequence[int]) -> None:
        cluster = self.cluster
        timeout_s = NodeConfig(member_id=1, cluster_id=1).election_timeout_ms / 1000

        def led() -> bool:
            leader = cluster.leader()
            return leader is not None and all(
                (n.leader, n.term) == (leader.member_id, leader.term)
                for n in cluster.running
                if n.member_id in core
            )

        await cluster.wait_until(led, LEADER_WITHIN_TIMEOUTS * timeout_s, f"a leader of {core}")
        end_s = cluster.loop.time() + SERVED_WITHIN_S
        for member_id in core:
            while not await self.clients.put(member_id):
                if cluster.loop.time() > end_s:
                    raise SimulationFailed(f"member {member_id} of the healed {core} takes no write")
            while not await self.clients.get(member_id):
                if cluster.loop.time() > end_s:
                    raise SimulationFailed(f"member {member_id} of the healed {core} serves no read")
            self._no_violation()

    async def _agree(self, core: Sequence[int]) -> None:
        """Everybody healed comes to the same state, and serves the same last values."""
        cluster = self.cluster
        nodes = [cluster.members[member_id].running for member_id in core]
        await cluster.wait_until(
            lambda: len({node.applied for node in nodes}) == 1 and all(node.applied for node in nodes),
            SERVED_WITHIN_S,
            f"the same applied index of {core}",
        )
        for node in nodes:
            self.judge.state(node.member_id, node.applied, cluster.witness(node.member_id).engine)
            for key in self.clients.keys:
                await self.clients.get(node.member_id, key=key)
        self.judge.look([node.core for node in nodes])

    # ---- the history

    def _judge_history(self) -> None:
        operations = pair_events(self.clients.events)
        verdict = check_revisions(operations)
        if verdict.kind is VerdictKind.INVALID:
            raise SimulationFailed("not linearizable: " + "; ".join(verdict.explanation[:3]))
        undecided = verdict.kind is VerdictKind.UNKNOWN
        self.report.undecided = int(undecided)
        for key in self.clients.keys:
            register = _as_register(operations, key)
            if not undecided and len(register) > SEARCH_OPERATIONS_MAX:
                continue
            found = check_linearizability(
                register, MODELS["cas-register"](Semantics.PORCUPINE, None), budget_s=SEARCH_BUDGET_S
            )
            if found.kind is VerdictKind.INVALID:
                raise SimulationFailed("not linearizable: " + "; ".join(found.explanation[:3]))
            self.report.searched += found.kind is VerdictKind.VALID


def _as_register(operations: Sequence[Operation], key: str) -> list[Operation]:
    """One key's operations as those of a register; serializable reads promise nothing to it."""
    register = []
    for operation in operations:
        if operation.invoked[0] != key or (operation.f == "get" and len(operation.invoked) > 1):
            continue
        if operation.f == "get":
            completed = operation.completed and operation.completed["value"]
            register.append(_replaced(operation, "read", None, completed))
        elif operation.f == "cas":
            failed = operation.outcome is Outcome.OK and not operation.completed["succeeded"]
            if operation.outcome is Outcome.FAIL:
                continue  # never took place, so its comparison says nothing
            outcome = Outcome.FAIL if failed else operation.outcome
            register.append(_replaced(operation, "cas", operation.invoked[1:], None, outcome))
        else:
            value = operation.invoked[1] if operation.f == "put" else None
            register.append(_replaced(operation, "write", value, value))
    return register


def _replaced(
    operation: Operation, f: str, invoked: Any, completed: Any, outcome: Outcome | None = None
) -> Operation:
    return Operation(
        process=operation.process,
        f=f,
        key=operation.invoked[0],
        invoked=invoked,
        completed=completed,
        outcome=outcome or operation.outcome,
        call=operation.call,
        ret=operation.ret,
        line=operation.line,
    )


def run_seed(seed: int, *, length_s: float = LENGTH_S, classes: Sequence[str] = ()) -> Report:
    """Run one seed to its end. Raises SimulationFailed with the seed in its text."""
    run = Run(seed, length_s=length_s, classes=classes)
    try:
        run_virtual(run.main())
    except AssertionError as failure:
        faults = Counter(fault.kind for fault in run.faults)
        raise SimulationFailed(f"seed {seed} ({run.size} members, {dict(faults)}): {failure}") from failure
    return run.report


__all__ = ["Report", "Run", "SimulationFailed", "run_seed"]

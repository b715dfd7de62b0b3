"""Compaction drops what every log and the own backend hold, and nothing else."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import cast

from kvstore.testing import SimulatedCluster
from kvstore.testing.simulation import CLUSTER_ID
from raft.core import BootState, Config, RaftCore
from raft.core.types import EMPTY_HARD_STATE, EMPTY_SNAPSHOT, ConfState, SnapshotMeta
from raft.node import NodeConfig, compaction
from raft.storage.storage_protocol import Checkpoint, LogWriter
from tests.node.scenarios import ledger, play

STEP = 64
"""Entries worth a compaction here: the product's thousand, in a fraction of the time."""
ENTRIES = 4 * STEP
COMPACTED_TIMEOUT_S = 30.0


def config(member_id: int) -> NodeConfig:
    return NodeConfig(
        member_id=member_id, cluster_id=CLUSTER_ID, compaction_entries=STEP, catchup_entries=10 * ENTRIES
    )


async def write(cluster: SimulatedCluster, member: int, name: str) -> None:
    """One entry per command: each is awaited before the next."""
    for n in range(ENTRIES):
        await cluster.propose(member, b"%s %d" % (name.encode(), n))


def bases(cluster: SimulatedCluster) -> list[int]:
    return [node.status().first_index - 1 for node in cluster.running]


def test_every_member_forgets_what_all_hold_and_starts_again_without_it() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        await write(cluster, 1, "a")
        await cluster.wait_until(lambda: min(bases(cluster)) > 0, COMPACTED_TIMEOUT_S, "compaction")
        for member in cluster.members:
            cluster.crash(member)
        for member in cluster.members:
            await cluster.start(member)
        await cluster.wait_for_leader()
        assert min(bases(cluster)) > 0, "the log on disk begins behind its new base"
        for member in cluster.members:
            await cluster.propose(member, b"after %d" % member)
            await cluster.read_barrier(member)
            assert len(ledger(cluster, member)) == ENTRIES + member, "nothing lost, nothing applied twice"

    play(scenario, seed=1, config=config)


def test_a_tail_of_the_log_is_kept_for_a_member_that_is_down() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        leader = await cluster.wait_for_leader()
        down = next(member for member in cluster.members if member != leader.member_id)
        cluster.crash(down)
        await write(cluster, leader.member_id, "b")
        await cluster.wait_until(
            lambda: all(node.status().durable_index > ENTRIES for node in cluster.running),
            COMPACTED_TIMEOUT_S,
            "durable checkpoints",
        )
        assert bases(cluster) == [0, 0], "the absent member still needs every entry"
        await cluster.start(down)
        await cluster.wait_until(lambda: min(bases(cluster)) > 0, COMPACTED_TIMEOUT_S, "compaction")
        await cluster.read_barrier(down)
        assert len(ledger(cluster, down)) == ENTRIES

    play(scenario, seed=2, config=config)


def test_a_new_leader_serves_a_member_that_lags_behind_its_base() -> None:
    """The next leader holds a base that no member lags behind, however often the lead changes."""

    async def scenario(cluster: SimulatedCluster) -> None:
        for iteration in range(4):
            leader = await cluster.wait_for_leader()
            await write(cluster, leader.member_id, f"round {iteration}")
            await cluster.wait_until(
                lambda: min(bases(cluster)) > 0 and len(cluster.running) == 3, COMPACTED_TIMEOUT_S
            )
            cluster.crash(leader.member_id)
            await cluster.wait_for_leader()
            await cluster.start(leader.member_id)
        for member in cluster.members:
            await cluster.read_barrier(member)
            assert len(ledger(cluster, member)) == 4 * ENTRIES

    play(scenario, seed=3, config=config)


def test_a_snapshot_taken_amid_apply_work_waits_for_the_end_of_that_work() -> None:
    """A checkpoint may be ahead of the core's applied index: works are applied in slices."""
    conf = ConfState(voters=(1,))
    boot = BootState(hard_state=EMPTY_HARD_STATE, snapshot=EMPTY_SNAPSHOT, entries=(), applied=0, conf=conf)
    core = RaftCore(Config(member_id=1), boot, random.Random(1))
    core.campaign()
    works = []
    for datas in ([], [b"x"] * (2 * STEP)):  # as a candidate, then as the leader
        if datas:
            core.propose(datas)
        while core.has_ready():
            ready = core.take_ready()
            if ready.append is not None:
                core.on_append_done(ready.append.token)
            if ready.apply is not None:
                works.append(ready.apply)
    core.tick()  # a heartbeat: all members, which is this one, hold everything
    last = works[-1].entries[-1].index
    assert core.applied == 0 < STEP < last <= core.held_by_all

    forgotten: list[SnapshotMeta] = []
    log = cast(LogWriter, SimpleNamespace(compact=forgotten.append))
    chosen = compaction.Compaction(core, log, config(1), lambda: None)
    durable = Checkpoint(last - 1, core.term, conf)
    chosen.consider(durable, 0)
    assert not forgotten
    for work in works:
        core.on_apply_done(work.entries[-1].index, work.nbytes)
    chosen.consider(durable, 0)
    assert [meta.index for meta in forgotten] == [last - 1] == [core.first_index - 1]

"""Members that campaign at their start elect without an election timeout, and disturb no leader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from kvstore.testing import SimulatedCluster, nodes, run_virtual
from kvstore.testing.plan import generate
from raft.node import NodeConfig, StartCampaign

ELECTION_TIMEOUT_S = 1.0
"""The default; a follower waits for one to two of it."""


def starting(when: StartCampaign) -> Callable[[int], NodeConfig]:
    return lambda member_id: NodeConfig(member_id=member_id, cluster_id=7, start_campaign=when)


when_connected = starting(StartCampaign.WHEN_CONNECTED)


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_a_cluster_elects_without_waiting_for_a_timeout(seed: int, size: int) -> None:
    """A new one, and again when all its members start on their data."""

    async def main() -> None:
        cluster = SimulatedCluster(seed=seed, size=size, config=when_connected)
        for _ in range(3):
            begun_s = cluster.loop.time()
            await cluster.start_all()
            await cluster.wait_for_leader(ELECTION_TIMEOUT_S * 0.9)
            for member in cluster.members:
                await cluster.propose(member, b"at once")
            assert cluster.loop.time() - begun_s < ELECTION_TIMEOUT_S
            cluster.power_cut()
        await cluster.stop_all()

    print(f"seed {seed}")
    run_virtual(main())


@pytest.mark.parametrize(
    ("when", "size", "at_once"),
    [
        (StartCampaign.AFTER_TIMEOUT, 1, False),
        (StartCampaign.IF_ALONE, 1, True),
        (StartCampaign.IF_ALONE, 3, False),
    ],
)
def test_without_the_setting_only_a_lone_member_does_not_wait(
    when: StartCampaign, size: int, at_once: bool
) -> None:
    async def main() -> None:
        cluster = SimulatedCluster(seed=1, size=size, config=starting(when))
        begun_s = cluster.loop.time()
        await cluster.start_all()
        await cluster.wait_for_leader()
        waited_s = cluster.loop.time() - begun_s
        assert (waited_s < ELECTION_TIMEOUT_S / 2) if at_once else (waited_s >= ELECTION_TIMEOUT_S)
        await cluster.stop_all()

    run_virtual(main())


@pytest.mark.parametrize("seed", range(4))
def test_one_that_starts_late_waits_for_a_quorum_only(seed: int) -> None:
    """Two of three members, of a cluster that has run: the first one cannot elect, the second one can."""

    async def main() -> None:
        cluster = SimulatedCluster(seed=seed, config=when_connected)
        await cluster.start_all()
        await cluster.wait_for_leader()
        cluster.power_cut()
        await cluster.start(1)
        await asyncio.sleep(5)
        assert cluster.members[1].running.leader == 0
        term = cluster.members[1].running.term
        begun_s = cluster.loop.time()
        await cluster.start(3)
        await cluster.wait_for_leader()
        assert cluster.loop.time() - begun_s < ELECTION_TIMEOUT_S
        assert cluster.members[1].running.term == term + 1
        await cluster.stop_all()

    print(f"seed {seed}")
    run_virtual(main())


@pytest.mark.parametrize("seed", range(8))
def test_a_member_that_comes_back_disturbs_no_leader(seed: int) -> None:
    """Whichever it is, also over slow links: neither the term nor the leader changes."""

    async def main() -> None:
        cluster = SimulatedCluster(seed=seed, config=when_connected)
        await cluster.start_all()
        leader = (await cluster.wait_for_leader()).member_id
        term = cluster.members[leader].running.term
        for member in [member for member in cluster.members if member != leader] * 3:
            cluster.crash(member)
            await asyncio.sleep(cluster.rng.uniform(0, 3))
            for other in cluster.members:
                slow = cluster.network.conditions(other, member)
                slow.delay_min_s, slow.delay_max_s = 0.0, 0.3
            await cluster.start(member)
            await cluster.wait_until(lambda: cluster.members[member].running.leader == leader)  # noqa: B023  awaited here
            await cluster.propose(member, b"back")
            await asyncio.sleep(3)
        assert [(node.leader, node.term) for node in cluster.running] == [(leader, term)] * 3
        await cluster.stop_all()

    print(f"seed {seed}")
    run_virtual(main())


@pytest.mark.parametrize("seed", range(6))
def test_under_faults_every_invariant_holds(seed: int) -> None:
    plan = generate(seed)
    plan.config["start_campaign"] = StartCampaign.WHEN_CONNECTED
    nodes.play(plan)

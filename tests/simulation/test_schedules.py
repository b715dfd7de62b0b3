"""Schedules made to break a promise, one by one: each was an attack that chance would seldom find."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator

import pytest

from kvstore.testing import SimulatedCluster, run_virtual

Schedule = Callable[[SimulatedCluster], Awaitable[None]]


@pytest.fixture(autouse=True)
def quiet_members() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def run(schedule: Schedule, *, seed: int = 1, size: int = 3) -> None:
    async def main() -> None:
        cluster = SimulatedCluster(seed=seed, size=size)
        await cluster.start_all()
        await cluster.wait_for_leader()
        await schedule(cluster)
        await cluster.stop_all()

    print(f"seed {seed}")
    run_virtual(main())


async def make_leader(cluster: SimulatedCluster, member_id: int) -> None:
    """Have leadership handed to a member."""
    while not cluster.members[member_id].running.is_leader:
        leader = await cluster.wait_for_leader()
        leader.ask(lambda core: core.transfer_leader(member_id))
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("seed", range(3))
def test_a_late_hello_of_a_gone_process_does_not_cut_a_member_off(seed: int) -> None:
    """The leader's new process leads on; then the answer its old one gave to a hello arrives at a follower.

    The follower takes writes as before: what it hears of a process that is gone closes nothing.
    """

    async def schedule(cluster: SimulatedCluster) -> None:
        leader = (await cluster.wait_for_leader()).member_id
        follower = 1 + leader % 3
        await cluster.propose(follower, b"before")
        slow = cluster.network.conditions(leader, follower)
        slow.delay_min_s = slow.delay_max_s = 1.5
        cluster.network.disconnect(follower, leader)  # dialled anew at once, answered late
        await asyncio.sleep(0.05)
        cluster.crash(leader, power=False)
        slow.delay_min_s, slow.delay_max_s = 0.0002, 0.001
        await cluster.start(leader)
        await make_leader(cluster, leader)
        term = cluster.members[leader].running.term
        await cluster.propose(follower, b"after")
        assert cluster.loop.time() < 3.0, "the late answer is still on its way"
        await asyncio.sleep(2.0)
        await asyncio.wait_for(cluster.propose(follower, b"at last"), 1.0)
        assert cluster.members[leader].running.term == term, "no other election came to the rescue"

    run(schedule, seed=seed)

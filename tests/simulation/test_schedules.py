"""Hand-written schedules, each aimed at one guarantee: random schedules would seldom reach them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import pytest

from kvstore.testing import SimulatedCluster, run_virtual
from raft.core import RaftCore
from raft.core.types import ConfState, HardState, Role
from raft.node import MemberOptions, NodeEvent, assembly
from raft.storage.storage_protocol import Checkpoint, Recovered

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
    """Transfer leadership to a member."""
    while not cluster.members[member_id].running.is_leader:
        leader = await cluster.wait_for_leader()
        leader.ask(lambda core: core.transfer_leader(member_id))
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("seed", range(3))
def test_a_late_handshake_of_an_earlier_incarnation_does_not_disconnect_a_member(seed: int) -> None:
    """The leader's new incarnation leads; then a handshake response of its old one arrives at a follower.

    The follower takes writes as before: a message of an earlier incarnation closes no connection.
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


@pytest.mark.parametrize("of_leader", [True, False])
def test_a_delayed_handshake_does_not_silence_a_member(of_leader: bool) -> None:
    """A member is killed and restarts; then a handshake of its old incarnation arrives at its peers."""

    async def schedule(cluster: SimulatedCluster) -> None:
        leader = (await cluster.wait_for_leader()).member_id
        killed = leader if of_leader else 1 + leader % 3
        transport = cluster.members[killed].transport
        assert transport is not None
        old = transport.handshake
        cluster.crash(killed, power=False)
        await cluster.start(killed)
        await make_leader(cluster, leader)
        await asyncio.sleep(1.0)
        term = cluster.members[leader].running.term
        for member_id in cluster.members:
            await cluster.propose(member_id, b"before %d" % member_id)
            if member_id != killed:
                cluster.network.late_handshake(old, member_id)
        await asyncio.sleep(0.5)
        for member_id in cluster.members:
            await asyncio.wait_for(cluster.propose(member_id, b"after %d" % member_id), 1.0)
            await asyncio.wait_for(cluster.read_barrier(member_id), 1.0)
        assert {node.term for node in cluster.running} == {term}, "no peer took the member for dead"

    run(schedule)


async def leaders_of_one_term(cluster: SimulatedCluster) -> dict[int, set[int]]:
    """A member is elected with the vote of another, which crashes next; then the third one campaigns."""
    led: dict[int, set[int]] = {}
    third = (await cluster.wait_for_leader()).member_id
    elected, voter = [member_id for member_id in cluster.members if member_id != third]

    def watch(member_id: int) -> None:
        node = cluster.members[member_id].running

        def changed(event: NodeEvent) -> None:
            if event.role is Role.LEADER:
                led.setdefault(event.term, set()).add(member_id)
                cluster.network.partition([elected], [third, voter])  # before the first append arrives

        node.subscribe(changed)

    watch(elected)
    cluster.network.isolate(third)
    for member_id in (elected, voter):
        cluster.members[member_id].running.ask(RaftCore.forget_leader)
    cluster.members[elected].running.ask(RaftCore.campaign)
    await cluster.wait_until(lambda: bool(led), what="the election")
    cluster.crash(voter)
    cluster.crash(third)
    cluster.network.heal()
    cluster.network.partition([elected], [third, voter])
    for member_id in (voter, third):
        await cluster.start(member_id)
    watch(third)
    await asyncio.sleep(0.1)  # they find each other
    cluster.members[third].running.ask(RaftCore.campaign)
    await cluster.wait_until(lambda: any(third in members for members in led.values()), what="the third")
    return led


def test_a_vote_survives_a_restart_of_the_voter() -> None:
    async def schedule(cluster: SimulatedCluster) -> None:
        led = await leaders_of_one_term(cluster)
        assert sorted(map(len, led.values())) == [1, 1], led

    run(schedule)


def test_a_forgotten_vote_makes_two_leaders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a member that starts with the term of its last entry and no vote gives it twice."""
    make_core = assembly.make_core

    def forgetful(options: MemberOptions, found: Recovered, mark: Checkpoint, conf: ConfState) -> RaftCore:
        term = found.entries[-1].term if found.entries else 0
        forgotten = replace(found, hard_state=HardState(term, 0, found.hard_state.commit))
        return make_core(options, forgotten, mark, conf)

    async def schedule(cluster: SimulatedCluster) -> None:
        led = await leaders_of_one_term(cluster)
        assert list(map(len, led.values())) == [2], led

    monkeypatch.setattr(assembly, "make_core", forgetful)
    run(schedule)

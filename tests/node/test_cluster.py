"""Three members in virtual time: elections, replication, reads, restarts."""

from __future__ import annotations

import asyncio

import pytest

from kvstore.testing import SimulatedCluster, run_virtual
from raft.node import NoLeader, NotApplied, OutcomeUnknown, ReadTimedOut, RequestTimedOut, Stopped
from tests.node.scenarios import Scenario, ledger


def run(scenario: Scenario, *, seed: int = 1, size: int = 3) -> None:
    async def main() -> None:
        cluster = SimulatedCluster(seed=seed, size=size)
        await cluster.start_all()
        await scenario(cluster)
        failures = {member.member_id: member.failures for member in cluster.members.values()}
        await cluster.stop_all()
        assert all(set(reasons) <= {"killed"} for reasons in failures.values()), failures

    print(f"seed {seed}")  # shown with a failure, to repeat it
    run_virtual(main())


def followers(cluster: SimulatedCluster) -> list[int]:
    leader = cluster.leader()
    assert leader is not None
    return [node.member_id for node in cluster.running if node is not leader]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_leader_is_elected_and_commands_are_applied_everywhere_in_one_order(size: int) -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        await cluster.wait_for_leader()
        members = list(cluster.members)
        outcomes = await asyncio.gather(*(cluster.propose(members[n % size], b"%d" % n) for n in range(100)))
        assert sorted(outcomes) == list(range(100)), "each command has its own position"
        await cluster.wait_until(lambda: all(len(ledger(cluster, member)) == 100 for member in members))
        assert len({tuple(ledger(cluster, member)) for member in members}) == 1
        for n, outcome in enumerate(outcomes):
            assert ledger(cluster, 1)[outcome] == b"%d" % n, "the origin learns its own command's outcome"

    run(scenario, size=size)


def test_a_read_on_any_member_sees_what_was_acknowledged_before_it() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        await cluster.wait_for_leader()
        for n in range(30):
            command = b"w%d" % n
            await cluster.propose(1 + n % 3, command)
            reader = 1 + (n + 1 + n // 3) % 3
            await cluster.read_barrier(reader)
            assert command in ledger(cluster, reader)

    run(scenario)


def test_commands_proposed_before_there_is_a_leader_wait_for_one() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        futures = [cluster.propose(member, b"early %d" % member) for member in cluster.members]
        assert sorted(await asyncio.gather(*futures)) == [0, 1, 2]

    run(scenario)


def test_a_client_that_goes_one_by_one_keeps_its_order() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        await cluster.wait_for_leader()
        for member in cluster.members:
            await asyncio.gather(*(cluster.propose(member, b"%d/%03d" % (member, n)) for n in range(600)))
            mine = [command for command in ledger(cluster, member) if command.startswith(b"%d/" % member)]
            assert mine == sorted(mine)
            assert len(mine) == 600

    run(scenario)


def test_restart_of_every_member_in_iteration_keeps_everything() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        acknowledged: list[bytes] = []
        for iteration in range(6):
            await cluster.wait_for_leader()
            for n in range(20):
                command = b"%d-%d" % (iteration, n)
                await cluster.propose(1 + n % 3, command)
                acknowledged.append(command)
            member = 1 + iteration % 3
            if iteration < 3:
                await cluster.stop(member)
            else:
                cluster.crash(member)
            await cluster.start(member)
            await cluster.wait_for_leader()
            await cluster.read_barrier(member)
            assert ledger(cluster, member)[: len(acknowledged)] == acknowledged

    run(scenario)


def test_all_stopped_and_started_again_continue_from_their_disks() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        for iteration in range(3):
            await cluster.wait_for_leader()
            await asyncio.gather(*(cluster.propose(1 + n % 3, b"%d-%d" % (iteration, n)) for n in range(50)))
            for member in cluster.members:
                await cluster.stop(member)
            await cluster.start_all()
        await cluster.wait_for_leader()
        await cluster.read_barrier(2)
        assert sorted(ledger(cluster, 2)) == sorted(b"%d-%d" % (t, n) for t in range(3) for n in range(50))
        status = cluster.members[2].running.status()
        assert status.vote_eligible
        assert status.trusted

    run(scenario)


def test_a_member_behind_catches_up() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        await cluster.wait_for_leader()
        [behind, other] = followers(cluster)
        cluster.crash(behind)
        await asyncio.gather(*(cluster.propose(other, b"%d" % n) for n in range(2000)))
        await cluster.start(behind)
        await cluster.wait_until(lambda: len(ledger(cluster, behind)) == 2000)
        assert ledger(cluster, behind) == ledger(cluster, other)

    run(scenario)


def test_an_isolated_member_refuses_writes_and_reads_in_time_and_returns() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        leader = await cluster.wait_for_leader()
        isolated = leader.member_id
        cluster.network.isolate(isolated)
        begun_s = cluster.loop.time()
        forwarded = cluster.propose(isolated, b"forwarded")
        read = cluster.read_barrier(isolated)
        await asyncio.sleep(3)
        waiting = cluster.propose(isolated, b"never forwarded")
        with pytest.raises(OutcomeUnknown):
            await forwarded
        with pytest.raises(ReadTimedOut):
            await read
        assert cluster.loop.time() - begun_s <= 7.2
        with pytest.raises(NotApplied):
            await waiting
        assert cluster.loop.time() - begun_s <= 10.2
        await cluster.propose(1 + isolated % 3, b"meanwhile")
        cluster.network.heal()
        await cluster.wait_until(lambda: b"meanwhile" in ledger(cluster, isolated))
        await cluster.propose(isolated, b"again")
        assert b"never forwarded" not in ledger(cluster, isolated)
        assert ledger(cluster, isolated).count(b"forwarded") <= 1

    run(scenario)


def test_a_lone_member_says_that_there_is_no_leader() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        await cluster.wait_for_leader()
        for member in (2, 3):
            cluster.crash(member)
        await cluster.wait_until(lambda: cluster.members[1].running.leader == 0)
        with pytest.raises(NoLeader):
            await cluster.propose(1, b"no member")

    run(scenario)


def test_a_timeout_is_unknown_and_the_command_may_be_applied_later() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        leader = await cluster.wait_for_leader()
        [follower, _] = followers(cluster)
        # Replication works, but nothing comes back to the origin: neither commits nor a new leader.
        await cluster.propose(follower, b"first")
        cluster.network.block(leader.member_id, follower)
        unknown = cluster.propose(follower, b"late")
        with pytest.raises(RequestTimedOut):
            await unknown
        cluster.network.heal()
        await cluster.wait_until(lambda: b"late" in ledger(cluster, follower))
        assert ledger(cluster, follower).count(b"late") == 1

    run(scenario)


def test_stop_completes_everything_and_nothing_is_answered_after() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        leader = await cluster.wait_for_leader()
        await cluster.propose(leader.member_id, b"before")
        cluster.network.isolate(leader.member_id)
        member = leader.member_id
        forwarded = cluster.propose(member, b"forwarded")
        await asyncio.sleep(0.001)
        waiting = cluster.propose(member, b"waiting")
        read = cluster.read_barrier(member)
        await cluster.stop(member)
        with pytest.raises(OutcomeUnknown):
            await forwarded
        with pytest.raises(Stopped):
            await waiting
        with pytest.raises(Stopped):
            await read
        told: list[object] = []
        leader.propose(b"after", lambda outcome, error: told.append(error))
        leader.read_barrier(told.append)
        assert [type(error) for error in told] == [Stopped, Stopped]
        cluster.network.heal()
        await cluster.start(member)

    run(scenario)


def test_the_backend_follows_and_a_restart_replays_only_the_rest() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        await cluster.wait_for_leader()
        await asyncio.gather(*(cluster.propose(1, b"%d" % n) for n in range(500)))
        node = cluster.members[1].running
        await cluster.wait_until(lambda: node.status().durable_index == node.applied)
        assert node.status().undurable_bytes == 0
        cluster.crash(1)
        again = await cluster.start(1)
        assert again.applied == node.applied, "the backend holds it without the log"
        assert len(ledger(cluster, 1)) == 500

    run(scenario)


def test_one_seed_is_one_history() -> None:
    def history() -> list[object]:
        seen: list[object] = []

        async def scenario(cluster: SimulatedCluster) -> None:
            await cluster.wait_for_leader()
            for n in range(40):
                await cluster.propose(1 + n % 3, b"%d" % n)
                seen.append((cluster.loop.time(), [node.status() for node in cluster.running]))
                if n == 20:
                    cluster.crash(1)
                    await cluster.start(1)

        run(scenario, seed=5)
        return seen

    assert history() == history()

"""Growing, shrinking and leading on, on the real node in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from kvstore.testing import SimulatedCluster, run_virtual
from kvstore.testing.disks import SlowLogWriter
from raft.core.confchange import ConfChange, ConfStep, ConfStepKind, ConfTransition
from raft.node import ChangeRefused, LearnerNotReady, NotApplied, OutcomeUnknown, TransferFailed
from raft.node.change_queue import ChangeQueue
from raft.node.node_errors import Stopped
from raft.storage.wal import Log
from tests.node.scenarios import Scenario, leader_id, ledger

REMOVED = "the member has been permanently removed from the cluster"


def run(scenario: Scenario, *, seed: int = 1, size: int = 3) -> None:
    async def main() -> None:
        cluster = SimulatedCluster(seed=seed, size=size)
        await cluster.start_all()
        await cluster.wait_for_leader()
        await scenario(cluster)
        failures = {member.member_id: member.failures for member in cluster.members.values()}
        await cluster.stop_all()
        assert all(set(reasons) <= {"killed", REMOVED} for reasons in failures.values()), failures

    print(f"seed {seed}")  # shown with a failure, to repeat it
    run_virtual(main())


def change(kind: ConfStepKind, member: int) -> ConfChange:
    return ConfChange((ConfStep(kind, member),))


def add_learner(cluster: SimulatedCluster, via: int, member: int) -> asyncio.Future[object]:
    return cluster.change(via, change(ConfStepKind.ADD_LEARNER, member), b"learner %d" % member)


def add_voter(cluster: SimulatedCluster, via: int, member: int) -> asyncio.Future[object]:
    return cluster.change(via, change(ConfStepKind.ADD_VOTER, member), b"voter %d" % member)


def remove(cluster: SimulatedCluster, via: int, member: int) -> asyncio.Future[object]:
    return cluster.change(via, change(ConfStepKind.REMOVE, member), b"remove %d" % member)


def follower_id(cluster: SimulatedCluster) -> int:
    return next(n.member_id for n in cluster.running if n.member_id != leader_id(cluster))


async def join(cluster: SimulatedCluster, via: int, member: int) -> None:
    """Let a member in as a learner, start it, and promote it as soon as the leader agrees."""
    await add_learner(cluster, via, member)
    cluster.add(member)
    await cluster.start(member)
    while True:
        try:
            await add_voter(cluster, via, member)
        except LearnerNotReady:
            await asyncio.sleep(0.05)
        else:
            return


@pytest.mark.parametrize("seed", range(4))
def test_a_cluster_grows_and_shrinks_under_writes_and_loses_none(seed: int) -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        acknowledged: list[bytes] = []
        writing = True

        async def write(number: int) -> None:
            count = 0
            while writing:
                via = [node.member_id for node in cluster.running if not node.failed]
                command = b"%d/%d" % (number, count)
                count += 1
                try:
                    await cluster.propose(via[count % len(via)], command)
                except (NotApplied, OutcomeUnknown):  # of a member that is being removed
                    continue
                acknowledged.append(command)

        writers = [cluster.loop.create_task(write(number)) for number in range(3)]
        for member in (4, 5):
            await join(cluster, follower_id(cluster), member)
        assert cluster.members[1].running.status().conf.voters == (1, 2, 3, 4, 5)
        for _ in range(2):
            gone = leader_id(cluster)
            via = follower_id(cluster)
            await remove(cluster, via, gone)
            await cluster.wait_until(lambda: cluster.members[gone].running.failed)  # noqa: B023  awaited here
            await cluster.stop(gone)
            await cluster.wait_for_leader()
        writing = False
        await asyncio.gather(*writers)
        left = [node.member_id for node in cluster.running]
        assert len(left) == 3
        assert cluster.members[left[0]].running.status().conf.voters == tuple(left)
        assert len(acknowledged) > 50
        for member in left:
            await cluster.read_barrier(member)
            commands = [one for one in ledger(cluster, member) if b"/" in one]
            assert len(set(commands)) == len(commands)
            assert set(acknowledged) <= set(commands)

    run(scenario, seed=seed)


def test_membership_comes_back_from_log_and_snapshot() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        await join(cluster, follower_id(cluster), 4)
        await cluster.propose(4, b"through the new one")
        for _ in range(2):  # from the log, then from the backend
            for member in list(cluster.members):
                cluster.crash(member)
            for member in list(cluster.members):
                await cluster.start(member)
            await cluster.wait_for_leader()
            node = cluster.members[4].running
            await cluster.read_barrier(4)
            assert node.status().conf.voters == (1, 2, 3, 4)
            assert set(node.status().peers) == {1, 2, 3}
            await cluster.wait_until(
                lambda: all(n.status().durable_index == n.applied for n in cluster.running)
            )

    run(scenario)


def test_a_learner_is_promoted_only_when_it_holds_enough() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        via = follower_id(cluster)
        await asyncio.gather(*(cluster.propose(via, b"%d" % n) for n in range(500)))
        await add_learner(cluster, via, 4)
        for member in (via, leader_id(cluster)):
            with pytest.raises(LearnerNotReady):
                await add_voter(cluster, member, 4)
        cluster.add(4)
        await cluster.start(4)
        await cluster.wait_until(lambda: len(ledger(cluster, 4)) > 500)
        await cluster.wait_until(lambda: cluster.members[4].running.leader != 0)
        await add_voter(cluster, via, 4)
        assert cluster.members[via].running.status().conf.learners == ()

    run(scenario)


def test_changes_asked_for_at_once_are_made_one_after_the_other() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        futures = [add_learner(cluster, via, member) for via, member in ((1, 4), (2, 5), (3, 6), (1, 7))]
        await asyncio.gather(*futures)
        await cluster.wait_until(
            lambda: all(n.status().conf.learners == (4, 5, 6, 7) for n in cluster.running)
        )
        for member in (1, 2, 3):
            assert sorted(ledger(cluster, member)) == [b"learner %d" % number for number in (4, 5, 6, 7)]

    run(scenario)


def test_the_last_voter_cannot_go_and_a_joint_change_leaves_by_itself() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        via = follower_id(cluster)
        steps = tuple(ConfStep(ConfStepKind.REMOVE, member) for member in (1, 2, 3))
        with pytest.raises(ChangeRefused):
            await cluster.change(via, ConfChange(steps), b"everybody")
        steps = tuple(ConfStep(ConfStepKind.ADD_LEARNER, member) for member in (4, 5))
        await cluster.change(via, ConfChange(steps, ConfTransition.JOINT_IMPLICIT), b"two learners")
        await cluster.wait_until(
            lambda: all(
                n.status().conf.learners == (4, 5) and not n.status().conf.voters_outgoing
                for n in cluster.running
            )
        )
        assert b"everybody" not in ledger(cluster, via)

    run(scenario)


def test_a_member_removed_while_it_was_down_is_told_so_and_ends() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        down = follower_id(cluster)
        cluster.crash(down)
        via = follower_id(cluster)
        await remove(cluster, via, down)
        await cluster.start(down)
        await cluster.wait_until(lambda: cluster.members[down].failures == ["killed", REMOVED])
        assert cluster.members[down].running.membership.removed
        assert leader_id(cluster) != down
        await cluster.propose(via, b"goes on")

    run(scenario)


@pytest.mark.parametrize("leads", [True, False])
def test_who_asks_for_its_own_removal_is_answered_though_its_disk_is_slow(
    leads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have dismissed it by the time it can apply what it asked for."""
    slow: list[int] = []

    def make_writer(
        self: SimulatedCluster,
        member: int,
        log: Log,
        fatal: Callable[[str], None],
        on_space: Callable[[bool], None],
    ) -> SlowLogWriter:
        def duration_s() -> float:
            return 1.5 if member in slow else 0.0

        return SlowLogWriter(
            log, loop=self.loop, fatal=fatal, on_space=on_space, duration_s=duration_s, draw=lambda: 0.0
        )

    async def scenario(cluster: SimulatedCluster) -> None:
        gone = leader_id(cluster) if leads else follower_id(cluster)
        slow.append(gone)
        assert await remove(cluster, gone, gone) == len(ledger(cluster, gone)) - 1
        await cluster.wait_until(lambda: cluster.members[gone].failures == [REMOVED])

    monkeypatch.setattr(SimulatedCluster, "make_writer", make_writer)
    run(scenario)


def test_a_member_that_slept_through_the_change_of_everybody_else_catches_up() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        asleep = follower_id(cluster)
        cluster.crash(asleep)
        old = [node.member_id for node in cluster.running]
        for member in (4, 5):
            await join(cluster, follower_id(cluster), member)
        for gone in old:
            via = next(m for m in (4, 5) if m != leader_id(cluster))
            await remove(cluster, via, gone)
            await cluster.wait_until(lambda: cluster.members[gone].running.failed)  # noqa: B023  awaited here
            await cluster.stop(gone)
            # A quorum of the three or four left is there without the sleeper.
            await cluster.wait_for_leader()
        await cluster.start(asleep)
        await cluster.propose(asleep, b"awake")
        assert cluster.members[asleep].running.status().conf.voters == tuple(sorted((asleep, 4, 5)))

    run(scenario)


def test_a_transfer_ends_with_the_chosen_leader_or_with_an_error() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        old, chosen = leader_id(cluster), follower_id(cluster)

        def transfer(frm: int, to: int) -> asyncio.Future[object]:
            future, on_result = cluster._answer()
            cluster.members[frm].running.transfer.begin(to, lambda error: on_result(None, error))
            return future

        await transfer(old, chosen)
        await cluster.wait_until(lambda: cluster.leader() is not None and leader_id(cluster) == chosen)
        with pytest.raises(TransferFailed):
            await transfer(old, 4)  # does not lead
        other = next(n.member_id for n in cluster.running if n.member_id not in (old, chosen))
        cluster.crash(other)
        began_s = cluster.loop.time()
        with pytest.raises(TransferFailed):
            await transfer(chosen, other)
        assert cluster.loop.time() - began_s < 2.5, "an election timeout, and the tick that detects it"
        await cluster.propose(old, b"goes on")
        assert leader_id(cluster) == chosen
        await cluster.members[chosen].running.transfer.give_up_leadership()
        assert cluster.members[old].running.is_leader

    run(scenario)


@pytest.mark.parametrize("end", [ChangeQueue.superseded, ChangeQueue.close])
def test_only_a_change_that_was_forwarded_may_be_made(end: Callable[[ChangeQueue], None]) -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        leader = cluster.members[leader_id(cluster)].running
        follower = cluster.members[follower_id(cluster)].running
        waits = remove(cluster, follower.member_id, follower.member_id)
        end(follower._forwarder.changes)  # in the iteration in which it was proposed
        await asyncio.sleep(0)
        assert waits.done() == (end is ChangeQueue.close)
        if waits.done():
            assert isinstance(waits.exception(), Stopped)
        cluster.network.isolate(leader.member_id)
        last_index = leader.status().last_index
        forwarded = remove(cluster, leader.member_id, follower.member_id)
        await cluster.wait_until(lambda: leader.status().last_index > last_index)
        end(leader._forwarder.changes)
        with pytest.raises(OutcomeUnknown):
            await forwarded
        cluster.network.heal()
        await asyncio.wait([waits], timeout=30)

    run(scenario)

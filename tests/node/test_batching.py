"""Batching is real: operations per entry, syncs per entry, loop iterations per batch, all counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from kvstore.testing import SimulatedCluster, run_virtual
from kvstore.testing.simulation import CLUSTER_ID
from raft.core import DropReason, ProposalDropped, RaftCore
from raft.core.types import EntryId
from raft.node import NodeConfig, NotApplied, TooManyRequests
from raft.node.applying import Applier
from raft.node.checkpointer import Checkpointer
from raft.node.node_config import APPLY_SLICE_OPERATIONS_MAX
from tests.node.scenarios import Scenario, ledger


def run(scenario: Scenario, config: Callable[[int], NodeConfig] | None = None) -> None:
    async def main() -> None:
        cluster = SimulatedCluster(seed=1, **({"config": config} if config else {}))
        await cluster.start_all()
        await cluster.wait_for_leader()
        await cluster.propose(1, b"warm")
        await scenario(cluster)
        await cluster.stop_all()

    run_virtual(main())


async def write(cluster: SimulatedCluster, writers: int, each: int, members: list[int]) -> None:
    """`writers` clients in closed loops, spread over `members`."""

    async def writer(number: int) -> None:
        for n in range(each):
            await cluster.propose(members[number % len(members)], b"%d.%d" % (number, n))

    await asyncio.gather(*(writer(number) for number in range(writers)))


@pytest.mark.parametrize("through", ["leader", "follower", "all"])
def test_64_writers_make_at_least_8_operations_an_entry_and_one_sync_each(through: str) -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        leader = cluster.leader()
        assert leader is not None
        others = [member for member in cluster.members if member != leader.member_id]
        members = {"leader": [leader.member_id], "follower": others[:1], "all": list(cluster.members)}[
            through
        ]
        await cluster.wait_until(lambda: all(n.applied == leader.applied for n in cluster.running))
        before = {node.member_id: node.status() for node in cluster.running}
        await write(cluster, 64, 50, members)
        await cluster.wait_until(lambda: all(n.applied == leader.applied for n in cluster.running))
        for node in cluster.running:
            status, earlier = node.status(), before[node.member_id]
            entries = status.statistics.entries_applied - earlier.statistics.entries_applied
            operations = status.statistics.operations_applied - earlier.statistics.operations_applied
            syncs = status.writer.syncs - earlier.writer.syncs
            print(through, node.member_id, operations, entries, syncs, operations / entries)
            assert operations == 64 * 50
            assert operations >= 8 * entries
            assert syncs <= entries

    run(scenario)


def test_a_lone_writer_does_not_wait() -> None:
    """One command in flight: a round trip to a follower and no gathering."""

    async def scenario(cluster: SimulatedCluster) -> None:
        leader = cluster.leader()
        assert leader is not None
        begun_s = cluster.loop.time()
        for n in range(50):
            await cluster.propose(leader.member_id, b"%d" % n)
        assert (cluster.loop.time() - begun_s) / 50 < 0.0025

    run(scenario)


def test_clients_that_return_one_by_one_still_travel_together() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        leader = cluster.leader()
        assert leader is not None
        before = leader.status().statistics
        begun_s = cluster.loop.time()

        async def writer(number: int) -> None:
            for n in range(50):
                await asyncio.sleep(number * 0.00002)
                await cluster.propose(leader.member_id, b"%d.%d" % (number, n))

        await asyncio.gather(*(writer(number) for number in range(16)))
        batches = leader.status().statistics.batches_proposed - before.batches_proposed
        assert 16 * 50 / batches > 12
        assert (cluster.loop.time() - begun_s) / 50 < 0.0025, "one round trip each, not two"

    run(scenario)


def test_no_task_is_made_per_operation() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        made = 0

        def count(
            loop: asyncio.AbstractEventLoop, coroutine: object, **kwargs: object
        ) -> asyncio.Task[object]:
            nonlocal made
            made += 1
            return asyncio.Task(coroutine, loop=loop, **kwargs)  # type: ignore[arg-type]  # passed through

        completed: list[object] = []
        cluster.loop.set_task_factory(count)
        for n in range(3000):
            cluster.members[1 + n % 3].running.propose(
                b"%d" % n, lambda outcome, error: completed.append(outcome)
            )
        await cluster.wait_until(lambda: len(completed) == 3000)
        cluster.loop.set_task_factory(None)
        assert made < 10, "checkpoints only"

    run(scenario)


def test_a_slow_round_trip_is_filled_with_batches() -> None:
    """Where the network is slower than the gathering time, several batches are in flight."""

    async def scenario(cluster: SimulatedCluster) -> None:
        for source in cluster.members:
            for target in cluster.members:
                if source != target:
                    conditions = cluster.network.conditions(source, target)
                    conditions.delay_min_s = conditions.delay_max_s = 0.05
        leader = cluster.leader()
        assert leader is not None
        begun_s = cluster.loop.time()
        futures = []
        for n in range(20):
            futures.append(cluster.propose(leader.member_id, b"%d" % n))
            await asyncio.sleep(0.01)
        await asyncio.gather(*futures)
        assert cluster.loop.time() - begun_s < 0.2 + 0.1 + 0.03, "the last one took one round trip"

    run(scenario)


def test_batches_are_bounded_in_count_and_bytes() -> None:
    config = lambda member: NodeConfig(  # noqa: E731  # one expression, used once
        member_id=member, cluster_id=CLUSTER_ID, batch_operations_max=10, batch_bytes_max=1000
    )

    async def scenario(cluster: SimulatedCluster) -> None:
        node = cluster.members[1].running
        before = node.status().statistics
        await asyncio.gather(*(cluster.propose(1, b"x" * 400) for _ in range(20)))
        await asyncio.gather(*(cluster.propose(1, b"y") for _ in range(100)))
        await cluster.propose(1, b"z" * 5000)
        after = node.status().statistics
        assert after.operations_proposed - before.operations_proposed == 121
        assert after.batches_proposed - before.batches_proposed >= 10 + 10 + 1

    run(scenario, config)


def test_full_queues_refuse_at_once() -> None:
    config = lambda member: NodeConfig(  # noqa: E731  # one expression, used once
        member_id=member, cluster_id=CLUSTER_ID, operations_waiting_max=50
    )

    async def scenario(cluster: SimulatedCluster) -> None:
        leader = cluster.leader()
        assert leader is not None
        follower = 1 + leader.member_id % 3
        cluster.network.isolate(follower)
        await cluster.wait_until(lambda: cluster.members[follower].running.leader == 0)
        results = await asyncio.gather(
            *(cluster.propose(follower, b"%d" % n) for n in range(80)), return_exceptions=True
        )
        assert sum(type(result) is TooManyRequests for result in results) == 30
        assert all(isinstance(result, NotApplied) for result in results)
        cluster.network.heal()
        await cluster.wait_for_leader()

    run(scenario, config)


def test_proposals_are_refused_while_the_backend_lags_too_far() -> None:
    config = lambda member: NodeConfig(  # noqa: E731  # one expression, used once
        member_id=member,
        cluster_id=CLUSTER_ID,
        checkpoint_bytes=2000,
        undurable_bytes_max=5000,
        backend_retry_ms=1000,
    )

    async def scenario(cluster: SimulatedCluster) -> None:
        leader = cluster.leader()
        assert leader is not None
        member = cluster.members[leader.member_id]
        full = True

        def no_space(call: int, operation: str, path: str) -> OSError | None:
            return OSError(28, "no space left", path) if full and "state.db" in path else None

        member.files.fault = no_space
        refused = 0
        written = []
        for n in range(60):
            command = b"%03d" % n + b"." * 200
            try:
                await cluster.propose(leader.member_id, command)
            except TooManyRequests:
                refused += 1
            else:
                written.append(command)
        assert refused > 20
        assert leader.status().durable_index < leader.applied
        await cluster.read_barrier(leader.member_id)
        full = False
        await cluster.wait_until(lambda: leader.status().durable_index == leader.applied)
        await cluster.propose(leader.member_id, b"again")
        await cluster.wait_until(lambda: leader.status().durable_index == leader.applied)
        cluster.crash(leader.member_id)
        again = await cluster.start(leader.member_id)
        assert again.applied == leader.applied, "rows of the failed commits are in the file"
        assert ledger(cluster, leader.member_id) == [b"warm", *written, b"again"]

    run(scenario, config)


def test_a_backlog_is_applied_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is committed at once, other callbacks run after a bounded number of commands."""
    slices: list[int] = []
    genuine = Applier.run

    def measured(self: Applier) -> bool:
        before = self.operations
        finished = genuine(self)
        slices.append(self.operations - before)
        return finished

    async def scenario(cluster: SimulatedCluster) -> None:
        leader = cluster.leader()
        assert leader is not None
        behind = 1 + leader.member_id % 3
        cluster.crash(behind)
        await write(cluster, 200, 40, [leader.member_id])
        monkeypatch.setattr(Applier, "run", measured)
        node = await cluster.start(behind)
        await cluster.wait_until(lambda: node.applied == leader.applied)
        assert sum(slices) >= 8000
        assert max(slices) <= APPLY_SLICE_OPERATIONS_MAX + node._config.batch_operations_max
        assert max(slices) > 200, "there was a backlog"

    run(scenario)


def small_batches(member_id: int) -> NodeConfig:
    return NodeConfig(member_id=member_id, cluster_id=CLUSTER_ID, batch_operations_max=1, gather_ms=1)


def test_what_the_core_takes_not_now_goes_later_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = RaftCore.propose
    dropped: list[int] = []

    def reluctant(self: RaftCore, datas: list[bytes]) -> list[EntryId]:
        if len(datas) > 1 and len(dropped) < 3:
            dropped.append(len(datas))
            raise ProposalDropped(DropReason.UNCOMMITTED_FULL)
        return genuine(self, datas)

    async def scenario(cluster: SimulatedCluster) -> None:
        monkeypatch.setattr(RaftCore, "propose", reluctant)
        leader = cluster.leader()
        assert leader is not None
        commands = [b"%02d" % number for number in range(20)]
        await asyncio.gather(*(cluster.propose(leader.member_id, command) for command in commands))
        assert ledger(cluster, leader.member_id) == [b"warm", *commands]
        assert dropped, "several batches were proposed together"

    run(scenario, small_batches)


def test_a_leader_whose_backend_lags_too_far_takes_nothing_from_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        leader = cluster.leader()
        assert leader is not None
        follower = next(member for member in cluster.members if member != leader.member_id)
        last_index = leader.status().last_index
        full = True
        lags = property(lambda self: full and self is leader._checkpointer)
        monkeypatch.setattr(Checkpointer, "full", lags)
        waits = cluster.propose(follower, b"forwarded")
        await asyncio.sleep(1)  # virtual time: hundreds of loop iterations
        assert not waits.done()
        assert leader.status().last_index == last_index
        full = False
        await asyncio.wait_for(waits, 5)

    run(scenario)

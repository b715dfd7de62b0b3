"""A thousand power cuts of all three members lose no acknowledged write.

Each life is one seed: three members on crash-true disks, clients that write unique commands through
every member, and twenty power cuts in the middle of it. See README.md beside this file.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from kvstore.testing import LedgerMachine, SimulatedCluster, run_virtual
from kvstore.testing.simulation import CLUSTER_ID
from raft.node import NodeConfig, NodeError
from raft.storage.memory_files import Fault, PowerCut

LIVES = 50
CRASHES_PER_LIFE = 20
LIVES_PER_TEST = 5
CLIENTS = 9


def lazy(member_id: int) -> NodeConfig:
    return NodeConfig(member_id=member_id, cluster_id=CLUSTER_ID)


def eager(member_id: int) -> NodeConfig:
    """Checkpoints and compacts all the time, so that power cuts hit both."""
    return NodeConfig(
        member_id=member_id,
        cluster_id=CLUSTER_ID,
        checkpoint_ms=10,
        checkpoint_bytes=2000,
        compaction_entries=20,
        catchup_entries=5,
    )


def keep_nothing(count: int) -> int:
    """The disk's choice that loses everything un-synced, cleanly: no damage gives the loss away."""
    return 0


class Lost(AssertionError):
    """A write that was acknowledged is gone, or one was applied twice."""


@dataclass
class Tally:
    """What a run exercised, so that a run that tested nothing fails."""

    crashes: int = 0
    acknowledged: int = 0
    unknown: int = 0
    torn: int = 0
    """Members found with a torn log tail."""
    in_commit: int = 0
    """Members stopped between two disk operations."""
    compacted: int = 0
    """Restarts on a log that no longer begins at its first entry."""
    majority_torn: int = 0
    """Restarts at which two or three members had a torn tail at once."""


@dataclass
class Life:
    """One seed: what was acknowledged so far, and the cluster it must survive in."""

    cluster: SimulatedCluster
    rng: random.Random
    tally: Tally
    sync_works: bool = True
    """False: from the first leader on, every sync is a no-op."""
    eager: bool = False
    """The members compact their logs all the time."""
    acknowledged: set[bytes] = field(default_factory=set)
    proposed: int = 0

    async def run(self) -> None:
        for _ in range(CRASHES_PER_LIFE):
            await self.cluster.start_all()
            torn = sum(not node.status().trusted for node in self.cluster.running)
            self.tally.torn += torn
            self.tally.majority_torn += torn >= 2
            self.tally.compacted += sum(node.status().first_index > 1 for node in self.cluster.running)
            await self.cluster.wait_for_leader(timeout_s=60)
            await self.check()
            for member in self.cluster.members.values():
                member.files.sync_works = self.sync_works
            await self.write_until_power_cut()
            self.tally.crashes += 1
        await self.cluster.start_all()
        await self.cluster.wait_for_leader(timeout_s=60)
        await self.check()
        await self.cluster.stop_all()

    async def check(self) -> None:
        """Every member serves every acknowledged write, each exactly once, in one order."""
        order: list[bytes] = []
        for member_id, member in self.cluster.members.items():
            await self.cluster.read_barrier(member_id)
            assert isinstance(member.machine, LedgerMachine)
            applied = member.machine.applied
            lost = self.acknowledged.difference(applied)
            twice = [command for command, count in Counter(applied).items() if count > 1]
            if lost or twice:
                raise Lost(f"member {member_id}: lost {sorted(lost)[:5]}, applied twice {twice[:5]}")
            shorter = min(len(order), len(applied))
            if order[:shorter] != applied[:shorter]:
                raise Lost(f"member {member_id} holds another history")
            order = max(order, applied, key=len)

    async def write_until_power_cut(self) -> None:
        """Clients write; then the power goes, for some members in the middle of a disk operation."""
        cluster, loop = self.cluster, self.cluster.loop
        first_power_cut: asyncio.Future[None] = loop.create_future()
        for member in cluster.members.values():
            first_call = member.files.calls + self.rng.randrange(1, 60)
            member.files.fault = self.power_cut_at(first_call, first_power_cut)
        if self.eager:
            # Time for checkpoints, the leader's index that all members hold, and the compaction.
            await asyncio.wait([first_power_cut], timeout=self.rng.uniform(0.2, 0.6))
        clients = [loop.create_task(self.client(1 + n % 3)) for n in range(CLIENTS)]
        await asyncio.wait([first_power_cut], timeout=self.rng.uniform(0.0, 0.3))
        await asyncio.sleep(self.rng.uniform(0.0, 0.004))
        for member_id in cluster.members:
            cluster.crash(member_id, choose=None if self.sync_works else keep_nothing)
        await asyncio.gather(*clients)

    def power_cut_at(self, first_call: int, first_power_cut: asyncio.Future[None]) -> Fault:
        """A disk that stops at a call, or at the first sync from there on: written, and not yet durable."""
        at_sync = self.rng.random() < 0.7
        stopped = False

        def fault(call: int, operation: str, path: str) -> PowerCut | None:
            nonlocal stopped
            if not stopped and (call < first_call or (at_sync and operation != "datasync")):
                return None
            self.tally.in_commit += not stopped
            stopped = True
            if not first_power_cut.done():
                first_power_cut.set_result(None)
            return PowerCut()

        return fault

    async def client(self, member_id: int) -> None:
        """Write one command after another until its member is down."""
        while True:
            self.proposed += 1
            command = b"%d" % self.proposed + b"." * self.rng.randrange(1000)
            try:
                await self.cluster.propose(member_id, command)
            except NodeError:
                self.tally.unknown += 1
                return
            self.acknowledged.add(command)
            self.tally.acknowledged += 1


def live(seed: int, tally: Tally, *, sync_works: bool = True) -> None:
    async def main() -> None:
        is_eager = seed % 2 == 1
        cluster = SimulatedCluster(seed=seed, config=eager if is_eager else lazy)
        await Life(cluster, random.Random(seed), tally, sync_works, is_eager).run()

    print(f"seed {seed}")
    run_virtual(main())


@pytest.mark.parametrize("first_seed", range(0, LIVES, LIVES_PER_TEST))
def test_no_acknowledged_write_is_lost(first_seed: int) -> None:
    tally = Tally()
    for seed in range(first_seed, first_seed + LIVES_PER_TEST):
        live(seed, tally)
    print(tally)
    assert tally.crashes == LIVES_PER_TEST * CRASHES_PER_LIFE
    # A run without these would test nothing:
    assert tally.acknowledged > 10 * tally.crashes
    assert tally.in_commit > tally.crashes // 2, "power cuts in the middle of disk operations"
    assert tally.torn > tally.crashes // 20, "torn log tails"
    assert tally.compacted > tally.crashes // 4, "logs that were compacted"
    assert tally.unknown > tally.crashes, "writes in flight when the power went"


def test_without_syncs_the_same_run_loses_writes() -> None:
    """Negative control: with every sync a no-op the same lives end in a loss that is detected."""
    for seed in range(LIVES_PER_TEST):
        tally = Tally()
        with pytest.raises(Lost, match="lost"):
            live(seed, tally, sync_works=False)
        assert tally.acknowledged > 0

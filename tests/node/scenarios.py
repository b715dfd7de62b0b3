"""What the tests of the node share: a scenario, played on a cluster that has a leader."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from kvstore.testing import LedgerMachine, SimulatedCluster, run_virtual

Scenario = Callable[[SimulatedCluster], Awaitable[None]]


def play(scenario: Scenario, *, seed: int = 1, size: int = 3, **options: Any) -> None:
    """Run it in virtual time; `options` are those of SimulatedCluster."""

    async def main() -> None:
        cluster = SimulatedCluster(seed=seed, size=size, **options)
        await cluster.start_all()
        await cluster.wait_for_leader()
        await scenario(cluster)
        await cluster.stop_all()

    print(f"seed {seed}")
    run_virtual(main())


def ledger(cluster: SimulatedCluster, member_id: int) -> list[bytes]:
    """What a member has applied."""
    machine = cluster.members[member_id].machine
    assert isinstance(machine, LedgerMachine)
    return machine.applied


def leader_id(cluster: SimulatedCluster) -> int:
    """Who leads; somebody must."""
    leader = cluster.leader()
    assert leader is not None
    return leader.member_id

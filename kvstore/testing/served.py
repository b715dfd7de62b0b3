"""Simulated members as their services see them: one `LocalMember` per process, shared by the features."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kvstore.server.local_member import Limits, LocalMember
from kvstore.testing.simulation import CLUSTER_ID
from raft.sim.kernel import stream

if TYPE_CHECKING:
    from kvstore.testing.nodes import Simulation
    from kvstore.testing.simulation import SimulatedNode

_NO_LIMITS = Limits(request_bytes_max=1 << 20, txn_operations_max=128)


class Served:
    """What serves the clients of each running member."""

    def __init__(self, cluster: Simulation) -> None:
        self._cluster = cluster
        self._members: dict[int, tuple[SimulatedNode, LocalMember]] = {}
        """By member: its present process, and what serves there."""

    def of(self, member_id: int, node: SimulatedNode) -> LocalMember:
        """What serves the clients of this process; made when first asked for."""
        known = self._members.get(member_id)
        if known is not None and known[0] is node:
            return known[1]
        engine = self._cluster.engine(member_id)
        assert engine is not None, "a member is served while it runs"
        member = LocalMember(
            node=node,
            engine=engine,
            cluster_id=CLUSTER_ID,
            member_id=member_id,
            limits=_NO_LIMITS,
            quota_bytes=None,
        )
        node.on_applied = member.watches.applied
        node.subscribe_installed(lambda _: member.watches.applied())
        life = self._cluster.lives[member_id]
        member.lessor.start(
            loop=asyncio.get_running_loop(),
            rng=stream(member_id, f"leases/{life}"),
            election_timeout_ms=1000,
        )
        self._members[member_id] = (node, member)
        return member

    def ended(self, member_id: int) -> None:
        """Its process is gone. Harmless when another feature said so before."""
        known = self._members.pop(member_id, None)
        if known is not None:
            known[1].lessor.stop()


def served(cluster: Simulation) -> Served:
    """Those of this cluster."""
    if cluster.served is None:
        cluster.served = Served(cluster)
    return cluster.served

"""Faults of snapshot transfers: a reset at any chunk, or the death of the sender or receiver.

No clients and no oracle: the other oracles see what a snapshot breaks. Chunks are small here, so that a
transfer can be interrupted.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvstore.testing.nodes import Simulation
    from kvstore.testing.simulation import SimulatedNode
    from raft.node.node_status import SnapshotStatistics

CHUNK_BYTES = (300, 2000, 20_000)
"""Some of these, for a whole run."""

CHECK_S = 0.002
"""Between two checks for transfers in flight: the time of a few chunks."""

INJECTIONS = ("reset", "reset", "reset", "receiver", "sender", "none", "none")
"""Faults for a transfer in flight, drawn again at each check that still finds it."""

INJECTION_PROBABILITY = 0.5
"""Per check, so that the fault hits any chunk, and most snapshots arrive in the end."""

INJECTIONS_MAX = 12
"""In a run: without a bound a snapshot could fail for ever, which the design does not exclude."""

DOWN_S = 1.5
"""The longest that a killed process is down."""

INSTALLED = "a snapshot is installed"
RESUMED = "an interrupted snapshot resumes"
SUPERSEDED = "a newer snapshot supersedes another"
RECEIVER_DIES = "a member dies while it receives a snapshot"
SENDER_DIES = "a leader dies while it sends a snapshot"

SNAPSHOT_PROBES = (INSTALLED, RESUMED, SUPERSEDED, RECEIVER_DIES, SENDER_DIES)


class SnapshotFaults:
    """Implements `Feature`."""

    def __init__(self, cluster: Simulation, rng: random.Random) -> None:
        self._cluster = cluster
        self._rng = rng
        self._nodes: dict[int, SimulatedNode] = {}
        """The newest incarnation of each member."""
        self._stopped = False
        self._injections = 0
        cluster.network.snapshot_chunk_bytes = rng.choice(CHUNK_BYTES)

    def started(self, member_id: int, node: SimulatedNode) -> None:
        self._nodes[member_id] = node

    def ended(self, member_id: int) -> None:
        node = self._nodes.pop(member_id, None)
        if node is not None:
            self._count(node.snapshots.statistics())

    async def live(self) -> None:
        cluster, rng = self._cluster, self._rng
        while not self._stopped and self._injections < INJECTIONS_MAX:
            await asyncio.sleep(CHECK_S)
            if cluster.loop.time() >= cluster.faults_until_s:
                return
            for source, target in cluster.network.snapshots_in_flight():
                if rng.random() < INJECTION_PROBABILITY:
                    self._inject(rng.choice(INJECTIONS), source, target)

    def _inject(self, how: str, source: int, target: int) -> None:
        cluster = self._cluster
        if how == "reset":
            cluster.network.disconnect_snapshots(source, target)
        elif how != "none":
            victim = target if how == "receiver" else source
            if cluster.members[victim].node is None or victim in cluster.disks:
                return
            cluster.probes.counts[RECEIVER_DIES if how == "receiver" else SENDER_DIES] += 1
            cluster.kill(victim, self._rng.uniform(0, DOWN_S), power=self._rng.random() < 0.5)
        self._injections += 1

    def stop(self) -> None:
        self._stopped = True

    async def check_liveness(self, core: Sequence[int]) -> None:
        """Nothing to do: the agreement of all healed members was checked already."""

    def judge(self) -> None:
        for member_id in sorted(self._nodes):
            self._count(self._nodes[member_id].snapshots.statistics())
        self._nodes.clear()

    def revisions(self) -> Iterable[int]:
        return ()

    def operations(self) -> Mapping[str, int]:
        return {}

    def _count(self, counted: SnapshotStatistics) -> None:
        probes: Counter[str] = self._cluster.probes.counts
        probes[INSTALLED] += counted.installed
        probes[RESUMED] += counted.resumed
        probes[SUPERSEDED] += counted.superseded

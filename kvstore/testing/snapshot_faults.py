"""Images of the state under faults of their own: cut off at any chunk, or with a process that dies amid one.

No clients and no oracle: what an image does wrong shows in everything the others watch. Images travel in
small pieces here, so that there is a middle to strike.
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

LOOK_S = 0.002
"""Between two looks at what is under way: a few chunks' time."""

INJECTIONS = ("reset", "reset", "reset", "receiver", "sender", "none", "none")
"""What becomes of an image that is seen under way, again at each look that finds it still there."""

INJECTION_PROBABILITY = 0.5
"""Per look, so that the strike comes at any chunk, and that most images arrive in the end."""

INJECTIONS_MAX = 12
"""In a run: an image that can never arrive would only show that nothing is promised then."""

DOWN_S = 1.5
"""The longest that a struck process is down."""

INSTALLED = "an image of the state is installed"
RESUMED = "an interrupted image goes on where it stopped"
SUPERSEDED = "a newer image takes the place of another"
RECEIVER_DIES = "a member dies while it is brought an image"
SENDER_DIES = "a leader dies while it brings an image"

SNAPSHOT_PROBES = (INSTALLED, RESUMED, SUPERSEDED, RECEIVER_DIES, SENDER_DIES)


class SnapshotFaults:
    """Implements `features.Feature`."""

    def __init__(self, cluster: Simulation, rng: random.Random) -> None:
        self._cluster = cluster
        self._rng = rng
        self._nodes: dict[int, SimulatedNode] = {}
        """The newest process of each member."""
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
            await asyncio.sleep(LOOK_S)
            if cluster.loop.time() >= cluster.quiesce_from_s:
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

    async def quiesce(self, core: Sequence[int]) -> None:
        """Nothing more comes true than everybody's agreement, which was demanded already."""

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

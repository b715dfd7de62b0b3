"""What a run exercises besides plain keys: one module per feature, each drawn into a run at random.

A feature is built once per run, before the first member starts, and is notified of every process. It has its
own clients and its own oracle, and reports violations to the judge under invariant names of its own. Mutants
are recorded under these names.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from kvstore.testing.watch_feature import WatchFeature

if TYPE_CHECKING:
    from kvstore.testing.nodes import Simulation
    from kvstore.testing.simulation import SimulatedNode


class Feature(Protocol):
    """One feature of one run. Everything runs in the run's virtual-time loop."""

    def started(self, member_id: int, node: SimulatedNode) -> None:
        """A process of a member has started; `cluster.engine(member_id)` is its state."""

    def ended(self, member_id: int) -> None:
        """The member's process has ended: killed, stopped or failed."""

    async def live(self) -> None:
        """Run the clients, from when all members are vote-eligible until `stop`, faults included."""

    def stop(self) -> None:
        """Start nothing new; `live` returns once the calls in progress complete or time out."""

    async def check_liveness(self, core: Sequence[int]) -> None:
        """The members `core` are healed and agree: check what must then happen in bounded time."""

    def judge(self) -> None:
        """The run is over: report to the cluster's judge what the history violates."""

    def revisions(self) -> Iterable[int]:
        """Revisions that its clients wrote, which the history of the plain clients lacks."""

    def operations(self) -> Mapping[str, int]:
        """Its clients' operations, by kind and outcome, as `watch ok`."""


MakeFeature = Callable[["Simulation", random.Random], Feature]

FEATURES: dict[str, MakeFeature] = {"watch": WatchFeature}
"""Every feature by the name it has in a plan."""


def stream_key(feature: str) -> str:
    """The name under which a feature's random streams are drawn, fixed so that a seed repeats its run."""
    return "images" if feature == "snapshots" else feature

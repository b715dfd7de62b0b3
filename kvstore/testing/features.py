"""What a run exercises besides plain keys: one module per feature, each drawn into a run by chance.

A feature is built once per run, before the first member starts, and told of every process. It brings
its own clients and its own oracle; what it finds wrong it tells the judge under a name of its own, which
is what a planted bug is recorded under.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from kvstore.testing.watches import Watches

if TYPE_CHECKING:
    from kvstore.testing.nodes import Simulation
    from kvstore.testing.simulation import SimulatedNode


class Feature(Protocol):
    """One exercise of one run. Everything runs in the run's virtual-time loop."""

    def started(self, member_id: int, node: SimulatedNode) -> None:
        """A process of a member has started; `cluster.engine(member_id)` is its state."""

    def ended(self, member_id: int) -> None:
        """That process is gone: killed, stopped or failed."""

    async def live(self) -> None:
        """Be the clients, from when all members are admitted until `stop`, faults included."""

    def stop(self) -> None:
        """`live` ends soon: nothing new is begun, and what is under way runs into its timeout."""

    async def quiesce(self, core: Sequence[int]) -> None:
        """The members `core` are healed and agree: demand what must then come true, in bounded time."""

    def judge(self) -> None:
        """The run is over: tell the cluster's judge what its history shows to be wrong."""

    def revisions(self) -> Iterable[int]:
        """Revisions of the store that its clients made, which the history of the others lacks."""

    def operations(self) -> Mapping[str, int]:
        """What its clients asked, by kind and outcome, as `watch ok`."""


MakeFeature = Callable[["Simulation", random.Random], Feature]

FEATURES: dict[str, MakeFeature] = {"watch": Watches}
"""Every feature by the name it has in a plan."""

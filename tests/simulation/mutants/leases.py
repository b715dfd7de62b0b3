"""Planted bugs of leases and locks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvstore.engine import Lease, Leases
from kvstore.errors import KVError
from kvstore.server.lease_clock import LeaseClock
from kvstore.server.lessor import KEEP_ALIVE, Lessor
from kvstore.server.lock_queue import Place
from tests.simulation.mutants.mutant import Mutant
from tests.simulation.mutants.patches import Patches


def _counted_from_the_grant(p: Patches) -> None:
    """Every member notes when it applied a grant, and goes on from there when it comes to lead."""
    grant, first_seconds = Leases.grant, LeaseClock._first_seconds
    noted: dict[tuple[int, int], float] = {}

    def noting(self: Leases, lease_id: int, ttl_seconds: int, index: int) -> None:
        grant(self, lease_id, ttl_seconds, index)
        noted[id(self), lease_id] = asyncio.get_running_loop().time()

    def going_on(self: LeaseClock, lease: Lease) -> float:
        since_s = noted.get((id(self._leases()), lease.id), self._promoted_s)
        return min(0.0, since_s - self._promoted_s) + first_seconds(self, lease)

    p.attribute(Leases, "grant", noting)
    p.attribute(LeaseClock, "_first_seconds", going_on)


def _held_with_a_dead_lease(p: Patches) -> None:
    proven = Place._proven

    def trusting(self: Place, error: KVError | None) -> None:
        if error is None and self._settle is not None:
            self._tell(self._held(self._member.engine.revision))
        else:
            proven(self, error)

    p.attribute(Place, "_proven", trusting)


def _renewed_without_a_round(p: Patches) -> None:
    answer = Lessor._answer

    def hasty(self: Lessor, question: bytes, reply: Callable[[bytes], None]) -> None:
        if question[0] == KEEP_ALIVE:
            barrier = self._member.barrier
            self._member.barrier = lambda settle: settle(None)
            try:
                answer(self, question, reply)
            finally:
                self._member.barrier = barrier
        else:
            answer(self, question, reply)

    p.attribute(Lessor, "_answer", hasty)


MUTANTS = (
    Mutant(
        56,
        "lease expiry by a follower's clock; not extended on a new leader",
        _counted_from_the_grant,
        level="node",
        features=("leases",),
    ),
    Mutant(
        57, "lock granted with an expired lease", _held_with_a_dead_lease, level="node", features=("leases",)
    ),
    Mutant(
        63,
        "keepalive acknowledged without a quorum round",
        _renewed_without_a_round,
        level="node",
        features=("leases",),
    ),
)

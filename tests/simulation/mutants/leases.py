"""Mutants of leases and locks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvstore.engine import Lease, Leases
from kvstore.errors import KVError
from kvstore.lease.lease_clock import LeaseClock
from kvstore.lease.lessor import KEEP_ALIVE, Lessor
from kvstore.lease.lock_queue import Waiter
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
    confirmed = Waiter._confirmed

    def trusting(self: Waiter, error: KVError | None) -> None:
        if error is None and self._on_result is not None:
            self._complete(self._held(self._replica.engine.revision))
        else:
            confirmed(self, error)

    p.attribute(Waiter, "_confirmed", trusting)


def _kept_alive_without_a_round(p: Patches) -> None:
    answer = Lessor._answer

    def hasty(self: Lessor, leader_request: bytes, reply: Callable[[bytes], None]) -> None:
        if leader_request[0] == KEEP_ALIVE:
            barrier = self._replica.barrier
            self._replica.barrier = lambda on_result: on_result(None)
            try:
                answer(self, leader_request, reply)
            finally:
                self._replica.barrier = barrier
        else:
            answer(self, leader_request, reply)

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
        _kept_alive_without_a_round,
        level="node",
        features=("leases",),
    ),
)

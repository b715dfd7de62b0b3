"""Deadlines of the leases, on the leader's clock.

Only durations are replicated, so a new leader restarts every deadline: each lease gets its full TTL, or the
remaining TTL of its last checkpoint. Every time is an argument; the caller reads a monotonic clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from math import ceil
from typing import NamedTuple

from kvstore.engine import Checkpoint, Lease, Leases

STALE_ENTRIES_MIN = 1024
"""Stale heap entries, beyond one per lease, after which the heap is rebuilt: so a rebuild stays cheap per
expired lease."""

READ_PER_CALL_MAX = 2000
"""Leases whose deadline a new leader sets in one call: about 5 ms."""

CHECKPOINT_INTERVAL_S = 300.0
"""Between two checkpoints of a lease, and the least remaining TTL for one: as etcd."""


class Due(NamedTuple):
    """A lease past its deadline."""

    id: int
    granted_at: int


class LeaseClock:
    """Deadlines of all leases while this member leads; empty while it does not."""

    def __init__(self, leases: Callable[[], Leases]) -> None:
        self._leases = leases
        """The replicated table, which a snapshot may replace."""
        self.checkpoints = False
        """Whether a new leader starts a lease with the remaining TTL of its checkpoint; set before any
        call."""
        self.checkpointed: dict[int, int] = {}
        """Leases with a checkpoint proposed in this term, to the number of that checkpoint: the next leader
        may start them with less than the full TTL, so a keep-alive must undo the checkpoint first."""
        self.term = 0
        """The term this member leads; 0 while it does not."""
        self._deadlines: dict[int, tuple[float, int]] = {}
        """Lease to (seconds on the caller's clock, log index of the grant): the leases of the table as of the
        last `sync`, but for those in `_unread`."""
        self._unread: list[int] = []
        """Leases of the table at the promotion that have no deadline yet: setting a hundred thousand at once
        would block the loop."""
        self._promoted_s = 0.0
        """When this leadership began; only while it lasts."""
        self._heap: list[tuple[float, int]] = []
        """(deadline when pushed, lease). A keep-alive leaves the old entry, which is pushed again when it
        comes up too early. Every lease that is not `expiring` has an entry not later than its deadline."""
        self.expiring: dict[int, int] = {}
        """Leases whose expiry is proposed but not applied, to the log index of their grant."""

    def promote(self, term: int, now_s: float) -> None:
        """This member leads `term` from now on: every lease has its full TTL again."""
        self.demote()
        self.term = term
        leases = self._leases()
        leases.observing = True
        leases.take_changed()
        self._promoted_s = now_s
        self._unread = leases.ids()

    def demote(self) -> None:
        """This member no longer leads: forget every deadline."""
        self.term = 0
        leases = self._leases()
        leases.observing = False
        leases.take_changed()
        self._unread.clear()
        self._deadlines.clear()
        self._heap.clear()
        self.expiring.clear()
        self.checkpointed.clear()

    def sync(self, now_s: float) -> None:
        """Add the leases granted, and drop those expired or revoked, since the last call."""
        if not self.term:
            return
        leases = self._leases()
        for lease_id in leases.take_changed():
            lease = leases.find(lease_id)
            known = self._deadlines.get(lease_id)
            if lease is None:
                self._deadlines.pop(lease_id, None)
                self.expiring.pop(lease_id, None)
                self.checkpointed.pop(lease_id, None)
            elif known is None or known[1] != lease.granted_at:
                self.expiring.pop(lease_id, None)
                self._enter(lease_id, now_s + lease.ttl_seconds, lease.granted_at)
        self._read(READ_PER_CALL_MAX)
        if len(self._heap) > 2 * len(self._deadlines) + STALE_ENTRIES_MIN:
            self._rebuild()

    def _read(self, count: int) -> None:
        """Set the deadline of up to `count` leases of the promotion that have none yet."""
        leases = self._leases()
        for _ in range(min(count, len(self._unread))):
            lease_id = self._unread.pop()
            lease = leases.find(lease_id)
            if lease is not None and lease_id not in self._deadlines:
                self._enter(lease_id, self._promoted_s + self._first_seconds(lease), lease.granted_at)

    def _first_seconds(self, lease: Lease) -> int:
        if self.checkpoints and lease.remaining_seconds:
            return lease.remaining_seconds
        return lease.ttl_seconds

    def keep_alive(self, lease_id: int, now_s: float) -> int:
        """Reset to the full TTL; returns it in seconds, 0 for an unknown lease. Not for one in `expiring`."""
        assert lease_id not in self.expiring, "the expiry of this lease is proposed"
        lease = self._leases().find(lease_id)
        if lease is None:
            return 0
        deadline_s = now_s + lease.ttl_seconds
        if lease_id in self._deadlines:
            self._deadlines[lease_id] = (deadline_s, lease.granted_at)
        else:
            self._enter(lease_id, deadline_s, lease.granted_at)
        return lease.ttl_seconds

    def remaining_s(self, lease_id: int, now_s: float) -> float:
        """Of a known lease; never negative."""
        found = self._deadlines.get(lease_id)
        if found is not None:
            return max(0.0, found[0] - now_s)
        lease = self._leases().find(lease_id)
        return 0.0 if lease is None else max(0.0, self._promoted_s + self._first_seconds(lease) - now_s)

    def by_deadline(self) -> list[int]:
        """Leases in the order of their deadlines."""
        self._read(len(self._unread))
        return sorted(self._deadlines, key=lambda lease_id: self._deadlines[lease_id][0])

    def shortened(self, lease_id: int) -> bool:
        """Whether the next leader may start the lease with less than its full TTL."""
        if lease_id in self.checkpointed:
            return True
        lease = self._leases().find(lease_id)
        return lease is not None and lease.remaining_seconds != 0

    def long_lived(self, now_s: float) -> list[int]:
        """Leases with enough remaining TTL for a checkpoint."""
        return [
            lease_id
            for lease_id, (deadline_s, _) in self._deadlines.items()
            if deadline_s - now_s > CHECKPOINT_INTERVAL_S
        ]

    def checkpoints_of(self, lease_ids: Sequence[int], now_s: float) -> tuple[Checkpoint, ...]:
        """Their remaining TTLs, rounded up: a key must not expire early. Skips leases past their deadline."""
        found = ((lease_id, self._deadlines.get(lease_id)) for lease_id in lease_ids)
        return tuple(
            Checkpoint(lease_id, known[1], ceil(known[0] - now_s))
            for lease_id, known in found
            if known is not None and known[0] > now_s
        )

    def due(self, now_s: float, limit: int) -> list[Due]:
        """Up to `limit` leases past their deadline, oldest first; they are `expiring` from now on."""
        found: list[Due] = []
        heap, deadlines = self._heap, self._deadlines
        while heap and heap[0][0] <= now_s and len(found) < limit:
            _, lease_id = heapq.heappop(heap)
            known = deadlines.get(lease_id)
            if known is None or lease_id in self.expiring:
                continue
            if known[0] > now_s:
                heapq.heappush(heap, (known[0], lease_id))
                continue
            self.expiring[lease_id] = known[1]
            found.append(Due(lease_id, known[1]))
        return found

    def _enter(self, lease_id: int, deadline_s: float, granted_at: int) -> None:
        self._deadlines[lease_id] = (deadline_s, granted_at)
        heapq.heappush(self._heap, (deadline_s, lease_id))

    def _rebuild(self) -> None:
        self._heap = [
            (deadline_s, lease_id)
            for lease_id, (deadline_s, _) in self._deadlines.items()
            if lease_id not in self.expiring
        ]
        heapq.heapify(self._heap)

"""How long the leases of the cluster have left, on the clock of the member that leads.

Only durations are replicated, so the deadlines here begin anew with each leadership: every lease gets
its whole time again, or what a checkpoint left it. Plain arithmetic over the time handed in; whoever
calls reads the clock, a monotonic one.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from math import ceil
from typing import NamedTuple

from kvstore.engine import Checkpoint, Lease, Leases

STALE_ENTRIES_MIN = 1024
"""Heap entries of ended leases that are tolerated before the heap is built anew; also tolerated are as
many as there are leases, so that the rebuilding stays cheap per ended lease."""


READ_PER_CALL_MAX = 2000
"""Leases whose deadline a new leader notes in one call: about 5 ms."""

CHECKPOINT_INTERVAL_S = 300.0
"""Between two checkpoints of a lease, and what it must have left for one: as etcd."""


class Due(NamedTuple):
    """A lease whose time is up."""

    id: int
    granted_at: int


class LeaseClock:
    """Deadlines of all leases while this member leads; empty while it does not."""

    def __init__(self, leases: Callable[[], Leases]) -> None:
        self._leases = leases
        """The replicated table, which a snapshot may replace."""
        self.checkpoints = False
        """Whether a new leader starts a lease with what its checkpoint says; set before anything else."""
        self.checkpointed: dict[int, int] = {}
        """Leases for which a checkpoint was proposed in this term, and which one it was: the next leader
        may start them with less than all, so a renewal must first undo that."""
        self.term = 0
        """The term this member leads; 0 while it does not."""
        self._deadlines: dict[int, tuple[float, int]] = {}
        """Lease to (seconds on the caller's clock, log index of the grant). While leading it holds the
        leases of the table as of the last `sync`, but for those `_unread`."""
        self._unread: list[int] = []
        """Leases found at the promotion whose deadlines are still to be noted: a hundred thousand at once
        would hold up the loop."""
        self._promoted_s = 0.0
        """When this leadership began; only while it lasts."""
        self._heap: list[tuple[float, int]] = []
        """(deadline when entered, lease). A renewal leaves its entry behind: one that comes up early is
        entered again. Every lease that is not `expiring` has an entry not later than its deadline."""
        self.expiring: dict[int, int] = {}
        """Leases given out as due and not ended yet, with the log index of their grant."""

    def promote(self, term: int, now_s: float) -> None:
        """This member leads `term` from now on: everybody has their full time again."""
        self.demote()
        self.term = term
        leases = self._leases()
        leases.observing = True
        leases.take_changed()
        self._promoted_s = now_s
        self._unread = leases.ids()

    def demote(self) -> None:
        """Another member counts from now on, or none."""
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
        """Take up the leases granted and ended since the last call."""
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
        """Take up that many of the leases found at the promotion, besides those taken up since."""
        leases = self._leases()
        for _ in range(min(count, len(self._unread))):
            lease_id = self._unread.pop()
            lease = leases.find(lease_id)
            if lease is not None and lease_id not in self._deadlines:
                self._enter(lease_id, self._promoted_s + self._first_seconds(lease), lease.granted_at)

    def _first_seconds(self, lease: Lease) -> int:
        """What a new leader starts a lease with."""
        if self.checkpoints and lease.remaining_seconds:
            return lease.remaining_seconds
        return lease.ttl_seconds

    def keep_alive(self, lease_id: int, now_s: float) -> int:
        """The full time again; returns it in seconds, 0 for an unknown lease. Not one that is expiring."""
        assert lease_id not in self.expiring, "the end of this lease is on its way"
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
        """Leases in the order in which they end."""
        self._read(len(self._unread))
        return sorted(self._deadlines, key=lambda lease_id: self._deadlines[lease_id][0])

    def shortened(self, lease_id: int) -> bool:
        """Whether the next leader may start the lease with less than its full time."""
        if lease_id in self.checkpointed:
            return True
        lease = self._leases().find(lease_id)
        return lease is not None and lease.remaining_seconds != 0

    def long_lived(self, now_s: float) -> list[int]:
        """The leases worth a checkpoint."""
        return [
            lease_id
            for lease_id, (deadline_s, _) in self._deadlines.items()
            if deadline_s - now_s > CHECKPOINT_INTERVAL_S
        ]

    def checkpoints_of(self, lease_ids: Sequence[int], now_s: float) -> tuple[Checkpoint, ...]:
        """What they have left at this moment, rounded up: a key must not end early. Not of those that end."""
        found = ((lease_id, self._deadlines.get(lease_id)) for lease_id in lease_ids)
        return tuple(
            Checkpoint(lease_id, known[1], ceil(known[0] - now_s))
            for lease_id, known in found
            if known is not None and known[0] > now_s
        )

    def due(self, now_s: float, limit: int) -> list[Due]:
        """Up to `limit` leases whose time is up, soonest first; they are `expiring` from now on."""
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

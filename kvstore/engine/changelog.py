"""Which keys changed at which revision: what a watch needs to start in the past.

Two parallel columns in revision order, 16 bytes a change: cheap enough to keep always. What was
loaded from a backend is not in them; that part is built only on demand, in slices, because sorting
a million revisions at once would stall every request behind it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable

BUCKET_REVISIONS = 1024
"""Revisions sorted in one step while the older part is built: about 1 ms of work."""

Revisions = Callable[[bytes], Iterable[int]]
"""The revisions at which a key changed, as far as its records are still held."""


class ChangeLog:
    """Changed by the store alone; same inputs, same contents, whatever was built when."""

    def __init__(self, first_revision: int) -> None:
        self._revisions = array("q")
        """Never decreasing; a revision stands once per change it made."""
        self._keys: list[bytes] = []
        """`_keys[i]` changed at `_revisions[i]`. Within one revision in no order that matters."""
        self.lower_bound = first_revision
        """Changes above it are all here, as far as compaction left them."""
        self._builder: _Builder | None = None

    def append(self, revision: int, key: bytes) -> None:
        self._revisions.append(revision)
        self._keys.append(key)

    def trim(self, compact_revision: int) -> None:
        """Forget changes before a compacted revision; those at it may still be asked for."""
        count = bisect_left(self._revisions, compact_revision)
        del self._revisions[:count]
        del self._keys[:count]

    def build(self, keys: Callable[[], list[bytes]], revisions_of: Revisions, budget: int) -> int:
        """Take a step towards a lower bound of 0, visiting about `budget` keys or one bucket; keys visited.

        `keys` are all that have a record now: no other can have one below the lower bound.
        """
        builder = self._builder
        if builder is None:
            builder = self._builder = _Builder(keys(), self.lower_bound)
        visited = builder.step(revisions_of, budget)
        if builder.done:
            builder.revisions.extend(self._revisions)
            builder.keys.extend(self._keys)
            self._revisions, self._keys = builder.revisions, builder.keys
            self._builder = None
            self.lower_bound = 0
        return visited

    def changed(self, start: int, stop: int, budget: int) -> tuple[list[tuple[int, bytes]], int]:
        """Changes from revision `start`, before `stop`, of whole revisions; and the revision to go on at.

        Ends after about `budget` of them.
        """
        revisions = self._revisions
        low = bisect_left(revisions, start)
        high = bisect_left(revisions, stop, low)
        if high - low > budget:
            # Whole revisions: end before the one that exceeds the budget, or behind the first.
            high = bisect_left(revisions, revisions[low + budget], low, high)
            if high == low:
                high = bisect_left(revisions, revisions[low] + 1, low)
            stop = revisions[high] if high < len(revisions) else stop
        return list(zip(revisions[low:high], self._keys[low:high], strict=True)), stop


class _Builder:
    def __init__(self, pending: list[bytes], lower_bound: int) -> None:
        self._pending = pending
        """Keys not visited yet."""
        self._lower_bound = lower_bound
        self._buckets: dict[int, tuple[array[int], list[bytes]]] = {}
        """Unsorted columns by revision // BUCKET_REVISIONS."""
        self._order: list[int] | None = None
        """Buckets still to be sorted, the oldest last; None while keys are pending."""
        self.revisions = array("q")
        self.keys: list[bytes] = []

    @property
    def done(self) -> bool:
        return self._order is not None and not self._order

    def step(self, revisions_of: Revisions, budget: int) -> int:
        if self._order is None:
            return self._collect(revisions_of, budget)
        revisions, keys = self._buckets.pop(self._order.pop())
        order = sorted(range(len(keys)), key=revisions.__getitem__)
        self.revisions.extend(revisions[position] for position in order)
        self.keys.extend(keys[position] for position in order)
        return len(keys)

    def _collect(self, revisions_of: Revisions, budget: int) -> int:
        pending, buckets = self._pending, self._buckets
        visited = 0
        while pending and visited < budget:
            key = pending.pop()
            visited += 1
            for revision in revisions_of(key):
                if revision > self._lower_bound:
                    break
                visited += 1
                bucket = buckets.setdefault(revision // BUCKET_REVISIONS, (array("q"), []))
                bucket[0].append(revision)
                bucket[1].append(key)
        if not pending:
            self._order = sorted(buckets, reverse=True)
        return visited

"""The replicated log as one member holds it: a list in memory over a compacted base.

Chain of indices (each is the highest one of which its name is true):

    base <= applied <= applying <= committed <= last
    stable <= submitted <= last,   applying <= stable

`committed` may exceed `stable`: others may hold durably what this disk does not yet; only applying
waits for this disk. A restored snapshot is its own chain until durable: then base = committed = last
of the new log, and applied follows when the snapshot's append work completes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter

from raft.core.core_errors import BootRefused, LogCompacted
from raft.core.types import Entry, EntryKind, SnapshotMeta

_term_of = attrgetter("term")


class Log:
    """Entries above `base_index`, and how far each of persistence, commitment and application is."""

    __slots__ = (
        "_entries",
        "applied",
        "applying",
        "base_index",
        "base_term",
        "committed",
        "snapshot",
        "snapshot_submitted",
        "stable",
        "submitted",
    )

    def __init__(self, base: SnapshotMeta, entries: Sequence[Entry], committed: int, applied: int) -> None:
        self._entries: list[Entry] = list(entries)
        """Entry i is at position i - base_index - 1: no gaps, terms never decrease."""
        self.base_index = base.index
        """Highest index no longer held; everything up to it is in the state machine's durable state."""
        self.base_term = base.term
        """Term of the entry at `base_index`, so that the entry after it can still be matched."""
        self._check_boot(committed, applied)
        self.committed = committed
        """Highest index known to be in the log of a quorum. Never decreases."""
        self.applying = applied
        """Highest index handed out for applying."""
        self.applied = applied
        """Highest index reported applied."""
        self.stable = self.last_index
        """Highest index known durable on this disk, in its present content."""
        self.submitted = self.last_index
        """Highest index handed out to be made durable, in its present content."""
        self.snapshot: SnapshotMeta | None = None
        """A restored snapshot not yet reported durable; while set, nothing may be applied."""
        self.snapshot_submitted = False
        """Whether `snapshot` was handed out."""

    def _check_boot(self, committed: int, applied: int) -> None:
        expected = self.base_index + 1
        term = self.base_term
        for entry in self._entries:
            if entry.index != expected or entry.term < term:
                raise BootRefused(f"entry {entry.term}/{entry.index} where {term}+/{expected} belongs")
            expected += 1
            term = entry.term
        if not self.base_index <= applied <= self.last_index:
            raise BootRefused(
                f"applied {applied} lies outside the log ({self.base_index}, {self.last_index}]"
            )
        if committed > self.last_index:
            raise BootRefused(f"committed {committed} lies beyond the log's end {self.last_index}")

    # ------------------------------------------------------------------ reading

    @property
    def first_index(self) -> int:
        """Lowest index still held, or the one to come."""
        return self.base_index + 1

    @property
    def last_index(self) -> int:
        return self.base_index + len(self._entries)

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.base_term

    def term_at(self, index: int) -> int | None:
        """Term of the entry at `index`; None when it is compacted or not here."""
        position = index - self.base_index - 1
        if position == -1:
            return self.base_term
        if 0 <= position < len(self._entries):
            return self._entries[position].term
        return None

    def matches(self, index: int, term: int) -> bool:
        """Whether the entry at `index` was made in `term`; then the whole prefix is the same too."""
        return self.term_at(index) == term

    def is_current(self, last_index: int, last_term: int) -> bool:
        """Whether a log ending in (last_index, last_term) is at least as new as this one (paper 5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def between(self, low: int, high: int) -> list[Entry]:
        """Entries low <= index < high. Raises LogCompacted below the base."""
        base = self.base_index
        if low <= base:
            raise LogCompacted(f"entry {low} is at or below the base {base}")
        return self._entries[low - base - 1 : high - base - 1]

    def page(self, low: int, high: int, nbytes_max: int, count_max: int) -> list[Entry]:
        """As `between`, limited to `nbytes_max` and `count_max`, but at least one entry."""
        entries = self.between(low, min(high, low + count_max))
        if len(entries) > 1:
            total = 0
            for position, entry in enumerate(entries):
                total += len(entry.data)
                if total > nbytes_max and position:
                    return entries[:position]
        return entries

    def nbytes_between(self, low: int, high: int) -> int:
        """Sum of data sizes over low <= index < high."""
        return sum([len(entry.data) for entry in self.between(low, high)]) if low < high else 0

    def guess_agreement(self, index: int, term: int) -> tuple[int, int]:
        """The highest index' <= `index` whose term is at most `term`, and that term.

        The other side's entry at `index` is of `term`; none of ours of a higher term can match it or
        anything before it, so a whole run of them is skipped at once. The term is 0 where unknown.
        """
        if index > self.last_index:
            return index, 0
        if index < self.base_index:
            return index, 0
        held = bisect_right(self._entries, term, 0, index - self.base_index, key=_term_of)
        if held:
            return self.base_index + held, self._entries[held - 1].term
        if self.base_term <= term:
            return self.base_index, self.base_term
        return max(self.base_index - 1, 0), 0

    def has_conf_change(self, low: int, high: int) -> bool:
        """Whether a membership change lies in low <= index < high."""
        return low < high and any(entry.kind is not EntryKind.NORMAL for entry in self.between(low, high))

    # ------------------------------------------------------------------ appending

    def append(self, entries: Sequence[Entry]) -> None:
        """Put `entries` at the end; the first must follow the last one held."""
        assert entries[0].index == self.last_index + 1, "a gap in the log"
        assert entries[0].term >= self.last_term, "terms decrease"
        self._entries.extend(entries)

    def accept(self, prev_index: int, prev_term: int, entries: Sequence[Entry], commit: int) -> int | None:
        """Accept a leader's append; the last index that now matches the leader's log, or None on a mismatch.

        Only a true conflict discards anything: a stale append must not shorten the log.
        """
        if not self.matches(prev_index, prev_term):
            return None
        last_new = prev_index + len(entries)
        for position, entry in enumerate(entries):
            if not self.matches(entry.index, entry.term):
                if entry.index <= self.last_index:
                    self._truncate(entry.index)
                self.append(entries[position:] if position else entries)
                break
        self.commit_to(min(commit, last_new))
        return last_new

    def _truncate(self, index: int) -> None:
        assert index > self.committed, f"entry {index} is committed ({self.committed}) and never changes"
        del self._entries[index - self.base_index - 1 :]
        self.stable = min(self.stable, index - 1)
        self.submitted = min(self.submitted, index - 1)

    def commit_to(self, index: int) -> bool:
        """Raise the commit index; False when it does not move. Never past the last entry."""
        if index <= self.committed:
            return False
        assert index <= self.last_index, f"commit {index} beyond the last entry {self.last_index}"
        self.committed = index
        return True

    # ------------------------------------------------------------------ towards the disk

    def has_unsubmitted(self) -> bool:
        return self.submitted < self.last_index or (self.snapshot is not None and not self.snapshot_submitted)

    def take_unsubmitted(self) -> tuple[Sequence[Entry], SnapshotMeta | None]:
        """Entries and snapshot not yet handed out to be made durable."""
        entries: Sequence[Entry] = ()
        last_index = self.last_index
        if self.submitted < last_index:
            entries = self.between(self.submitted + 1, last_index + 1)
            self.submitted = last_index
        snapshot = None
        if not self.snapshot_submitted:
            snapshot = self.snapshot
            self.snapshot_submitted = snapshot is not None
        return entries, snapshot

    def stable_to(self, index: int, term: int) -> bool:
        """Note that (index, term) and all before it are durable; False if that entry is no longer ours.

        The caller has checked that its term has not changed since the write was handed out; without
        that an entry written, overwritten and written again at the same index would count too early.
        """
        if index <= self.stable or not self.matches(index, term):
            return False
        self.stable = index
        return True

    def snapshot_durable(self, index: int) -> None:
        """The restored snapshot is durable, and the state machine holds its state."""
        if self.snapshot is not None and self.snapshot.index == index:
            self.snapshot = None
            self.snapshot_submitted = False
        self.applied = max(self.applied, index)
        self.applying = max(self.applying, index)
        self.stable = max(self.stable, index)

    # ------------------------------------------------------------------ towards the state machine

    def has_applicable(self) -> bool:
        return self.applying < self.committed and self.applying < self.stable and self.snapshot is None

    def take_applicable(self, nbytes_max: int) -> list[Entry]:
        """The next entries that are committed and durable here, each handed out once."""
        high = min(self.committed, self.stable)
        entries = self.page(self.applying + 1, high + 1, nbytes_max, high - self.applying)
        self.applying = entries[-1].index
        return entries

    def applied_to(self, index: int) -> None:
        """Entries up to `index` are applied. Ignored when a snapshot has superseded them."""
        if index > self.applied:
            assert index <= self.applying, f"applied {index} was never handed out ({self.applying})"
            self.applied = index

    # ------------------------------------------------------------------ compaction and snapshots

    def compact(self, index: int) -> None:
        """Drop entries up to `index`, which must be applied; no-op at or below the base."""
        if index <= self.base_index:
            return
        assert index <= self.applied, f"compacting {index} before it is applied ({self.applied})"
        term = self.term_at(index)
        assert term is not None
        del self._entries[: index - self.base_index]
        self.base_index, self.base_term = index, term

    def restore(self, snapshot: SnapshotMeta) -> None:
        """Become the log that holds nothing but `snapshot`. Entries beyond it are discarded: they may
        contradict what was committed before it."""
        assert snapshot.index > self.committed, "a snapshot must be newer than the log"
        self._entries.clear()
        self.base_index, self.base_term = snapshot.index, snapshot.term
        self.committed = snapshot.index
        self.submitted = snapshot.index
        self.stable = self.applied  # nothing above it is known durable until the snapshot is
        self.snapshot, self.snapshot_submitted = snapshot, False

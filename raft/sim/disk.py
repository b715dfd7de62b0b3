"""What one member's disk holds, at the level of operations: a log, a hard state and a backend.

Work is written in the order handed out. A crash keeps everything synced and, of the rest, a random
prefix, the first lost work perhaps in part: some of its entries, and its hard state if it has them all.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from raft.core import NO_NODE, AppendWork, ConfState, Entry, HardState, SnapshotMeta


@dataclass(frozen=True, slots=True)
class Backend:
    """A state machine as of one applied index; its state is a digest of all applied entries."""

    index: int
    term: int
    conf: ConfState
    digest: int


class Disk:
    """The durable part of a member. Invariant: backend.index >= base.index, entries follow base."""

    __slots__ = ("backend", "base", "entries", "hard", "overwritten")

    def __init__(self, conf: ConfState) -> None:
        self.hard = HardState(0, 0, 0)
        self.base = SnapshotMeta(0, 0, conf)
        self.entries: list[Entry] = []
        """Gap-free from base.index + 1."""
        self.backend = Backend(0, 0, conf, 0)
        self.overwritten = 0
        """Entries overwritten by a later leader's."""

    @property
    def last_index(self) -> int:
        return self.base.index + len(self.entries)

    def holds(self, index: int, term: int) -> bool:
        """Whether this entry would survive a crash, itself or in the backend."""
        position = index - self.base.index - 1
        if position < 0:
            return position < -1 or self.base.term == term
        return position < len(self.entries) and self.entries[position].term == term

    def recovered_hard_state(self) -> HardState:
        """What a restart reads. The commit index is a hint and never beyond the log; where entries of a
        later term lost their hard state, no vote in that term had left yet."""
        hard = self.hard
        if self.entries and self.entries[-1].term > hard.term:
            hard = HardState(self.entries[-1].term, NO_NODE, hard.commit)
        return hard._replace(commit=min(hard.commit, self.last_index))

    def write(self, work: AppendWork) -> None:
        if work.snapshot is not None:
            self.base = work.snapshot
            self.entries = []
        if work.entries:
            self._put(work.entries)
        if work.hard_state is not None:
            self.hard = work.hard_state

    def _put(self, entries: Sequence[Entry]) -> None:
        position = entries[0].index - self.base.index - 1
        assert 0 <= position <= len(self.entries), f"a hole in the log before {entries[0].index}"
        self.overwritten += len(self.entries) - position
        self.entries[position:] = entries

    def crash(self, unsynced: Sequence[AppendWork], rng: random.Random) -> list[AppendWork]:
        """The works among `unsynced` that reached the disk after all; the last one may be a part."""
        kept = list(unsynced[: rng.randint(0, len(unsynced))])
        if len(kept) < len(unsynced) and rng.random() < 0.5:
            torn = unsynced[len(kept)]
            if torn.snapshot is None:
                entries = torn.entries[: rng.randint(0, len(torn.entries))]
                # A log is written in order, and the hard state after its entries: it may name a commit index
                # that is true of the new ones only.
                whole = len(entries) == len(torn.entries)
                kept.append(AppendWork(torn.token, entries, torn.hard_state if whole else None))
        return kept

    def drop_prefix(self, index: int) -> None:
        """Compact: drop entries up to `index`, which the backend holds."""
        assert self.base.index <= index <= self.backend.index
        count = index - self.base.index
        if count:
            self.base = SnapshotMeta(index, self.entries[count - 1].term, self.backend.conf)
            del self.entries[:count]

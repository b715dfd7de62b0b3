"""The values of consensus: small and frozen, for use in every layer above.

Terms and indices are plain ints (0 means "none", the first real value is 1).
Nothing here decides anything.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

NO_NODE = 0
"""The member id for "none": no vote cast, no leader known."""


class EntryKind(IntEnum):
    """What an entry carries; the numbers are stored in the log and never reused."""

    NORMAL = 0
    """Opaque bytes for the state machine; empty data is a leader's no-op."""
    CONF_CHANGE = 1
    """An encoded single-step membership change."""
    CONF_CHANGE_V2 = 2
    """An encoded membership change that may pass through a joint configuration."""


class Entry(NamedTuple):
    """One slot of the replicated log. A normal entry carries a whole batch of commands."""

    term: int
    """Term of the leader that created the entry; never decreases along a log."""
    index: int  # type: ignore[assignment]  # hides tuple.index, which has no caller
    """Position in the log, from 1, without gaps."""
    kind: EntryKind
    data: bytes


class EntryId(NamedTuple):
    """Names an entry for ever: two entries with one id are the same entry (log matching)."""

    term: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which has no caller


class HardState(NamedTuple):
    """Raft's persistent state. Term and vote are durable before a response that depends on them leaves."""

    term: int
    """Latest term seen; never decreases, restarts included."""
    vote: int
    """Member voted for in `term`, or NO_NODE; changes at most once per term."""
    commit: int
    """Highest index known committed; a hint after restart, so it needs no sync of its own."""


EMPTY_HARD_STATE = HardState(0, NO_NODE, 0)


class ConfState(NamedTuple):
    """A configuration: who votes and who only listens. All tuples are sorted.

    Invariants: `voters` is not empty once bootstrapped; learners are disjoint from voters;
    `learners_next` is a subset of `voters_outgoing`.
    """

    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    voters_outgoing: tuple[int, ...] = ()
    """Voters of the configuration being left; not empty exactly while joint."""
    learners_next: tuple[int, ...] = ()
    """Voters that become learners when the joint configuration is left."""
    auto_leave: bool = False
    """Whether the leader proposes leaving the joint configuration by itself."""


class SnapshotMeta(NamedTuple):
    """Everything up to and including (index, term), as the core sees it: never the bytes."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which has no caller
    term: int
    conf: ConfState


EMPTY_SNAPSHOT = SnapshotMeta(0, 0, ConfState())


class Role(IntEnum):
    """Follower -> pre-candidate -> candidate -> leader; any role may fall back to follower."""

    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2
    PRE_CANDIDATE = 3


class SoftState(NamedTuple):
    """Volatile state for display: not persisted, reported when it changes."""

    leader: int
    """The leader of the current term, or NO_NODE while none is known."""
    role: Role

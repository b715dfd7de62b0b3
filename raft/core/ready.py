"""The work the core hands to its caller: effects as values, with their ordering in the type.

Two outboxes (etcd-io/raft, asynchronous storage writes): `Ready.messages` may leave at once;
`AppendWork.responses` may leave only when that work is durable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from raft.core.messages import Message
from raft.core.types import Entry, HardState, SnapshotMeta, SoftState


class AppendToken(NamedTuple):
    """Identifies one piece of append work, which distinguishes its completion from a stale one.

    Invariant: `sequence` grows by one per AppendWork; a completion counts for (last_index,
    last_term) only while the core is still in `term` (the guard against the ABA race).
    """

    term: int
    sequence: int
    last_index: int
    last_term: int


@dataclass(slots=True)
class AppendWork:
    """State to make durable, in the order handed out, before `responses` may leave.

    Several may be in flight; they complete first in, first out. The caller may merge
    consecutive ones into one sync (group commit) but delivers every response, in order.
    Writing entries discards every stored entry at or above `entries[0].index`.
    """

    token: AppendToken
    entries: Sequence[Entry] = ()
    hard_state: HardState | None = None
    """The new hard state, or None when term, vote and commit are unchanged."""
    snapshot: SnapshotMeta | None = None
    """A snapshot that replaces the log; its bytes are already durable when this is handed out."""
    must_sync: bool = False
    """False when only the commit index moved and nothing waits for it."""
    responses: list[Message] = field(default_factory=list)
    """Acknowledgements and votes for *other* members; self-acknowledgement is internal."""


@dataclass(slots=True)
class ApplyWork:
    """Entries that are committed and durable here, gap-free and each handed out exactly once."""

    entries: Sequence[Entry]
    nbytes: int
    """Sum of the entries' data sizes; passed back to `on_apply_done`."""


class ReadState(NamedTuple):
    """Read `context` may be served once the state machine has applied `index`."""

    context: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which has no caller


@dataclass(slots=True)
class Ready:
    """All work of the core since the last take. Must be executed, never dropped."""

    messages: list[Message]
    append: AppendWork | None = None
    apply: ApplyWork | None = None
    soft_state: SoftState | None = None
    """Set only when leader or role changed since the last take."""
    read_states: Sequence[ReadState] = ()
    dropped_reads: Sequence[int] = ()
    """Contexts of local reads that will never be answered (step-down); fail or retry them anew."""

"""Messages between members: one slotted class for all of the paper's RPCs and their responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from raft.core.types import Entry, SnapshotMeta


class MessageType(IntEnum):
    """Kinds of message; the numbers go over the wire and are never reused."""

    APPEND = 1
    APPEND_RESPONSE = 2
    VOTE = 3
    VOTE_RESPONSE = 4
    PRE_VOTE = 5
    PRE_VOTE_RESPONSE = 6
    HEARTBEAT = 7
    HEARTBEAT_RESPONSE = 8
    SNAPSHOT = 9
    TIMEOUT_NOW = 10
    """The leader orders the transferee to campaign at once."""
    TRANSFER_LEADER = 11
    """A follower forwards a request to transfer leadership to the member named by `context`."""
    READ_INDEX = 12
    """A follower requests a confirmed commit index; `context` is the follower's own id for the request."""
    READ_INDEX_RESPONSE = 13
    """`index` is safe to read at; with `reject` this member cannot confirm its leadership."""
    PROPOSE = 15
    """Only test harnesses forward proposals as messages; the core ignores them."""


@dataclass(slots=True)
class Message:
    """One message between two members. Treated as immutable once handed out.

    Field use per type follows etcd-io/raft: `index`/`log_term` name the entry before `entries`
    (APPEND), the acknowledged index (APPEND_RESPONSE), or the candidate's last entry (VOTE).
    VOTE_RESPONSE and PRE_VOTE_RESPONSE: `commit`/`log_term` name an entry the sender knows committed,
    the newest that the candidate's log can reach.
    """

    type: MessageType
    to: int
    from_: int
    term: int = 0
    log_term: int = 0
    index: int = 0
    entries: Sequence[Entry] = ()
    commit: int = 0
    reject: bool = False
    reject_hint: int = 0
    context: int = 0
    """Heartbeats and their responses: the read round they confirm, 0 for none, never reused.
    READ_INDEX and its response: the follower's own request id, never reused.
    VOTE: 1 when the campaign was ordered by a leadership transfer.
    APPEND: 1 on a commit broadcast (no entries), which gets a response only if it is rejected.
    TRANSFER_LEADER: the member that is to lead."""
    snapshot: SnapshotMeta | None = None

"""What a member reports about itself: frozen values, safe to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from raft.core.types import ConfState, Role
from raft.storage.storage_protocol import WriterStatistics
from raft.transport.transport_protocol import PeerStatistics


class NodeEvent(NamedTuple):
    """Leader, role or term changed; given to subscribers in the loop."""

    term: int
    leader: int
    """Member id, or 0 while none is known."""
    role: Role


class NodeStatistics(NamedTuple):
    """Counters since start."""

    batches_proposed: int
    """Batches of this member forwarded, repeats after a change of leader included."""
    operations_proposed: int
    entries_applied: int
    operations_applied: int
    read_rounds: int
    reads: int
    leader_changes: int
    """Times another leader became known."""
    state_commits: int
    state_commit_buckets: tuple[int, ...]
    """Commits by duration: one count per bound of STATE_COMMIT_BOUNDS_S, and one for longer."""
    state_commit_seconds: float
    """Sum of the durations."""
    iterations: int
    """Loop iterations; a measure of how much each one gathers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotStatistics:
    """Snapshots between members: counters since start, and what is under way."""

    built: int
    sent: int
    """Received by other members and installed there."""
    send_failures: int
    sent_bytes: int
    sending: Mapping[int, tuple[int, int]]
    """Member to (bytes it has, bytes of the snapshot)."""
    installed: int
    """Received and made the state of this member."""
    resumed: int
    """Attempts to receive that resumed where one before had stopped."""
    superseded: int
    """Snapshots half received that a newer one superseded."""
    receive_failures: int
    received_bytes: int
    receiving: tuple[int, int] | None
    """(Bytes here, bytes of the snapshot)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    member_id: int
    term: int
    vote: int
    leader: int
    role: Role
    commit: int
    applied: int
    first_index: int
    """Lowest entry the log still holds; those before it are in our own backend."""
    last_index: int
    durable_index: int
    """Applied index of the backend; never beyond `applied`."""
    vote_eligible: bool
    """False on a new disk until enough other members hold its id; see `raft.node.identity_check`."""
    trusted: bool
    """False after a torn tail was truncated, until a leader has confirmed the log."""
    conf: ConfState
    matched: Mapping[int, int]
    """Leader only: highest index known durable on each member."""
    waiting_operations: int
    in_flight_operations: int
    undurable_bytes: int
    backend_bytes: int
    """Size of the backend on disk, its journal included."""
    statistics: NodeStatistics
    snapshots: SnapshotStatistics
    writer: WriterStatistics
    peers: Mapping[int, PeerStatistics]

"""What a member thinks of itself and its peers: frozen values for display, health and tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from raft.core.progress import ProgressState
from raft.core.state import State
from raft.core.types import ConfState, Role


class PeerStatus(NamedTuple):
    """One member as the leader believes it to be; see `progress.Progress`."""

    member: int
    state: ProgressState
    match: int
    next: int
    inflight_messages: int
    inflight_bytes: int
    pending_snapshot: int
    paused: bool
    recent_active: bool
    is_learner: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One member at one moment. `compacted <= applied <= commit <= last_index`."""

    id: int
    term: int
    vote: int
    role: Role
    leader: int
    commit: int
    applied: int
    stable: int
    """Highest index durable on this member's disk."""
    last_index: int
    compacted: int
    """Highest index no longer in the log."""
    uncommitted_bytes: int
    pending_reads: int
    transferee: int
    conf: ConfState
    peers: tuple[PeerStatus, ...]
    """Every member, self included, by id; empty unless this member leads."""


def describe(s: State) -> Status:
    peers: tuple[PeerStatus, ...] = ()
    if s.role is Role.LEADER:
        peers = tuple(
            PeerStatus(
                member=member,
                state=progress.state,
                match=progress.match,
                next=progress.next,
                inflight_messages=len(progress.inflights),
                inflight_bytes=progress.inflights.nbytes,
                pending_snapshot=progress.pending_snapshot,
                paused=progress.blocked(),
                recent_active=progress.recent_active,
                is_learner=progress.is_learner,
            )
            for member, progress in s.tracker.progress.items()
        )
    return Status(
        id=s.id,
        term=s.term,
        vote=s.vote,
        role=s.role,
        leader=s.leader,
        commit=s.log.committed,
        applied=s.log.applied,
        stable=s.log.stable,
        last_index=s.log.last_index,
        compacted=s.log.base_index,
        uncommitted_bytes=s.uncommitted_bytes,
        pending_reads=s.reads.pending + len(s.forwarded_reads),
        transferee=s.transferee,
        conf=s.tracker.conf,
        peers=peers,
    )

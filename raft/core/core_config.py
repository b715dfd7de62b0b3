"""How one member behaves, fixed for its life, and what it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raft.core.types import ConfState, Entry, HardState, SnapshotMeta


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Limits and timers of one member. All members of a cluster should agree on the timers."""

    member_id: int
    """This member. Positive; 0 is reserved for "no member"."""

    election_ticks: int = 10
    """Ticks of silence before an election; each wait is drawn from [n, 2n). Ten heartbeats, so that
    a few lost ones depose no leader. Also how long votes are withheld and how often CheckQuorum looks."""

    heartbeat_ticks: int = 1
    """Ticks between heartbeats of an idle leader. Must be below `election_ticks`."""

    append_bytes_max: int = 1024 * 1024
    """Entry bytes in one append message; one larger entry still travels alone. 1 MiB keeps a message's
    encoding below a heartbeat's patience. Too small: many messages for a follower far behind."""

    append_entries_max: int = 1024
    """Entries in one append message; bounds messages made of empty entries, which have no bytes."""

    inflight_messages_max: int = 256
    """Unacknowledged append messages in flight per follower: 256 batches cover any round trip between
    machines. 1 stops the pipeline."""

    inflight_bytes_max: int = 16 * 1024 * 1024
    """Unacknowledged entry bytes per follower: what a stalled peer can pin in send queues."""

    uncommitted_bytes_max: int = 64 * 1024 * 1024
    """Entry bytes a leader holds without a quorum; further proposals are refused. Memory bound of a
    leader partitioned from its followers. One entry is always admitted."""

    apply_bytes_max: int = 1024 * 1024
    """Entry bytes in one ApplyWork, so that applying a backlog does not starve heartbeats."""

    applying_bytes_max: int = 4 * 1024 * 1024
    """Entry bytes handed out for applying and not yet reported applied; one entry is always admitted."""

    pending_reads_max: int = 65_536
    """Reads waiting for confirmation. A full table drops the oldest of a follower's own reads, and
    refuses new ones on a leader."""

    pre_vote: bool = True
    """Run a pre-vote before raising the term. Off, a member that was partitioned deposes a healthy leader."""

    check_quorum: bool = True
    """A leader that has not heard a quorum for an election timeout steps down."""

    withhold_votes: bool = True
    """Refuse to unseat a leader heard from within an election timeout. Without it a member that lost
    only its link to the leader can win an election again and again."""

    commit_broadcast_deferred: bool = False
    """A commit index that no append carries is sent to a follower only on `broadcast_commit`, or when
    the follower awaits it (`hasten_commit_broadcast`). Off, it is sent with the next Ready."""

    step_down_on_removal: bool = True
    """A leader that has applied its own removal or demotion becomes a follower at once."""

    def validate(self) -> Config:
        """Return self, or raise ValueError naming the first field out of range."""
        positive = (
            "member_id",
            "heartbeat_ticks",
            "append_bytes_max",
            "append_entries_max",
            "inflight_messages_max",
            "inflight_bytes_max",
            "uncommitted_bytes_max",
            "apply_bytes_max",
            "applying_bytes_max",
            "pending_reads_max",
        )
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.election_ticks <= self.heartbeat_ticks:
            raise ValueError("election_ticks must exceed heartbeat_ticks")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class BootState:
    """What a member finds on disk. The order is snapshot <= applied <= last entry."""

    hard_state: HardState
    snapshot: SnapshotMeta
    """Base of the log; its configuration is used only when nothing above it was applied."""
    entries: Sequence[Entry]
    """Gap-free from `snapshot.index + 1`."""
    applied: int
    """Applied index of the state machine's durable state."""
    conf: ConfState
    """Active configuration as of `applied`. A member that joins starts from the cluster's first
    configuration, whose log it will be sent, or from a snapshot; never from an empty one and index 0."""

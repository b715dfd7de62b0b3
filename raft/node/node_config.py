"""The settings of a member, in one frozen value, and the bounds that need no setting."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

TICKS_PER_STALL_MAX = 2
"""Ticks delivered after the loop was paused, however long. What arrived meanwhile is still in the
sockets: a follower that counted every missed tick would depose a leader whose heartbeats it holds."""

INBOX_PER_ITERATION_MAX = 1024
"""Inbox items handled before the core's effects are carried out: far above what a healthy iteration
brings, low enough that a flood delays a heartbeat by a few milliseconds only."""

INBOX_MAX = 65_536
"""Peer messages waiting for the core; beyond it they are dropped, as a lossy network would. A core
that far behind (seconds) gains nothing from more of them."""

ITERATION_ROUNDS_MAX = 16
"""Rounds of "take effects, carry them out" in one iteration before other callbacks of the loop run."""

APPLY_SLICE_OPERATIONS_MAX = 256
"""Commands applied before other callbacks of the loop run: about 5 ms at 20 us each."""

APPLY_SLICE_S = 0.005
"""Time spent applying before other callbacks run; half of the 10 ms a heartbeat may be late."""

READ_OVERLAP_MIN = 32
"""Reads that may begin a second round beside one in flight, if as many wait as that one carries: so many
clients keep this member, its peers and themselves busy at once, not one after the other. Fewer would cost
more in rounds."""

READ_RETRY_MS = 500
"""A read round that is not confirmed by then is begun anew (etcd's ReadIndex retry time)."""

READ_ROUNDS_MAX = 8
"""Read rounds in flight. One is usual; more only while a round is slow or lost."""

READS_WAITING_MAX = 65_536
"""Reads waiting for a round; beyond it they are refused."""

TIMER_RESOLUTION_S = 0.001
"""Loops count timers in whole milliseconds; uvloop makes a shorter one a busy wait."""

RESEND_MS = 1000
"""Forwarded batches not applied by then are resent; the leader knows them by their position."""


class StartCampaign(Enum):
    """Each comes with a pre-vote first, which disturbs no leader that a quorum hears."""

    AFTER_TIMEOUT = auto()
    """After an election timeout, as when a leader falls silent."""
    IF_ALONE = auto()
    """The only voter at once, others after an election timeout."""
    WHEN_CONNECTED = auto()
    """The only voter at once, others as soon as they are connected to a quorum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Everything adjustable about one member."""

    member_id: int
    """Not 0; never used by another member of the cluster, past ones included."""
    cluster_id: int
    """Members of another cluster are refused at the handshake."""
    heartbeat_interval_ms: int = 100
    """One tick (etcd's default). Lower costs CPU while idle; higher delays every timeout."""
    election_timeout_ms: int = 1000
    """Silence of the leader before an election, drawn anew from [1, 2) of this (etcd's default).
    Must exceed the worst pause of the loop and of a sync."""
    start_campaign: StartCampaign = StartCampaign.AFTER_TIMEOUT
    """When a member that starts and knows of no leader campaigns for the first time."""
    request_timeout_ms: int = 7000
    """When an unanswered proposal or read fails (etcd: 5 s plus two election timeouts)."""
    batch_operations_max: int = 256
    """Commands in one entry: about 5 ms of applying, so that entries never delay a heartbeat."""
    batch_bytes_max: int = 1 << 20
    """Bytes of commands in one entry (a larger single command travels alone): large messages block
    the loop while they are copied."""
    gather_ms: int = 10
    """How long commands may gather behind an earlier batch of this member that is not applied yet.
    One batch in flight gathers best; where a round trip exceeds this, several are in flight."""
    linger_ms: float = 1.0
    """After a batch is applied: how long to wait until as many commands as were unanswered then are there
    before a smaller batch goes. Clients that were answered together return one by one; without this
    the first of them takes off alone and the others wait for its whole round trip (measured in virtual
    time, 16 writers that return within 0.3 ms: 8 commands a batch and 2.1 ms, with it 16 and 1.2 ms).
    A client that is alone never waits."""
    batches_in_flight_max: int = 64
    """Bound on the batches forwarded and not applied."""
    bytes_in_flight_max: int = 16 << 20
    """Bound on the bytes forwarded and not applied; kept for resending them."""
    operations_waiting_max: int = 16_384
    """Commands waiting to be forwarded; beyond it, TooManyRequests."""
    bytes_waiting_max: int = 64 << 20
    """Bytes of the same."""
    checkpoint_bytes: int = 4 << 20
    """Applied log bytes at which a checkpoint begins."""
    checkpoint_ms: int = 1000
    """Age of the oldest change at which a checkpoint begins."""
    undurable_bytes_max: int = 64 << 20
    """Applied log bytes that the backend lacks; beyond it, proposals are refused. Bounds the
    replay at a restart."""
    compaction_entries: int = 1024
    """Entries worth a compaction of the log: a mark in it per thousand batches costs nothing, and at start
    so few are read again in milliseconds. Fewer are forgotten when they are large."""
    catchup_entries: int = 5000
    """Entries kept for a member that lags, before it needs a snapshot (etcd's default; entries
    here are batches). Fewer are kept when they are large."""
    backend_retry_ms: int = 5000
    """Wait after the backend met a full disk."""

    @property
    def election_ticks(self) -> int:
        return max(2, round(self.election_timeout_ms / self.heartbeat_interval_ms))

    def validate(self) -> None:
        """Raise ValueError naming the first field out of range."""
        for name in self.__slots__:
            if name != "start_campaign" and getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.election_timeout_ms < 5 * self.heartbeat_interval_ms:
            raise ValueError(
                f"election_timeout_ms ({self.election_timeout_ms}) must be at least five times "
                f"heartbeat_interval_ms ({self.heartbeat_interval_ms})"
            )

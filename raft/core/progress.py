"""One follower as its leader believes it to be, and the appends in flight to it.

PROBE: where the logs match is unknown; one append at a time. REPLICATE: known; appends are pipelined.
SNAPSHOT: entries it needs are compacted; no append is sent until a snapshot has arrived.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum


class ProgressState(Enum):
    """How a leader sends to one follower."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Inflights:
    """The unacknowledged append messages, bounded in messages and in bytes.

    Kept in order of index; an acknowledgement frees every message it covers.
    """

    __slots__ = ("_messages", "_messages_max", "_nbytes_max", "nbytes")

    def __init__(self, messages_max: int, nbytes_max: int) -> None:
        self._messages: deque[tuple[int, int]] = deque()
        """(last index, entry bytes) of each message, oldest first."""
        self._messages_max = messages_max
        self._nbytes_max = nbytes_max
        self.nbytes = 0
        """Sum of their bytes. Below the limit before each send, so at most limit + one message."""

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def full(self) -> bool:
        """Whether nothing more may be sent."""
        return len(self._messages) >= self._messages_max or self.nbytes >= self._nbytes_max

    @property
    def newest_nbytes(self) -> int:
        """Size of the newest message, which may exceed the limit; 0 when there is none."""
        return self._messages[-1][1] if self._messages else 0

    def add(self, last_index: int, nbytes: int) -> None:
        """Record a message whose last entry is `last_index`. Must not be called while `full`."""
        assert not self.full, "sent beyond the in-flight limit"
        assert not self._messages or self._messages[-1][0] < last_index, "in-flight messages out of order"
        self._messages.append((last_index, nbytes))
        self.nbytes += nbytes

    def free_to(self, index: int) -> None:
        """Forget every message whose last entry is at or below `index`."""
        messages = self._messages
        while messages and messages[0][0] <= index:
            self.nbytes -= messages.popleft()[1]

    def clear(self) -> None:
        self._messages.clear()
        self.nbytes = 0


@dataclass(slots=True, kw_only=True, eq=False)
class Progress:
    """One member, as the leader believes it to be.

    Belief, not fact: the member may be ahead of this record, never behind it, as long as its disk
    keeps what it acknowledged. Meaningful on a leader only; rebuilt at each election.
    """

    inflights: Inflights
    """Messages sent and unacknowledged; empty unless in REPLICATE."""

    match: int = 0
    """Highest index known durable on the member. Never decreases within a leadership, except when the
    member is reported restarted. Invariant: match < next."""

    next: int = 1
    """Index of the next entry to send; in REPLICATE, entries in (match, next) are in flight.
    In SNAPSHOT it stands at pending_snapshot + 1."""

    sent_commit: int = 0
    """Highest commit index sent in an append: a commit broadcast is due only above it."""

    awaited_commit: int = 0
    """Clients of the member wait for the commit index to reach this: do not defer its commit broadcast."""

    state: ProgressState = ProgressState.PROBE

    pending_snapshot: int = 0
    """Index of the snapshot requested; not 0 exactly in SNAPSHOT."""

    recent_active: bool = False
    """Heard from since CheckQuorum last looked."""

    paused: bool = False
    """PROBE: the one message is in flight. REPLICATE: the in-flight limit is reached, and an empty append
    was sent on top. Any response clears it, a heartbeat's included, so that lost messages cannot stall it."""

    append_due: bool = False
    """Send an append with the next Ready even if it is empty: the leader needs its response."""

    nudge_due: bool = True
    """The next heartbeat response may trigger an append. Set at every heartbeat interval, so that the many
    responses to read rounds trigger at most one."""

    is_learner: bool = False

    def _enter(self, state: ProgressState) -> None:
        self.state = state
        self.paused = False
        self.pending_snapshot = 0
        self.inflights.clear()

    def become_probe(self) -> None:
        """Probe after the match index, or after the pending snapshot, which is assumed to have arrived."""
        pending_snapshot = self.pending_snapshot
        self._enter(ProgressState.PROBE)
        self.next = max(self.match, pending_snapshot) + 1
        self.sent_commit = min(self.sent_commit, self.next - 1)

    def become_replicate(self) -> None:
        self._enter(ProgressState.REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self, index: int) -> None:
        self._enter(ProgressState.SNAPSHOT)
        self.pending_snapshot = index
        self.next = index + 1
        self.sent_commit = index

    def forget(self, last_index: int) -> None:
        """Discard all knowledge of the member's log, and probe at `last_index`."""
        self._enter(ProgressState.PROBE)
        self.match = 0
        self.next = last_index + 1
        self.sent_commit = 0
        self.awaited_commit = 0

    def blocked(self) -> bool:
        """Whether no append may be sent now."""
        return self.paused or self.state is ProgressState.SNAPSHOT

    def sent(self, count: int, nbytes: int) -> None:
        """Record that an append with `count` entries of `nbytes` was sent; optimistic in REPLICATE."""
        if self.state is ProgressState.REPLICATE:
            if count:
                self.next += count
                self.inflights.add(self.next - 1, nbytes)
            self.paused = self.inflights.full
        elif self.state is ProgressState.PROBE:
            self.paused = True
        else:
            raise AssertionError("an append was sent to a member that awaits a snapshot")

    def acknowledge(self, index: int) -> bool:
        """Record an acknowledgement up to `index`; False when it is stale."""
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        self.paused = False
        return True

    def back_off(self, rejected: int, hint: int) -> bool:
        """Handle the rejection of an append whose previous index is `rejected`; False when it is stale.

        `hint` is the highest index at which the two logs may still agree.
        """
        if self.state is ProgressState.REPLICATE:
            if rejected <= self.match:
                return False
            self.next = self.match + 1
            self.sent_commit = min(self.sent_commit, self.next - 1)
            return True
        if self.state is ProgressState.SNAPSHOT or self.next - 1 != rejected:
            return False  # an answer to an earlier append or probe
        self.next = max(min(rejected, hint + 1), self.match + 1)
        self.sent_commit = min(self.sent_commit, self.next - 1)
        self.paused = False
        return True

    def can_raise_commit(self, commit: int) -> bool:
        """Whether sending `commit` could raise the member's commit index."""
        return commit > self.sent_commit and self.sent_commit < self.next - 1


def new_progress(*, next_index: int, is_learner: bool, messages_max: int, nbytes_max: int) -> Progress:
    """Progress of a member whose log is unknown: probe at `next_index`."""
    return Progress(inflights=Inflights(messages_max, nbytes_max), next=next_index, is_learner=is_learner)

"""ReadIndex: the leader confirms its leadership, then serves reads at its commit index (thesis 6.4).

A round is one broadcast of heartbeats carrying the round's id. Responses from a quorum confirm that no newer
leader was elected before the round began, so the commit index taken at its start covers every write
acknowledged before. Hence the one rule: *a read joins only a round that begins after the read
arrived.* Ids come from a counter and are never reused, not even by a retry, so a late response to an old
round cannot confirm a newer one (etcd #20418). A response to round n confirms all rounds up to n, since
its heartbeat was sent after they began.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from raft.core.quorum import joint_committed
from raft.core.types import ConfState

ROUNDS_OPEN_MAX = 4
"""Rounds that may overlap: enough that a read need not first wait for the round before it to end,
few enough that the reads of a busy leader share rounds instead of each sending its own heartbeats."""


class PendingRead(NamedTuple):
    member: int
    """The member that forwarded the read; the leader itself for its own clients."""
    context: int
    """That member's own id for it."""


class Round(NamedTuple):
    id: int
    read_index: int
    """The leader's commit index when the round began."""
    reads: Sequence[PendingRead]


class ReadRounds:
    """A leader's reads, waiting for a round or in one. Empty in every other role."""

    __slots__ = ("_acknowledged", "last_id", "pending", "rounds", "waiting")

    def __init__(self) -> None:
        self.waiting: list[PendingRead] = []
        """Arrived, in no round yet."""
        self.rounds: deque[Round] = deque()
        """Begun, unconfirmed, in ascending order of id."""
        self.last_id = 0
        """Id of the newest round. Never decreases until the process restarts, which begins at 0 again; but a
        restarted member never leads the same term again, and responses carry the term."""
        self._acknowledged: dict[int, int] = {}
        """Highest round each member answered, in this leadership."""
        self.pending = 0
        """Reads in `waiting` and `rounds` together."""

    def add(self, read: PendingRead) -> None:
        self.waiting.append(read)
        self.pending += 1

    def can_begin(self) -> bool:
        return bool(self.waiting) and len(self.rounds) < ROUNDS_OPEN_MAX

    def begin(self, read_index: int) -> int:
        """Open a round with every waiting read (none: a retry for the rounds already open); its id."""
        self.last_id += 1
        if self.waiting:
            self.rounds.append(Round(self.last_id, read_index, self.waiting))
            self.waiting = []
        return self.last_id

    def acknowledge(self, member: int, round_id: int) -> None:
        if round_id > self._acknowledged.get(member, 0):
            self._acknowledged[member] = round_id

    def take_confirmed(self, conf: ConfState, member_id: int) -> list[Round]:
        """Rounds that a quorum has answered, self included, oldest first."""
        if not self.rounds:
            return []
        self._acknowledged[member_id] = self.last_id
        confirmed = joint_committed(conf.voters, conf.voters_outgoing, self._acknowledged)
        done = []
        while self.rounds and self.rounds[0].id <= confirmed:
            finished = self.rounds.popleft()
            self.pending -= len(finished.reads)
            done.append(finished)
        return done

    def drop_all(self) -> list[PendingRead]:
        """Drop every pending read (step-down); the caller notifies the members of the reads returned."""
        dropped = [read for opened in self.rounds for read in opened.reads]
        dropped += self.waiting
        self.rounds.clear()
        self.waiting = []
        self._acknowledged.clear()
        self.pending = 0
        return dropped

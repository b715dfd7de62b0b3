"""Commands proposed on this member: where a put waits until it is forwarded, and until it is applied.

A command is *waiting* until it is forwarded as part of a batch, to our own core when we lead, else to the
leader of the current term. From then on it is *in flight* until its outcome is known:

* its batch is applied here: it completes with its outcome;
* an entry of a higher term is applied here first: the batch is certainly not in the log and never will be,
  because terms never decrease along a log and a batch is appended in its own term only. It waits again, in
  its old position;
* the leader refused it (`ForwardRefused`): certainly never appended, it waits again;
* its deadline passes: unknown to its caller; the batch stays in flight, its outcome is still to come;
* a snapshot supersedes the log it may be in: unknown to its callers; the batch is kept without callers
  until a later one shows where in the order it went.

Nothing else ever puts a command back, so no command is applied twice.

Order. Batches in flight all belong to one forwarding *session*: one term, one leader, one incarnation of
it. A new session opens only when nothing is in flight, so no later command goes ahead of one that is still
undecided. Positions in a session count from 1 without gaps and the leader takes them in order, so our
batches are applied in the order in which they were forwarded.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

from raft.node.envelope import encode_envelope
from raft.node.node_config import NodeConfig
from raft.node.node_errors import NodeError
from raft.node.request_outcome import OnResult, Session, fail, superseded, timed_out
from raft.transport.transport_protocol import ForwardedBatch

logger = logging.getLogger(__name__)

Operation = tuple[bytes, OnResult, float]
"""A command, its callback, and the loop time of its deadline. A plain tuple: one per request."""


class Batch:
    """Commands forwarded together, as one entry."""

    __slots__ = ("counter", "data", "expired", "operations", "position")

    def __init__(self, counter: int, position: int, data: bytes, operations: list[Operation]) -> None:
        self.counter = counter
        """Identifies the batch in its envelope; never used twice by this incarnation."""
        self.position = position
        """From 1 in its session."""
        self.data = data
        self.operations = operations
        self.expired = 0
        """How many operations, from the first, have failed because their deadline passed."""


class ProposalQueue:
    """Everything this incarnation has proposed and not yet completed. Rules: the head of this file."""

    def __init__(self, config: NodeConfig, incarnation: int) -> None:
        self._config = config
        self._incarnation = incarnation
        self.waiting: deque[Operation] = deque()
        """Not forwarded, or certainly not applied. Oldest first, so deadlines never decrease.
        Read-only outside."""
        self._waiting_bytes = 0
        self._flight: deque[Batch] = deque()
        """Forwarded in the present session and undecided, in order of position."""
        self._flight_bytes = 0
        self._superseded: deque[Batch] = deque()
        """Batches of the session, before those in flight, that a snapshot may contain or not; their callers
        were answered so. They are resent with the rest, because the leader takes a session in order, until a
        later batch is applied here. At most what one snapshot found in flight, times the snapshots in a row
        between which no batch of ours was applied."""
        self._counter = 0
        """Batches made so far."""
        self._session: Session = (0, 0, 0)
        """Of everything in flight."""
        self._session_closed = False
        """The leader refused a batch: forward nothing more in this session."""
        self._position = 0
        """Positions given out in this session."""
        self._expected = 0
        """Commands unanswered when the last batch was applied: as many clients may want to go together."""
        self._expected_until_s = 0.0
        """Until when it is worth waiting for them."""
        self.forwarded_s = 0.0
        """Loop time of the latest batch or resend; paces gathering and resending."""
        self.batches = 0
        self.operations = 0

    # -- gathering

    def offer(self, command: bytes, on_result: OnResult, deadline_s: float) -> bool:
        """Queue a command; False when the queue is full."""
        if (
            len(self.waiting) >= self._config.operations_waiting_max
            or self._waiting_bytes + len(command) > self._config.bytes_waiting_max
        ):
            return False
        self.waiting.append((command, on_result, deadline_s))
        self._waiting_bytes += len(command)
        return True

    @property
    def flight_count(self) -> int:
        return sum(len(batch.operations) - batch.expired for batch in self._flight)

    @property
    def marker_due(self) -> bool:
        """Whether to forward an empty batch: once it is applied, those before it are not resent any more."""
        return bool(self._superseded) and not self._flight and not self.waiting

    # -- forwarding

    def open_session(self, term: int, leader: int, leader_incarnation: int) -> bool:
        """Whether a batch may be forwarded to this leader now, as far as order and outcomes go."""
        session = (term, leader, leader_incarnation)
        if session == self._session:
            return not self._session_closed
        if self._flight or self._superseded or term < self._session[0]:
            return False
        if term == self._session[0] and self._position:
            return False  # another incarnation got positions of this term: wait for the next term
        self._session = session
        self._session_closed = False
        self._position = 0
        return True

    def gather_wait_s(self, now_s: float) -> float:
        """How long the waiting commands should still gather; 0.0 when a batch should go now."""
        if not self._flight:
            if len(self.waiting) >= self._expected:
                return 0.0
            return max(0.0, self._expected_until_s - now_s)
        if (
            len(self.waiting) >= self._config.batch_operations_max
            or self._waiting_bytes >= self._config.batch_bytes_max
        ):
            return 0.0
        return max(0.0, self.forwarded_s + self._config.gather_ms / 1000 - now_s)

    def take_batch(self, now_s: float) -> Batch | None:
        """Put the next batch of the open session in flight; None when nothing waits or too much is."""
        config = self._config
        if (
            not (self.waiting or self.marker_due)
            or len(self._flight) >= config.batches_in_flight_max
            or self._flight_bytes >= config.bytes_in_flight_max
        ):
            return None
        operations: list[Operation] = []
        nbytes = 0
        while self.waiting and len(operations) < config.batch_operations_max:
            size = len(self.waiting[0][0])
            if operations and nbytes + size > config.batch_bytes_max:
                break
            nbytes += size
            operations.append(self.waiting.popleft())
        self._waiting_bytes -= nbytes
        self._counter += 1
        self._position += 1
        data = encode_envelope(
            config.member_id, self._incarnation, self._counter, [op[0] for op in operations]
        )
        batch = Batch(self._counter, self._position, data, operations)
        self._flight.append(batch)
        self._flight_bytes += len(data)
        self.forwarded_s = now_s
        self.batches += 1
        self.operations += len(operations)
        return batch

    def take_back(self, batch: Batch) -> None:
        """Undo the latest `take_batch`: the batch left neither for the core nor for the network."""
        assert self._flight
        assert self._flight[-1] is batch
        self._position -= 1
        self.batches -= 1
        self.operations -= len(batch.operations)
        self._put_back(self._flight.pop())

    def unapplied(
        self, term: int, leader: int, leader_incarnation: int, now_s: float
    ) -> Sequence[ForwardedBatch]:
        """Everything in flight in this very session, in order, to be resent."""
        if (term, leader, leader_incarnation) != self._session or self._session_closed:
            return ()
        self.forwarded_s = now_s
        return [
            ForwardedBatch(term, self._incarnation, batch.position, batch.data)
            for batch in (*self._superseded, *self._flight)
        ]

    # -- outcomes

    def applied(self, counter: int, now_s: float) -> Batch | None:
        """Our batch `counter` is being applied: return it to be completed, None when it has no callers."""
        while self._superseded and self._superseded[0].counter <= counter:
            self._superseded.popleft()
        if not self._flight or self._flight[0].counter != counter:
            return None
        batch = self._flight.popleft()
        self._flight_bytes -= len(batch.data)
        self._expected = len(batch.operations) + len(self.waiting)
        self._expected_until_s = now_s + self._config.linger_ms / 1000
        return batch

    def term_applied(self, term: int) -> None:
        """The first entry of `term` is applied: batches of lower terms never will be."""
        if self._session[0] < term:
            self._superseded.clear()
            while self._flight:
                self._put_back(self._flight.pop())

    def superseded(self, term: int) -> None:
        """The state is now that of a snapshot up to an entry of `term`: it may contain what is in flight."""
        for batch in self._flight:
            self._fail_batch(batch, superseded())
            batch.expired = len(batch.operations)
        if self._session[0] < term:
            self._superseded.clear()
        else:
            self._superseded.extend(self._flight)
        self._flight.clear()
        self._flight_bytes = 0

    def refused(self, term: int, leader: int, leader_incarnation: int, position: int) -> None:
        """That leader never appended the batches from `position` on and never will in that term."""
        if (term, leader, leader_incarnation) != self._session:
            return
        self._session_closed = True
        while self._superseded and self._superseded[-1].position >= position:
            self._superseded.pop()
        while self._flight and self._flight[-1].position >= position:
            self._put_back(self._flight.pop())

    def expire(self, now_s: float, leader: int) -> None:
        """Fail every command whose deadline has passed. Cheap when there is none."""
        while self.waiting and self.waiting[0][2] <= now_s:
            command, on_result, _ = self.waiting.popleft()
            self._waiting_bytes -= len(command)
            fail(on_result, timed_out(forwarded=False, leader=leader))
        for batch in self._flight:
            operations = batch.operations
            while batch.expired < len(operations) and operations[batch.expired][2] <= now_s:
                on_result = operations[batch.expired][1]
                batch.expired += 1
                fail(on_result, timed_out(forwarded=True, leader=leader))

    def fail_all(self, waiting: NodeError, flight: NodeError) -> None:
        """The member stops: complete everything."""
        while self._flight:
            self._fail_batch(self._flight.popleft(), flight)
        self._flight_bytes = 0
        self._superseded.clear()
        while self.waiting:
            fail(self.waiting.popleft()[1], waiting)
        self._waiting_bytes = 0

    def _put_back(self, batch: Batch) -> None:
        """The newest batch in flight, already removed from there, waits again at the head of the queue."""
        self._flight_bytes -= len(batch.data)
        for index in range(len(batch.operations) - 1, batch.expired - 1, -1):
            operation = batch.operations[index]
            self.waiting.appendleft(operation)
            self._waiting_bytes += len(operation[0])

    @staticmethod
    def _fail_batch(batch: Batch, error: NodeError) -> None:
        for _, on_result, _ in batch.operations[batch.expired :]:
            fail(on_result, error)


def complete_batch(batch: Batch, outcomes: Sequence[object]) -> None:
    """Call back every caller of an applied batch with its outcome."""
    operations = batch.operations
    assert len(outcomes) == len(operations), "the machine answers every command of a wanted batch"
    start = batch.expired
    for index in range(start, len(operations)):
        try:
            operations[index][1](outcomes[index], None)
        except Exception:  # a caller's bug must not stop the member or starve its neighbours
            logger.exception("the callback of a proposal raised")

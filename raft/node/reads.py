"""Linearizable reads by ReadIndex: each waits for a confirmation round that began after it arrived.

All reads waiting in a loop iteration share one round, identified by a context that is never used again,
also not by a later incarnation of this member. While a round is in flight new reads gather for the next
one. A confirmed round gives an index; its reads complete once that index is applied here. A round that is
lost (dropped by the core, silent for READ_RETRY_MS, or of a leader that was replaced) gives its reads back,
to begin anew under a new context.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

from raft.node.node_config import READ_OVERLAP_MIN, READ_RETRY_MS, READ_ROUNDS_MAX, READS_WAITING_MAX
from raft.node.node_errors import NodeError, ReadTimedOut

logger = logging.getLogger(__name__)

OnRead = Callable[[NodeError | None], None]
"""Receives None when the read may be served from the local state, exactly once, in the loop."""

Read = tuple[OnRead, float]
"""The callback, and the loop time of the deadline."""

_CONTEXT_COUNTER_BITS = 40
_CONTEXT_INCARNATION_BITS = 23
"""Together 63 bits: a context fits a signed 64-bit number. 40 bits last 30 years at 1,000 rounds/s;
the incarnation's bits keep an answer to an earlier incarnation from confirming a read of this one."""


class Reads:
    """Every read of this incarnation that is not complete."""

    def __init__(self, incarnation: int, *, gather_s: float, linger_s: float) -> None:
        self._gather_s = gather_s
        """How long reads may gather behind a round in flight."""
        self._linger_s = linger_s
        """How long to wait for clients that were answered together (NodeConfig.linger_ms)."""
        self._expected = 0
        """Reads unanswered when the last round was confirmed: as many may want to go together."""
        self._expected_until_s = 0.0
        """Until when it is worth waiting for them."""
        self._context_base = (incarnation & ((1 << _CONTEXT_INCARNATION_BITS) - 1)) << _CONTEXT_COUNTER_BITS
        self.waiting: deque[Read] = deque()
        """Read-only outside. Not in a round. Oldest first."""
        self._rounds: dict[int, tuple[float, list[Read]]] = {}
        """Context to (loop time of its start, reads), in order of start."""
        self._confirmed: list[tuple[int, list[Read]]] = []
        """(index, reads) whose index is not applied here yet. Short: one per round in flight."""
        self._held_until_s = 0.0
        """No round before this time: the core has just dropped one, and would drop the next as well."""
        self.rounds = 0
        self.reads = 0

    def offer(self, on_result: OnRead, deadline_s: float) -> bool:
        """Queue a read; False when the queue is full."""
        if len(self.waiting) >= READS_WAITING_MAX:
            return False
        self.waiting.append((on_result, deadline_s))
        return True

    def begin_wait_s(self, now_s: float) -> float | None:
        """How long until the next round may begin; 0.0 for now, None when there is nothing to begin."""
        if not self.waiting:
            return None
        if now_s < self._held_until_s:
            return self._held_until_s - now_s
        if not self._rounds:
            if len(self.waiting) >= self._expected:
                return 0.0
            return max(0.0, self._expected_until_s - now_s)
        if len(self._rounds) >= READ_ROUNDS_MAX:
            return None
        newest_s, newest = next(reversed(self._rounds.values()))
        if len(self.waiting) >= max(READ_OVERLAP_MIN, len(newest)):
            return 0.0
        return max(0.0, newest_s + self._gather_s - now_s)

    def begin(self, now_s: float) -> int:
        """Put everything that waits into a new round and return its context."""
        self.rounds += 1
        self.reads += len(self.waiting)
        context = self._context_base + self.rounds
        self._rounds[context] = (now_s, list(self.waiting))
        self.waiting.clear()
        return context

    def confirmed(self, context: int, index: int, applied: int, now_s: float) -> None:
        """The round is confirmed at `index`. A context given back before is ignored."""
        found = self._rounds.pop(context, None)
        if found is None:
            return
        self._expected = len(found[1]) + len(self.waiting)
        self._expected_until_s = now_s + self._linger_s
        if index <= applied:
            for on_result, _ in found[1]:
                _complete(on_result, None)
        else:
            self._confirmed.append((index, found[1]))

    def applied(self, applied: int) -> None:
        if not self._confirmed:
            return
        ready = [reads for index, reads in self._confirmed if index <= applied]
        if ready:
            self._confirmed = [item for item in self._confirmed if item[0] > applied]
            for reads in ready:
                for on_result, _ in reads:
                    _complete(on_result, None)

    def dropped(self, contexts: Sequence[int], now_s: float) -> None:
        """The core will never answer these; their reads try again after a while or under a new leader."""
        self._give_back([context for context in contexts if context in self._rounds])
        self._held_until_s = now_s + READ_RETRY_MS / 1000

    def restart(self) -> None:
        """Another leader, or a new stream to it: whatever is in flight may be lost."""
        self._give_back(list(self._rounds))
        self._held_until_s = 0.0

    def sweep(self, now_s: float) -> None:
        """Give back silent rounds and fail every read whose deadline has passed."""
        silent = [
            context
            for context, (begun_s, _) in self._rounds.items()
            if begun_s + READ_RETRY_MS / 1000 <= now_s
        ]
        if silent:
            self._give_back(silent)
        while self.waiting and self.waiting[0][1] <= now_s:
            _complete(self.waiting.popleft()[0], ReadTimedOut("request timed out"))
        for context, (begun_s, reads) in list(self._rounds.items()):
            if reads and reads[0][1] <= now_s:
                self._rounds[context] = (begun_s, _expire(reads, now_s))
        self._confirmed = [(index, _expire(reads, now_s)) for index, reads in self._confirmed]

    def fail_all(self, error: NodeError) -> None:
        """The member stops: complete everything."""
        self.restart()
        reads = [read for _, confirmed in self._confirmed for read in confirmed]
        reads.extend(self.waiting)
        self._confirmed.clear()
        self.waiting.clear()
        for on_result, _ in reads:
            _complete(on_result, error)

    def _give_back(self, contexts: Sequence[int]) -> None:
        """Back to the head of the queue, oldest first, so that deadlines stay in order."""
        for context in reversed(contexts):
            self.waiting.extendleft(reversed(self._rounds.pop(context)[1]))


def _expire(reads: list[Read], now_s: float) -> list[Read]:
    """Fail the reads whose deadline has passed and return the others."""
    kept = [read for read in reads if read[1] > now_s]
    if len(kept) < len(reads):
        for on_result, deadline_s in reads:
            if deadline_s <= now_s:
                _complete(on_result, ReadTimedOut("request timed out"))
    return kept


def _complete(on_result: OnRead, error: NodeError | None) -> None:
    try:
        on_result(error)
    except Exception:  # a caller's bug must not stop the member or starve its neighbours
        logger.exception("the callback of a read raised")

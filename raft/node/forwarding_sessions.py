"""The leader's side of forwarded batches: each taken once, in order, in one term only.

The origin numbers its batches from 1 within a term, and resends what it has not seen applied whenever its
stream breaks or silence lasts. So the leader takes position `next` only: a lower one was taken before, a
higher one follows a gap that the origin will fill.

A batch meant for a term that this member does not lead is refused, and with it everything from there on:
this member will never lead that term again, so a refusal stays true. A refusal never covers what was
appended. Of a term led before the latest one nothing is remembered and nothing is refused; the origin
learns the outcome when it applies a higher term. A refusal is valid for this incarnation only, which is
why the origin checks the incarnation it comes from.
"""

from __future__ import annotations

from collections import deque

from raft.transport.transport_protocol import ForwardedBatch, ForwardRefused

SESSIONS_MAX = 1024
"""Origins remembered in one term: members times their restarts in it. Of the incarnations that are not the
latest of their member, the one silent for longest is forgotten first: so many restarts later none of its
batches is under way. The latest are never forgotten, however long ago they sent: their next batch would look
like one behind a gap, and their first like one never taken."""


class _Session:
    """What one incarnation of one origin has sent for the term that is led."""

    __slots__ = ("incarnation", "member_id", "next", "pending", "taken")

    def __init__(self, member_id: int, incarnation: int) -> None:
        self.member_id = member_id
        self.incarnation = incarnation
        self.next = 1
        """The position expected next. Everything below is in the log, or in `pending`."""
        self.pending: deque[ForwardedBatch] = deque()
        """Taken in order, and not yet appended. The origin bounds what it has in flight."""
        self.taken = 0
        """How many batches of all origins had been taken with its latest one; 0 before its first."""


class ForwardingSessions:
    """All origins' sessions in the latest term that this incarnation has led."""

    def __init__(self) -> None:
        self._term = 0
        self._sessions: dict[tuple[int, int], _Session] = {}
        """By (member, incarnation)."""
        self._taken = 0
        """Batches taken since start."""
        self.waiting: deque[tuple[_Session, ForwardedBatch]] = deque()
        """Read-only outside. Every pending batch, in order of arrival; agrees with the sessions' queues."""

    def lead(self, term: int) -> None:
        if term != self._term:
            self._term = term
            self._sessions.clear()
            self.waiting.clear()

    def on_batch(self, member_id: int, batch: ForwardedBatch, leading_term: int) -> ForwardRefused | None:
        """Take a batch, or return from where on this origin is refused. `leading_term` is 0 for none."""
        key = (member_id, batch.incarnation)
        session = self._sessions.get(key)
        if leading_term != batch.term:
            if batch.term < self._term:
                return None
            refused_from = session.next if session is not None and batch.term == self._term else 1
            return ForwardRefused(batch.term, batch.incarnation, refused_from)
        assert leading_term == self._term, "lead() comes before the first batch of a term"
        if session is None:
            if len(self._sessions) >= SESSIONS_MAX:
                self._forget_one()
            session = self._sessions[key] = _Session(member_id, batch.incarnation)
        if batch.counter == session.next:
            session.next += 1
            self._taken += 1
            session.taken = self._taken
            session.pending.append(batch)
            self.waiting.append((session, batch))
        return None

    def _forget_one(self) -> None:
        """Free one session, unless each is the latest incarnation of its member."""
        by_use = sorted(self._sessions.values(), key=lambda session: session.taken)
        latest = {session.member_id: session for session in by_use}
        for session in by_use:
            if session is not latest[session.member_id] and not session.pending:
                del self._sessions[session.member_id, session.incarnation]
                return

    def pending(self) -> list[bytes]:
        """Entry data of every batch to append, in order."""
        return [batch.data for _, batch in self.waiting]

    def appended(self) -> list[int]:
        """Everything that `pending` returned is in the core's log. Returns the members it came from."""
        origins = [session.member_id for session, _ in self.waiting]
        for session, _ in self.waiting:
            session.pending.clear()
        self.waiting.clear()
        return origins

    def step_down(self) -> list[tuple[int, ForwardRefused]]:
        """Leadership of the term is over: refuse what was not appended. Returns (member, refusal)."""
        refusals = []
        for session in self._sessions.values():
            if session.pending:
                session.next = session.pending[0].counter
                session.pending.clear()
                refusals.append(
                    (session.member_id, ForwardRefused(self._term, session.incarnation, session.next))
                )
        self.waiting.clear()
        return refusals

"""The leader's side of forwarded batches: each taken once, in order, in one term only.

The origin numbers its batches from 1 within a term, and sends again what it has not seen applied
whenever its stream breaks or silence lasts. So the leader takes position `next` only: a lower one
was taken before, a higher one follows a gap that the origin will fill.

A batch meant for a term that this member does not lead is refused, and with it everything from
there on: this member will never lead that term again, so a refusal cannot become untrue. What was
appended is never named in a refusal. About a term led before the latest one nothing is remembered
and nothing is said; the origin learns the fate when it applies a higher term. A refusal speaks for
this process only, which is why the origin checks the boot id it comes from.
"""

from __future__ import annotations

from collections import deque

from raft.transport.transport_protocol import ForwardedBatch, ForwardRefused

WINDOWS_MAX = 1024
"""Origins remembered in one term: members times their restarts in it. Of the processes that are not the
latest of their member, the one silent for longest is forgotten first: so many restarts later nothing of it
is under way. The latest are never forgotten, however long ago they sent: their next batch would look like
one behind a gap, and their first like one never taken."""


class _Window:
    """What one process of one origin has sent for the term that is led."""

    __slots__ = ("incarnation", "member_id", "next", "pending", "taken")

    def __init__(self, member_id: int, incarnation: int) -> None:
        self.member_id = member_id
        self.incarnation = incarnation
        self.next = 1
        """The position expected next. Everything below is in the log, or in `pending`."""
        self.pending: deque[ForwardedBatch] = deque()
        """Taken in order, and not yet appended. Bounded by the origin's own window."""
        self.taken = 0
        """How many batches of all origins had been taken with its latest one; 0 before its first."""


class Forwarding:
    """All origins' windows of the latest term this process has led."""

    def __init__(self) -> None:
        self._term = 0
        self._windows: dict[tuple[int, int], _Window] = {}
        self._taken = 0
        """Batches taken since start."""
        self.waiting: deque[tuple[_Window, ForwardedBatch]] = deque()
        """Read-only outside. Every pending batch, in order of arrival; agrees with the windows' queues."""

    def lead(self, term: int) -> None:
        """This member leads `term` now."""
        if term != self._term:
            self._term = term
            self._windows.clear()
            self.waiting.clear()

    def on_batch(self, member_id: int, batch: ForwardedBatch, leading_term: int) -> ForwardRefused | None:
        """Take a batch, or say from where on this origin is refused. `leading_term` is 0 for none."""
        key = (member_id, batch.incarnation)
        window = self._windows.get(key)
        if leading_term != batch.term:
            if batch.term < self._term:
                return None
            refused_from = window.next if window is not None and batch.term == self._term else 1
            return ForwardRefused(batch.term, batch.incarnation, refused_from)
        assert leading_term == self._term, "lead() comes before the first batch of a term"
        if window is None:
            if len(self._windows) >= WINDOWS_MAX:
                self._forget_one()
            window = self._windows[key] = _Window(member_id, batch.incarnation)
        if batch.counter == window.next:
            window.next += 1
            self._taken += 1
            window.taken = self._taken
            window.pending.append(batch)
            self.waiting.append((window, batch))
        return None

    def _forget_one(self) -> None:
        """Make room for another origin, unless every one is the latest process of its member."""
        by_use = sorted(self._windows.values(), key=lambda window: window.taken)
        latest = {window.member_id: window for window in by_use}
        for window in by_use:
            if window is not latest[window.member_id] and not window.pending:
                del self._windows[window.member_id, window.incarnation]
                return

    def pending(self) -> list[bytes]:
        """Entry data of every batch to append, in order."""
        return [batch.data for _, batch in self.waiting]

    def appended(self) -> list[int]:
        """Everything `pending` named is in the core's log. Returns the members it came from."""
        origins = [window.member_id for window, _ in self.waiting]
        for window, _ in self.waiting:
            window.pending.clear()
        self.waiting.clear()
        return origins

    def step_down(self) -> list[tuple[int, ForwardRefused]]:
        """Leadership of the term is over: refuse what was not appended. Returns (member, refusal)."""
        refusals = []
        for window in self._windows.values():
            if window.pending:
                window.next = window.pending[0].counter
                window.pending.clear()
                refusals.append(
                    (window.member_id, ForwardRefused(self._term, window.incarnation, window.next))
                )
        self.waiting.clear()
        return refusals

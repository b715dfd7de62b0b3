"""Keeps a member whose torn log tail was truncated from harm, until a leader has confirmed its log.

The truncated records may have been acknowledged: the log may lack an entry, or the hard state a vote, that
a quorum counted on. So this member acknowledges nothing and helps no candidate to win an election, while it
does take entries and refuse them. The first entries of a present leader that reach past the truncation, or
the leader's own first one, show that nothing committed is missing any more.

If a quorum is in that state no leader can arise that way. Then evidence stands in for the leader: once
*every* other voter has shown its last entry, by requesting a vote in its present incarnation, a candidate
whose log is at least as good as all of them lacks nothing that any of them holds, and may have this
member's help, or be this member.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

from raft.core.messages import Message, MessageType
from raft.core.ready import AppendWork
from raft.core.types import EntryId
from raft.storage.storage_protocol import Recovered

logger = logging.getLogger(__name__)


class TornTailGuard:
    """Filters what the core receives and sends while `active`."""

    def __init__(self, recovered: Recovered, voters: Iterable[int], released: Callable[[], None]) -> None:
        self.active = recovered.tail_truncated
        """Never becomes True again."""
        newest = recovered.entries[-1] if recovered.entries else recovered.snapshot
        self._last = EntryId(newest.term, newest.index)
        """Our last entry after the truncation."""
        self._id = recovered.identity.member_id
        self.voters_changed(voters)
        self._released = released
        """Records durably that the log is confirmed."""
        self._claims: dict[int, tuple[int, EntryId]] = {}
        """Voter to (its incarnation, its last entry), from its latest vote request."""

    def may_step(self, member_id: int, incarnation: int, message: Message) -> bool:
        """Whether the core may receive this message. Only called while active."""
        kind = message.type
        if kind is MessageType.VOTE or kind is MessageType.PRE_VOTE:
            claim = EntryId(message.log_term, message.index)
            self._claims[member_id] = (incarnation, claim)
            return self._best(claim)
        if kind is MessageType.VOTE_RESPONSE or kind is MessageType.PRE_VOTE_RESPONSE:
            return self._best(self._last)
        return kind is not MessageType.TIMEOUT_NOW

    def voters_changed(self, voters: Iterable[int]) -> None:
        """A membership change was applied."""
        self._others = tuple(voter for voter in voters if voter != self._id)

    def restarted(self, member_id: int, incarnation: int) -> None:
        """A voter has another incarnation, whose log may be shorter: its claim counts no more."""
        claim = self._claims.get(member_id)
        if claim is not None and claim[0] != incarnation:
            del self._claims[member_id]

    def on_durable(self, work: AppendWork) -> None:
        """Look for the confirmation in append work that is durable now."""
        for response in work.responses:
            if response.type is not MessageType.APPEND_RESPONSE or response.reject:
                continue
            own_entry = work.entries and self._last.term < work.entries[-1].term == response.term
            if own_entry or response.index > self._last.index:
                self.release()

    def release(self) -> None:
        if self.active:
            logger.info("the log is confirmed past its truncated tail")
            self.active = False
            self._claims.clear()
            self._released()

    @staticmethod
    def outgoing(message: Message) -> Message | None:
        """What may leave of a message while active: refusals yes, acknowledgements no."""
        if message.type is MessageType.HEARTBEAT_RESPONSE:
            # It keeps a paused leader sending, and confirms no read round.
            return replace(message, context=0)
        if message.type is MessageType.APPEND_RESPONSE and not message.reject:
            return None
        return message

    def _best(self, claim: EntryId) -> bool:
        claims = self._claims
        return (
            claim >= self._last
            and all(other in claims for other in self._others)
            and all(claim >= claims[other][1] for other in self._others)
        )

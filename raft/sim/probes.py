"""Named rare situations. A campaign that never reached one of them has not tested it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raft.core import DropReason, Message, MessageType, Role

if TYPE_CHECKING:
    from raft.sim.member import Member

_T = MessageType

PROBES = (
    "a follower's read is proved",
    "a candidate hears a leader of its term",
    "a crash amid applying",
    "a crash keeps what was never reported",
    "a crash loses a vote",
    "a crash loses entries",
    "a joint configuration is entered",
    "a joint configuration is left",
    "a leader crashes",
    "a leader hears of a later term",
    "a leader removes itself",
    "a leader steps down by itself",
    "a learner is promoted",
    "a log is compacted",
    "a membership change is refused",
    "a pause ends with queued messages",
    "a pre-vote is refused for its log",
    "a probe is rejected",
    "a read is dropped",
    "a snapshot arrives below the commit index",
    "a snapshot arrives",
    "a snapshot is installed",
    "a snapshot is lost",
    "a snapshot overtakes applying",
    "a suffix is overwritten",
    "a transfer asks a member to stand",
    "a vote answers an earlier term",
    "a vote is asked while a leader is known",
    "a write is known lost",
    *(
        f"a write is refused: {reason.value}"
        for reason in (DropReason.TRANSFERRING, DropReason.UNCOMMITTED_FULL)
    ),
    "a write's fate is unknown",
    "an acknowledgement of an earlier term arrives",
    "an append arrives below the commit index",
    "an append of an earlier term arrives",
    "one sync covers several works",
    "two members believe they lead",
)

UNREACHED: dict[str, str] = {}
"""Probes that a campaign need not reach, each with the reason."""


class Probes:
    """How often each was reached."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: dict[str, int] = dict.fromkeys(PROBES, 0)

    def hit(self, name: str, *, when: bool = True) -> None:
        if when:
            self.counts[name] += 1

    def watch_message(self, member: Member, m: Message) -> None:
        """What is remarkable about a message just before it is taken."""
        s = member.core._state
        kind = m.type
        if m.term < s.term:
            if kind is _T.APPEND_RESPONSE:
                self.hit("an acknowledgement of an earlier term arrives")
            elif kind is _T.VOTE_RESPONSE:
                self.hit("a vote answers an earlier term")
            elif kind is _T.APPEND:
                self.hit("an append of an earlier term arrives")
        elif kind is _T.APPEND:
            self.hit("an append arrives below the commit index", when=m.index < s.log.committed)
            if s.role is not Role.FOLLOWER:
                self.hit("a candidate hears a leader of its term", when=m.term == s.term)
        elif kind is _T.APPEND_RESPONSE:
            self.hit("a probe is rejected", when=m.reject)
            self.hit("a leader hears of a later term", when=m.term > s.term and s.role is Role.LEADER)
        elif kind is _T.VOTE:
            self.hit("a vote is asked while a leader is known", when=s.leader != 0)
        elif kind is _T.PRE_VOTE:
            behind = not s.log.is_current(m.index, m.log_term)
            self.hit("a pre-vote is refused for its log", when=behind)
        elif kind is _T.SNAPSHOT and m.snapshot is not None:
            self.hit("a snapshot arrives")
            self.hit("a snapshot arrives below the commit index", when=m.snapshot.index <= s.log.committed)
        elif kind is _T.TIMEOUT_NOW:
            self.hit("a transfer asks a member to stand")
        elif kind is _T.READ_INDEX_RESPONSE:
            self.hit("a follower's read is proved", when=not m.reject)

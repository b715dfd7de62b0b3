"""A pre-candidate or candidate: counts votes, and becomes a follower when a leader of its term appears."""

from __future__ import annotations

from raft.core.election import count_vote, learn_commit
from raft.core.follower import accept_append, accept_heartbeat, accept_snapshot
from raft.core.messages import Message, MessageType
from raft.core.state import State
from raft.core.transitions import become_follower
from raft.core.types import Role


def on_vote_response(s: State, m: Message) -> None:
    """Count a vote of the present round: a pre-candidate ignores votes, a candidate ignores pre-votes."""
    learn_commit(s, m)
    if s.role is Role.FOLLOWER:
        return
    wanted = MessageType.PRE_VOTE_RESPONSE if s.role is Role.PRE_CANDIDATE else MessageType.VOTE_RESPONSE
    if m.type is wanted:
        count_vote(s, m.from_, granted=not m.reject)


def on_append(s: State, m: Message) -> None:
    become_follower(s, s.term, m.from_)
    accept_append(s, m)


def on_heartbeat(s: State, m: Message) -> None:
    become_follower(s, s.term, m.from_)
    accept_heartbeat(s, m)


def on_snapshot(s: State, m: Message) -> None:
    become_follower(s, s.term, m.from_)
    accept_snapshot(s, m)

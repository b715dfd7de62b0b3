"""Elections: requesting, granting and counting votes (paper 5.2, 5.4.1; thesis 9.6 for the pre-vote)."""

from __future__ import annotations

from raft.core.messages import Message, MessageType
from raft.core.quorum import VoteResult
from raft.core.state import State
from raft.core.transitions import become_candidate, become_follower, become_leader, become_pre_candidate
from raft.core.types import NO_NODE, Role

TRANSFER = 1
"""`context` of a vote request in a leadership transfer: it overrides withheld votes."""


def campaign(s: State, *, transfer: bool = False) -> None:
    """Campaign if this member is promotable; with a pre-vote first, except in a leadership transfer."""
    if s.role is Role.LEADER or not s.is_promotable():
        return
    if s.log.has_conf_change(s.log.applied + 1, s.log.committed + 1):
        return  # the configuration it would campaign in is superseded
    if s.config.pre_vote and not transfer:
        _start_pre_vote(s)
    else:
        _start_vote(s, TRANSFER if transfer else 0)


def _start_pre_vote(s: State) -> None:
    become_pre_candidate(s)
    _request_votes(s, MessageType.PRE_VOTE, s.term + 1, 0)
    # A pre-vote binds no one, so unlike a vote it need not wait for the disk.
    count_vote(s, s.id, granted=True)


def _start_vote(s: State, context: int) -> None:
    become_candidate(s)
    _request_votes(s, MessageType.VOTE, s.term, context)


def _request_votes(s: State, message_type: MessageType, term: int, context: int) -> None:
    for member in s.tracker.voters():
        if member != s.id:
            request = s.send(message_type, member)
            request.term = term
            request.index, request.log_term = s.log.last_index, s.log.last_term
            request.context = context


def count_vote(s: State, member: int, *, granted: bool) -> None:
    """Count one vote, and act once the election is won or lost."""
    result = s.tracker.record_vote(member, granted)
    if result is VoteResult.WON:
        if s.role is Role.PRE_CANDIDATE:
            _start_vote(s, 0)
        else:
            become_leader(s)
    elif result is VoteResult.LOST:
        become_follower(s, s.term, NO_NODE)


def count_own_vote(s: State) -> None:
    """The candidate's own vote is durable."""
    if s.id not in s.tracker.votes:
        count_vote(s, s.id, granted=True)


def on_vote_request(s: State, m: Message) -> None:
    """Grant or reject a vote or pre-vote. Learners respond too: the candidate may know of a promotion
    that has not reached this member. Both responses wait for the disk."""
    is_pre_vote = m.type is MessageType.PRE_VOTE
    may_grant = (
        s.vote == m.from_  # a repeated request gets the same response
        or (s.vote == NO_NODE and s.leader == NO_NODE)
        or (is_pre_vote and m.term > s.term)
    )
    granted = may_grant and s.log.is_current(m.index, m.log_term)
    # A granted pre-vote carries the term of the request, a rejected one the present term.
    _respond(s, m, m.term if granted else s.term, granted=granted)
    if granted and not is_pre_vote:
        s.election_elapsed = 0
        s.vote = m.from_


def refuse(s: State, m: Message) -> None:
    """Reject a vote or pre-vote request of an earlier term, so that its sender learns the present one."""
    _respond(s, m, s.term, granted=False)


def _respond(s: State, m: Message, term: int, *, granted: bool) -> None:
    is_pre_vote = m.type is MessageType.PRE_VOTE
    response_type = MessageType.PRE_VOTE_RESPONSE if is_pre_vote else MessageType.VOTE_RESPONSE
    committed = min(s.log.committed, m.index)  # of an entry the candidate can hold
    s.send_after_append(
        Message(
            response_type,
            m.from_,
            s.id,
            term,
            s.log.term_at(committed) or 0,
            commit=committed,
            reject=not granted,
        )
    )


def learn_commit(s: State, m: Message) -> None:
    """Take the sender's commit index from a vote response, if the same entry is held here.

    Membership changes take effect when applied, so the only member that may lead in the new
    configuration can be one that does not yet know it committed. It campaigns in the old configuration,
    where a removed member with a longer log rejects it for ever. The rejection carries the commit index
    that it lacks (etcd #12359; raft-rs does the same).
    """
    log = s.log
    if not m.log_term or not log.matches(m.commit, m.log_term) or not log.commit_to(m.commit):
        return
    if s.role is not Role.FOLLOWER and log.has_conf_change(log.applied + 1, log.committed + 1):
        become_follower(s, s.term, NO_NODE)  # it campaigned in a configuration now superseded


def is_withheld(s: State, m: Message) -> bool:
    """Whether to ignore this vote request because the leader was heard from within an election timeout."""
    return (
        s.config.withhold_votes
        and m.context != TRANSFER
        and s.leader != NO_NODE
        and s.election_elapsed < s.config.election_ticks
    )

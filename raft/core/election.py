"""Elections: asking, granting, counting (paper 5.2, 5.4.1; thesis 9.6 for the pre-vote)."""

from __future__ import annotations

from raft.core.messages import Message, MessageType
from raft.core.quorum import VoteResult
from raft.core.state import State
from raft.core.transitions import become_candidate, become_follower, become_leader, become_pre_candidate
from raft.core.types import NO_NODE, Role

TRANSFER = 1
"""`context` of a vote request in a leadership transfer: it overrides withheld votes."""


def campaign(s: State, *, transfer: bool = False) -> None:
    """Stand for election if this member may; by pre-vote first, unless the leader itself asked for it."""
    if s.role is Role.LEADER or not s.is_promotable():
        return
    if s.log.has_conf_change(s.log.applied + 1, s.log.committed + 1):
        return  # would campaign in a configuration already superseded
    if s.config.pre_vote and not transfer:
        _canvass(s)
    else:
        _stand(s, TRANSFER if transfer else 0)


def _canvass(s: State) -> None:
    become_pre_candidate(s)
    _ask(s, MessageType.PRE_VOTE, s.term + 1, 0)
    # Not binding, so unlike a vote it need not wait for the disk.
    count_vote(s, s.id, granted=True)


def _stand(s: State, context: int) -> None:
    become_candidate(s)
    _ask(s, MessageType.VOTE, s.term, context)


def _ask(s: State, message_type: MessageType, term: int, context: int) -> None:
    for member in s.tracker.voters():
        if member != s.id:
            request = s.send(message_type, member)
            request.term = term
            request.index, request.log_term = s.log.last_index, s.log.last_term
            request.context = context


def count_vote(s: State, member: int, *, granted: bool) -> None:
    """Count one answer, and act once the election is decided."""
    result = s.tracker.record_vote(member, granted)
    if result is VoteResult.WON:
        if s.role is Role.PRE_CANDIDATE:
            _stand(s, 0)
        else:
            become_leader(s)
    elif result is VoteResult.LOST:
        become_follower(s, s.term, NO_NODE)


def count_own_vote(s: State) -> None:
    """The candidate's own vote is durable."""
    if s.id not in s.tracker.votes:
        count_vote(s, s.id, granted=True)


def on_vote_request(s: State, m: Message) -> None:
    """Grant or refuse a vote or pre-vote. Learners answer too: the candidate may know of a promotion
    that has not reached this member. Both answers wait for the disk."""
    is_pre_vote = m.type is MessageType.PRE_VOTE
    may_grant = (
        s.vote == m.from_  # again the same answer to a repeated request
        or (s.vote == NO_NODE and s.leader == NO_NODE)
        or (is_pre_vote and m.term > s.term)
    )
    granted = may_grant and s.log.is_current(m.index, m.log_term)
    # A granted pre-vote names the term asked for, a refused one the present term.
    _answer(s, m, m.term if granted else s.term, granted=granted)
    if granted and not is_pre_vote:
        s.election_elapsed = 0
        s.vote = m.from_


def refuse(s: State, m: Message) -> None:
    """Answer a vote or pre-vote asked in an earlier term, so that its sender learns the present one."""
    _answer(s, m, s.term, granted=False)


def _answer(s: State, m: Message, term: int, *, granted: bool) -> None:
    is_pre_vote = m.type is MessageType.PRE_VOTE
    answer_type = MessageType.PRE_VOTE_RESPONSE if is_pre_vote else MessageType.VOTE_RESPONSE
    committed = min(s.log.committed, m.index)  # of an entry the asking member can hold
    s.respond_after_append(
        Message(
            answer_type,
            m.from_,
            s.id,
            term,
            s.log.term_at(committed) or 0,
            commit=committed,
            reject=not granted,
        )
    )


def learn_commit(s: State, m: Message) -> None:
    """Take from a vote's answer what its sender knows committed, if the same entry is held here.

    Changes of membership take effect when applied, so the only member that may lead in the new
    configuration can be one that does not yet know it committed, and asks in the old one a member that
    has left, whose longer log refuses it for ever. The refusal then carries what it lacks (etcd #12359;
    raft-rs does the same).
    """
    log = s.log
    if not m.log_term or not log.matches(m.commit, m.log_term) or not log.commit_to(m.commit):
        return
    if s.role is not Role.FOLLOWER and log.has_conf_change(log.applied + 1, log.committed + 1):
        become_follower(s, s.term, NO_NODE)  # the campaign was one in a configuration now superseded


def is_withheld(s: State, m: Message) -> bool:
    """Whether this request must go unanswered because the leader was heard from recently."""
    return (
        s.config.withhold_votes
        and m.context != TRANSFER
        and s.leader != NO_NODE
        and s.election_elapsed < s.config.election_ticks
    )

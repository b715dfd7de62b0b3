"""One function per role change. Nothing else assigns `role`; only these and the vote handler set the vote.

follower -> pre-candidate -> candidate -> leader;  any -> follower
(a transfer, and a configuration without pre-vote, go from follower to candidate directly)
"""

from __future__ import annotations

from raft.core.messages import MessageType
from raft.core.progress import ProgressState
from raft.core.replication import append_entries
from raft.core.state import State
from raft.core.types import NO_NODE, EntryKind, Role


def become_follower(s: State, term: int, leader: int) -> None:
    """Follow `leader`, NO_NODE while unknown, in `term`, which is the present or a later one."""
    assert term >= s.term, "terms never decrease"
    _reset(s, term)
    s.role = Role.FOLLOWER
    s.leader = leader


def become_pre_candidate(s: State) -> None:
    """Find out whether an election could be won. Neither term nor vote changes."""
    assert s.role is not Role.LEADER
    s.tracker.votes.clear()
    s.role = Role.PRE_CANDIDATE
    # A member that campaigns must not withhold its own vote because it still knows the old leader.
    forget_leader(s)


def become_candidate(s: State) -> None:
    """Begin the next term with a vote for itself, counted once it is durable."""
    assert s.role is not Role.LEADER
    _reset(s, s.term + 1)
    s.role = Role.CANDIDATE
    s.vote = s.id


def become_leader(s: State) -> None:
    """Lead the present term: probe everyone, and append the no-op that lets older entries commit."""
    assert s.role is Role.CANDIDATE
    _reset(s, s.term)
    s.role = Role.LEADER
    s.leader = s.id
    log = s.log
    for progress in s.tracker.progress.values():
        progress.forget(log.last_index)
        progress.recent_active = False
        progress.append_due = False
        progress.nudge_due = True
    own = s.tracker.progress[s.id]
    own.state = ProgressState.REPLICATE
    own.recent_active = True
    own.match = log.stable
    own.next = max(own.next, own.match + 1)
    # The log may hold a change of an earlier leader, up to here.
    s.pending_conf_index = log.last_index
    s.uncommitted_bytes = log.nbytes_between(log.committed + 1, log.last_index + 1)
    append_entries(s, EntryKind.NORMAL, (b"",))


def forget_leader(s: State) -> None:
    """Set the leader to unknown, and drop the reads forwarded to it."""
    s.leader = NO_NODE
    if s.forwarded_reads:
        s.dropped_reads.extend(s.forwarded_reads.values())
        s.forwarded_reads.clear()


def _reset(s: State, term: int) -> None:
    if s.role is Role.LEADER:
        _drop_led_reads(s)
    if term != s.term:
        s.term = term
        s.vote = NO_NODE
    forget_leader(s)
    s.election_elapsed = 0
    s.heartbeat_elapsed = 0
    ticks = s.config.election_ticks
    s.election_timeout = ticks + s.rng.randrange(ticks)
    s.transferee = NO_NODE
    s.tracker.votes.clear()
    s.pending_conf_index = 0
    s.uncommitted_bytes = 0
    s.append_due = False
    s.commit_broadcast_due = s.commit_broadcast_requested = False


def _drop_led_reads(s: State) -> None:
    """Reject the reads that this leader can no longer confirm, while `term` is still the one it led."""
    for member, context in s.reads.drop_all():
        if member == s.id:
            s.dropped_reads.append(context)
        else:
            refusal = s.send(MessageType.READ_INDEX_RESPONSE, member)
            refusal.context, refusal.reject = context, True

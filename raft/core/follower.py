"""A follower (and learner): take what the leader sends, pass on what is for the leader."""

from __future__ import annotations

from raft.core.confchange import members_of
from raft.core.election import campaign
from raft.core.messages import Message, MessageType
from raft.core.ready import ReadState
from raft.core.replication import QUIET
from raft.core.state import State
from raft.core.types import NO_NODE


def on_append(s: State, m: Message) -> None:
    """Entries, a probe or a commit broadcast from the leader of this term."""
    s.election_elapsed = 0
    s.leader = m.from_
    accept_append(s, m)


def accept_append(s: State, m: Message) -> None:
    log = s.log
    if m.index < log.committed:
        # Stale, or about entries already compacted: they match, and must not be touched.
        _acknowledge(s, m, log.committed)
        return
    last = log.accept(m.index, m.log_term, m.entries, m.commit)
    if last is None:
        _reject(s, m)
        return
    _acknowledge(s, m, last)


def _acknowledge(s: State, m: Message, index: int) -> None:
    if m.context != QUIET:
        s.respond_after_append(Message(MessageType.APPEND_RESPONSE, m.from_, s.id, s.term, index=index))


def _reject(s: State, m: Message) -> None:
    """Say where the two logs may still agree, skipping every entry of a term the leader cannot have."""
    hint, hint_term = s.log.guess_agreement(min(m.index, s.log.last_index), m.log_term)
    s.respond_after_append(
        Message(
            MessageType.APPEND_RESPONSE,
            m.from_,
            s.id,
            s.term,
            hint_term,
            m.index,
            reject=True,
            reject_hint=hint,
        )
    )


def on_heartbeat(s: State, m: Message) -> None:
    """The leader lives. Its commit index is bounded by what it knows to match here."""
    s.election_elapsed = 0
    s.leader = m.from_
    accept_heartbeat(s, m)


def accept_heartbeat(s: State, m: Message) -> None:
    # A member that lost a torn tail may hold less than the leader believes; what it holds still matches.
    s.log.commit_to(min(m.commit, s.log.last_index))
    s.held_by_all = max(s.held_by_all, m.index)
    s.send(MessageType.HEARTBEAT_RESPONSE, m.from_).context = m.context


def on_snapshot(s: State, m: Message) -> None:
    """A snapshot of the leader's state machine has arrived here and is durable."""
    s.election_elapsed = 0
    s.leader = m.from_
    accept_snapshot(s, m)


def accept_snapshot(s: State, m: Message) -> None:
    log, snapshot = s.log, m.snapshot
    assert snapshot is not None, "a snapshot message names its snapshot"
    if snapshot.index <= log.committed or s.id not in members_of(snapshot.conf):
        index = log.committed  # nothing new, or meant for a configuration without this member
    elif log.matches(snapshot.index, snapshot.term):
        log.commit_to(snapshot.index)  # the log already leads there: keep it
        index = snapshot.index
    else:
        if log.snapshot is None:
            s.conf_superseded = s.tracker.conf
        log.restore(snapshot)
        s.tracker.adopt(snapshot.conf, log.last_index + 1)
        index = snapshot.index
    s.respond_after_append(Message(MessageType.APPEND_RESPONSE, m.from_, s.id, s.term, index=index))


def on_timeout_now(s: State, m: Message) -> None:
    """The leader transfers leadership: campaign at once; its followers would refuse a pre-vote."""
    campaign(s, transfer=True)


def on_transfer_request(s: State, m: Message) -> None:
    transfer_leader(s, m.context)


def transfer_leader(s: State, to: int) -> None:
    """Forward the transfer request to the leader, if there is one."""
    if s.leader not in (NO_NODE, s.id):
        s.send(MessageType.TRANSFER_LEADER, s.leader).context = to


def read_index(s: State, context: int) -> None:
    """Send a read to the leader under an id of our own, so that a context used twice is harmless."""
    if s.leader == NO_NODE:
        s.dropped_reads.append(context)
        return
    if len(s.forwarded_reads) >= s.config.pending_reads_max:
        oldest = next(iter(s.forwarded_reads))  # most likely lost on the way
        s.dropped_reads.append(s.forwarded_reads.pop(oldest))
    s.last_request_id += 1
    s.forwarded_reads[s.last_request_id] = context
    s.send(MessageType.READ_INDEX, s.leader).context = s.last_request_id


def on_read_index_response(s: State, m: Message) -> None:
    """The leader's answer; one to a read given up meanwhile is ignored."""
    context = s.forwarded_reads.pop(m.context, None)
    if context is None:
        return
    if m.reject:
        s.dropped_reads.append(context)
    else:
        s.read_states.append(ReadState(context, m.index))


def refuse_read_index(s: State, m: Message) -> None:
    """This member does not lead: say so, rather than let the read wait."""
    refusal = s.send(MessageType.READ_INDEX_RESPONSE, m.from_)
    refusal.context, refusal.reject = m.context, True

"""A follower or learner: accepts what the leader sends, and forwards requests to the leader."""

from __future__ import annotations

from raft.core.confchange import members_of
from raft.core.election import campaign
from raft.core.messages import Message, MessageType
from raft.core.ready import ReadState
from raft.core.replication import NO_RESPONSE
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
    if m.context != NO_RESPONSE:
        s.send_after_append(Message(MessageType.APPEND_RESPONSE, m.from_, s.id, s.term, index=index))


def _reject(s: State, m: Message) -> None:
    """Reject with a hint where the logs may agree: it skips entries of terms that the leader cannot have."""
    hint, hint_term = s.log.guess_agreement(min(m.index, s.log.last_index), m.log_term)
    s.send_after_append(
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
    """A heartbeat. Its commit index is bounded by what the leader knows to match here."""
    s.election_elapsed = 0
    s.leader = m.from_
    accept_heartbeat(s, m)


def accept_heartbeat(s: State, m: Message) -> None:
    # A member that lost a torn tail may hold less than the leader believes; what it holds still matches.
    s.log.commit_to(min(m.commit, s.log.last_index))
    s.held_by_all = max(s.held_by_all, m.index)
    s.send(MessageType.HEARTBEAT_RESPONSE, m.from_).context = m.context


def on_snapshot(s: State, m: Message) -> None:
    """A snapshot of the leader's state machine is durable here."""
    s.election_elapsed = 0
    s.leader = m.from_
    accept_snapshot(s, m)


def accept_snapshot(s: State, m: Message) -> None:
    log, snapshot = s.log, m.snapshot
    assert snapshot is not None, "a snapshot message carries its metadata"
    if snapshot.index <= log.committed or s.id not in members_of(snapshot.conf):
        index = log.committed  # nothing new, or meant for a configuration without this member
    elif log.matches(snapshot.index, snapshot.term):
        log.commit_to(snapshot.index)  # the log already leads there: keep it
        index = snapshot.index
    else:
        if log.snapshot is None:
            s.applied_conf = s.tracker.conf
        log.restore(snapshot)
        s.tracker.adopt(snapshot.conf, log.last_index + 1)
        index = snapshot.index
    s.send_after_append(Message(MessageType.APPEND_RESPONSE, m.from_, s.id, s.term, index=index))


def on_timeout_now(s: State, m: Message) -> None:
    """The leader transfers leadership: campaign at once. Its followers would reject a pre-vote."""
    campaign(s, transfer=True)


def on_transfer_request(s: State, m: Message) -> None:
    transfer_leader(s, m.context)


def transfer_leader(s: State, to: int) -> None:
    """Forward the request to the leader; dropped while none is known."""
    if s.leader not in (NO_NODE, s.id):
        s.send(MessageType.TRANSFER_LEADER, s.leader).context = to


def read_index(s: State, context: int) -> None:
    """Forward a read to the leader under a new id, so that two reads with one context stay apart."""
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
    """The leader's response; ignored when the read was dropped meanwhile."""
    context = s.forwarded_reads.pop(m.context, None)
    if context is None:
        return
    if m.reject:
        s.dropped_reads.append(context)
    else:
        s.read_states.append(ReadState(context, m.index))


def refuse_read_index(s: State, m: Message) -> None:
    """This member does not lead: reject, so that the read need not time out."""
    refusal = s.send(MessageType.READ_INDEX_RESPONSE, m.from_)
    refusal.context, refusal.reject = m.context, True

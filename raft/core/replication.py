"""The leader's side of replication: appending, pipelining, committing by counting acknowledgements.

Appends leave when a Ready is taken, not when they become due: the proposals, acknowledgements and commits of
one loop iteration then cost one message per follower. A commit broadcast is sent only to a follower that gets
no append; it may also be deferred until the next append carries the commit index.
"""

from __future__ import annotations

from collections.abc import Sequence

from raft.core.messages import Message, MessageType
from raft.core.progress import Progress, ProgressState
from raft.core.state import State
from raft.core.types import Entry, EntryKind, SnapshotMeta

NO_RESPONSE = 1
"""`context` of a commit broadcast, an empty append that gets no acknowledgement. If it is lost, the next
heartbeat carries the commit index."""


def append_entries(s: State, kind: EntryKind, datas: Sequence[bytes]) -> int:
    """Append new entries of this term to the log; the index of the first."""
    first = s.log.last_index + 1
    entries = [Entry(s.term, index, kind, data) for index, data in enumerate(datas, first)]
    s.log.append(entries)
    s.uncommitted_bytes += sum([len(data) for data in datas])
    s.append_due = True
    return first


def acknowledge_own(s: State) -> None:
    """Count the entries durable on this leader's own disk towards commitment."""
    own = s.tracker.progress.get(s.id)
    if own is not None and own.acknowledge(s.log.stable):
        commit_by_count(s)


def commit_by_count(s: State) -> bool:
    """Raise the commit index to what a quorum holds, if that entry is of this term (figure 8)."""
    log = s.log
    committed = s.tracker.committed()
    if committed <= log.committed or log.term_at(committed) != s.term:
        return False
    s.uncommitted_bytes -= log.nbytes_between(log.committed + 1, committed + 1)
    assert s.uncommitted_bytes >= 0, "more bytes committed than were uncommitted"
    log.commit_to(committed)
    s.append_due = True
    return True


def flush_appends(s: State) -> None:
    """Send every follower what is due: entries, a probe, or else a commit broadcast."""
    s.append_due = False
    s.commit_broadcast_due = False
    for member, progress in s.tracker.progress.items():
        if member != s.id:
            _flush(s, member, progress)
    s.commit_broadcast_requested = False


def _flush(s: State, member: int, progress: Progress) -> None:
    sent = False
    while not progress.blocked() and _send_append(s, member, progress, even_empty=progress.append_due):
        progress.append_due = False
        sent = True
    if (
        not sent
        and progress.state is ProgressState.REPLICATE
        and not progress.paused
        and progress.can_raise_commit(s.log.committed)
    ):
        awaited = progress.sent_commit < progress.awaited_commit <= s.log.committed
        if awaited or s.commit_broadcast_requested or not s.config.commit_broadcast_deferred:
            _send_append(s, member, progress, even_empty=True, context=NO_RESPONSE)
        else:
            s.commit_broadcast_due = True


def _send_append(s: State, member: int, progress: Progress, *, even_empty: bool, context: int = 0) -> bool:
    """Send the next entries, or a snapshot when they are compacted; whether anything was sent."""
    log = s.log
    prev_index = progress.next - 1
    prev_term = log.term_at(prev_index)
    if prev_term is None:
        return _send_snapshot(s, member, progress)
    entries: Sequence[Entry] = ()
    if prev_index < log.last_index and not progress.inflights.full:
        config = s.config
        entries = log.page(
            prev_index + 1, log.last_index + 1, config.append_bytes_max, config.append_entries_max
        )
    if not entries and not even_empty:
        return False
    s.messages.append(
        Message(
            MessageType.APPEND,
            member,
            s.id,
            s.term,
            prev_term,
            prev_index,
            entries,
            log.committed,
            context=context,
        )
    )
    progress.sent(len(entries), sum([len(entry.data) for entry in entries]))
    progress.sent_commit = log.committed
    return True


def _send_snapshot(s: State, member: int, progress: Progress) -> bool:
    """Request that the caller send the member a snapshot of the state machine.

    The metadata names the newest state this core knows applied. The caller may send any snapshot that is
    not older than the log's base, and sends that snapshot's own metadata.
    """
    if not progress.recent_active:
        return False  # the member is down; its next response triggers another attempt
    log = s.log
    term = log.term_at(log.applied)
    assert term is not None, "the applied index lies within the log"
    snapshot = SnapshotMeta(log.applied, term, s.tracker.conf)
    s.messages.append(Message(MessageType.SNAPSHOT, member, s.id, s.term, snapshot=snapshot))
    progress.become_snapshot(snapshot.index)
    return True


def broadcast_heartbeat(s: State, round_id: int, *, voters_only: bool) -> None:
    """Send a heartbeat to the other members; with a round id, their responses confirm leadership.

    `index` is the highest index durable on every member: all may compact up to it once checkpointed.
    """
    committed = s.log.committed
    for member, progress in s.tracker.progress.items():
        if member == s.id or (voters_only and progress.is_learner):
            continue
        # Never above the match index: the follower's later entries may be another leader's.
        commit = min(progress.match, committed)
        s.messages.append(
            Message(
                MessageType.HEARTBEAT,
                member,
                s.id,
                s.term,
                index=s.held_by_all,
                commit=commit,
                context=round_id,
            )
        )

"""The leader: appends proposals, counts acknowledgements, confirms reads, transfers leadership."""

from __future__ import annotations

from collections.abc import Sequence

from raft.core.confchange import ConfChange, apply_change, is_joint
from raft.core.core_errors import ConfChangeRefused, DropReason, ProposalDropped
from raft.core.messages import Message, MessageType
from raft.core.progress import Progress, ProgressState
from raft.core.read_index import PendingRead
from raft.core.ready import ReadState
from raft.core.replication import append_entries, broadcast_heartbeat, commit_by_count
from raft.core.state import State
from raft.core.transitions import become_follower
from raft.core.types import NO_NODE, EntryKind

# ---------------------------------------------------------------------- time


def on_tick(s: State) -> None:
    s.heartbeat_elapsed += 1
    s.election_elapsed += 1
    if s.election_elapsed >= s.config.election_ticks:
        s.election_elapsed = 0
        if s.config.check_quorum and not s.tracker.quorum_active(s.id):
            become_follower(s, s.term, NO_NODE)
            return
        s.transferee = NO_NODE  # took too long: resume proposing
    if s.heartbeat_elapsed >= s.config.heartbeat_ticks:
        s.heartbeat_elapsed = 0
        _heartbeat(s)


def _heartbeat(s: State) -> None:
    for progress in s.tracker.progress.values():
        progress.nudge_due = True
    round_id = 0
    if s.reads.rounds:
        # Responses to the open rounds may be lost. A retry is a new round; it includes the waiting reads.
        round_id = s.reads.begin(s.log.committed)
    held = min([progress.match for progress in s.tracker.progress.values()], default=0)
    s.held_by_all = max(s.held_by_all, held)
    broadcast_heartbeat(s, round_id, voters_only=False)


# ---------------------------------------------------------------------- proposals


def propose(s: State, datas: Sequence[bytes]) -> int:
    """Append entries; the first index. Raises ProposalDropped."""
    if s.id not in s.tracker.progress:
        raise ProposalDropped(DropReason.REMOVED)
    if s.transferee != NO_NODE:
        raise ProposalDropped(DropReason.TRANSFERRING, s.transferee)
    nbytes = sum([len(data) for data in datas])
    # One proposal is always admitted, and empty ones (a leader's own) are never in the way.
    if nbytes and s.uncommitted_bytes and s.uncommitted_bytes + nbytes > s.config.uncommitted_bytes_max:
        raise ProposalDropped(DropReason.UNCOMMITTED_FULL, s.id)
    return append_entries(s, EntryKind.NORMAL, datas)


def propose_conf(s: State, change: ConfChange) -> int:
    """Append a membership change; its index. Raises ProposalDropped.

    At most one change may be unapplied, and all entries found in the log at the election must be applied
    first: then the configuration that validates the change is the one it will be applied to.
    """
    if s.id not in s.tracker.progress:
        raise ProposalDropped(DropReason.REMOVED)
    if s.transferee != NO_NODE:
        raise ProposalDropped(DropReason.TRANSFERRING, s.transferee)
    if s.pending_conf_index > s.log.applied:
        raise ProposalDropped(DropReason.CONF_PENDING, s.id)
    try:
        apply_change(s.tracker.conf, change)
        data = change.encode()
    except ConfChangeRefused as refusal:
        raise ProposalDropped(DropReason.CONF_INVALID, s.id, str(refusal)) from refusal
    s.pending_conf_index = append_entries(s, change.entry_kind, (data,))
    return s.pending_conf_index


def leave_joint_if_due(s: State) -> None:
    """Propose leaving a joint configuration entered with `auto_leave`.

    Called after every apply, so that a proposal refused during a transfer is retried.
    """
    conf = s.tracker.conf
    due = is_joint(conf) and conf.auto_leave and s.log.applied >= s.pending_conf_index
    if due and s.transferee == NO_NODE and s.id in s.tracker.progress:
        propose_conf(s, ConfChange())


# ---------------------------------------------------------------------- responses to appends


def on_append_response(s: State, m: Message) -> None:
    progress = s.tracker.progress.get(m.from_)
    if progress is None:
        return  # no member, or none any more
    progress.recent_active = True
    if m.reject:
        _on_rejection(s, progress, m)
        return
    if m.index > s.log.last_index:
        return  # acknowledges what was never sent in this term
    probed = progress.state is ProgressState.PROBE and progress.match == m.index
    if progress.acknowledge(m.index) or probed:
        _resume(s, progress, m.index)
        commit_by_count(s)
        if progress.next <= s.log.last_index or progress.can_raise_commit(s.log.committed):
            s.append_due = True
        if m.from_ == s.transferee and progress.match == s.log.last_index:
            s.send(MessageType.TIMEOUT_NOW, m.from_)


def _resume(s: State, progress: Progress, index: int) -> None:
    """The follower's log matches up to `index`: replicate from there."""
    if progress.state is ProgressState.REPLICATE:
        progress.inflights.free_to(index)
    elif progress.state is ProgressState.PROBE or progress.match + 1 >= s.log.first_index:
        # Any snapshot that reaches the log ends SNAPSHOT, not only the one requested.
        progress.become_replicate()
    elif progress.match >= progress.pending_snapshot:
        progress.become_probe()  # the log was compacted beyond this snapshot: request a newer one


def _on_rejection(s: State, progress: Progress, m: Message) -> None:
    """Back off to where the logs may agree. The follower skipped its entries of terms above ours at
    that point; skip ours of terms above its entry there."""
    hint = m.reject_hint
    if m.log_term:
        hint = s.log.guess_agreement(hint, m.log_term)[0]
    if progress.back_off(m.index, hint):
        if progress.state is ProgressState.REPLICATE:
            progress.become_probe()
        _request_append(s, progress)


def _request_append(s: State, progress: Progress) -> None:
    """Send an append even if it is empty: its response reveals what the follower holds."""
    progress.append_due = True
    s.append_due = True


def on_heartbeat_response(s: State, m: Message) -> None:
    progress = s.tracker.progress.get(m.from_)
    if progress is None:
        return
    progress.recent_active = True
    if progress.nudge_due:
        progress.nudge_due = False
        progress.paused = False
        if progress.match < s.log.last_index or progress.state is ProgressState.PROBE:
            _request_append(s, progress)
    if m.context:
        s.reads.acknowledge(m.from_, m.context)
        answer_reads(s)


# ---------------------------------------------------------------------- reports of the caller


def report_unreachable(s: State, member: int) -> None:
    """Messages to the member were lost: probe, since later appends would be rejected."""
    progress = s.tracker.progress.get(member)
    if progress is not None and progress.state is ProgressState.REPLICATE:
        progress.become_probe()


def report_restarted(s: State, member: int) -> None:
    """The member restarted: it may hold less than it acknowledged (a torn tail)."""
    progress = s.tracker.progress.get(member)
    if progress is not None:
        assert member != s.id, "a member does not report itself restarted"
        progress.forget(s.log.last_index)
        _request_append(s, progress)


def report_snapshot(s: State, member: int, *, ok: bool) -> None:
    """The snapshot was delivered: probe after it. It failed: probe after the match index."""
    progress = s.tracker.progress.get(member)
    if progress is None or progress.state is not ProgressState.SNAPSHOT:
        return
    if not ok:
        progress.pending_snapshot = 0
    progress.become_probe()
    # If delivered, its acknowledgement follows; if failed, wait a heartbeat before the next attempt.
    progress.paused = True


# ---------------------------------------------------------------------- reads


def add_read(s: State, read: PendingRead) -> None:
    """Queue a read for the next round; refuse it when too many wait."""
    if s.reads.pending < s.config.pending_reads_max:
        s.reads.add(read)
    elif read.member == s.id:
        s.dropped_reads.append(read.context)
    else:
        _answer_read(s, read, 0, reject=True)


def on_read_index(s: State, m: Message) -> None:
    add_read(s, PendingRead(m.from_, m.context))


def begin_read_round(s: State) -> None:
    """Broadcast one heartbeat round that confirms leadership for every waiting read."""
    round_id = s.reads.begin(s.log.committed)
    broadcast_heartbeat(s, round_id, voters_only=True)
    answer_reads(s)  # a single voter is its own quorum


def answer_reads(s: State) -> None:
    """Complete the reads of every round that a quorum has confirmed."""
    for confirmed in s.reads.take_confirmed(s.tracker.conf, s.id):
        for read in confirmed.reads:
            _answer_read(s, read, confirmed.read_index, reject=False)


def _answer_read(s: State, read: PendingRead, index: int, *, reject: bool) -> None:
    if read.member == s.id:
        s.read_states.append(ReadState(read.context, index))
        return
    answer = s.send(MessageType.READ_INDEX_RESPONSE, read.member)
    answer.context, answer.index, answer.reject = read.context, index, reject


# ---------------------------------------------------------------------- transfer and membership


def on_transfer_request(s: State, m: Message) -> None:
    transfer_leader(s, m.context)


def transfer_leader(s: State, to: int) -> None:
    """Bring a voter up to date, then send TIMEOUT_NOW; abandoned after an election timeout."""
    progress = s.tracker.progress.get(to)
    if progress is None or progress.is_learner or to in (s.id, s.transferee):
        return
    s.transferee = to
    s.election_elapsed = 0  # the transfer has one whole timeout
    if progress.match == s.log.last_index:
        s.send(MessageType.TIMEOUT_NOW, to)
    else:
        _request_append(s, progress)


def adopt_conf(s: State) -> None:
    """Act on a configuration just applied: step down if it removes or demotes this leader; else it may
    commit entries, confirm reads, or add members to send to."""
    own = s.tracker.progress.get(s.id)
    if (own is None or own.is_learner) and s.config.step_down_on_removal:
        become_follower(s, s.term, NO_NODE)
        return
    commit_by_count(s)
    s.append_due = True
    answer_reads(s)
    if s.transferee != NO_NODE and not s.tracker.is_voter(s.transferee):
        s.transferee = NO_NODE

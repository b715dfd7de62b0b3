"""What this core holds and says, printed in the shapes of etcd-io/raft's transcripts."""

from __future__ import annotations

import json
from collections.abc import Sequence

from raft.core import (
    ConfChange,
    ConfState,
    ConfStepKind,
    Entry,
    EntryKind,
    Message,
    MessageType,
    RaftCore,
    Role,
    SnapshotMeta,
)

STEP_KINDS = {
    "v": ConfStepKind.ADD_VOTER,
    "l": ConfStepKind.ADD_LEARNER,
    "r": ConfStepKind.REMOVE,
    "u": ConfStepKind.UPDATE,
}
_STEP_LETTERS = {kind: letter for letter, kind in STEP_KINDS.items()}

ROLES = {
    Role.FOLLOWER: "StateFollower",
    Role.PRE_CANDIDATE: "StatePreCandidate",
    Role.CANDIDATE: "StateCandidate",
    Role.LEADER: "StateLeader",
}

_T = MessageType
TYPES = {
    _T.APPEND: "MsgApp",
    _T.APPEND_RESPONSE: "MsgAppResp",
    _T.VOTE: "MsgVote",
    _T.VOTE_RESPONSE: "MsgVoteResp",
    _T.PRE_VOTE: "MsgPreVote",
    _T.PRE_VOTE_RESPONSE: "MsgPreVoteResp",
    _T.HEARTBEAT: "MsgHeartbeat",
    _T.HEARTBEAT_RESPONSE: "MsgHeartbeatResp",
    _T.SNAPSHOT: "MsgSnap",
    _T.TIMEOUT_NOW: "MsgTimeoutNow",
    _T.TRANSFER_LEADER: "MsgTransferLeader",
    _T.READ_INDEX: "MsgReadIndex",
    _T.READ_INDEX_RESPONSE: "MsgReadIndexResp",
    _T.PROPOSE: "MsgProp",
}
_VOTE_ANSWERS = (_T.VOTE_RESPONSE, _T.PRE_VOTE_RESPONSE)


def entry_line(entry: Entry) -> str:
    if entry.kind is EntryKind.NORMAL:
        return f"{entry.term}/{entry.index} EntryNormal {json.dumps(entry.data.decode())}"
    steps = " ".join(
        f"{_STEP_LETTERS[step.kind]}{step.member}" for step in ConfChange.decode(entry.data).steps
    )
    return f"{entry.term}/{entry.index} EntryConfChange {steps}".rstrip()


def entry_size(entry: Entry) -> int:
    """Bytes of the entry in etcd's encoding, which its limits count: kind, term, index, then any data."""
    size = 2 + 1 + _varint_size(entry.term) + 1 + _varint_size(entry.index)
    return size + (1 + _varint_size(len(entry.data)) + len(entry.data) if entry.data else 0)


def _varint_size(value: int) -> int:
    return max(1, (value.bit_length() + 6) // 7)


def entries_text(entries: Sequence[Entry]) -> str:
    return f" Entries:[{' '.join([entry_line(entry) for entry in entries])}]" if entries else ""


def snapshot_text(snapshot: SnapshotMeta) -> str:
    return f"Index:{snapshot.index} Term:{snapshot.term} ConfState:{_conf_text(snapshot.conf)}"


def _conf_text(conf: ConfState) -> str:
    def ids(members: Sequence[int]) -> str:
        return "[" + " ".join([str(member) for member in members]) + "]"

    return (
        f"Voters:{ids(conf.voters)} VotersOutgoing:{ids(conf.voters_outgoing)} Learners:{ids(conf.learners)} "
        f"LearnersNext:{ids(conf.learners_next)} AutoLeave:{str(conf.auto_leave).lower()}"
    )


def message_line(m: Message) -> str:
    """One message on one line. What etcd's messages do not carry is left out:

    * `commit` and `log_term` of an answer to a vote: a hint of ours about what is committed,
    * `index` of a heartbeat: what every member is known to hold,
    * `context` of every type, which etcd does not print.
    """
    log_term, index, commit = m.log_term, m.index, m.commit
    if m.type in _VOTE_ANSWERS:
        log_term = index = commit = 0
    elif m.type is _T.HEARTBEAT:
        index = 0
    # etcd forwards a transfer request in the name of the transferee.
    from_ = m.context if m.type is _T.TRANSFER_LEADER else m.from_
    line = f"{from_:x}->{m.to:x} {TYPES[m.type]} Term:{m.term} Log:{log_term}/{index}"
    line += f" Rejected (Hint: {m.reject_hint})" if m.reject else ""
    line += f" Commit:{commit}" if commit else ""
    line += entries_text(m.entries)
    line += f" Snapshot: {snapshot_text(m.snapshot)}" if m.snapshot is not None else ""
    return line


def state_line(core: RaftCore) -> str:
    voter = "Voter" if core._state.tracker.is_voter(core.id) else "Non-Voter"
    return f"{core.id}: {ROLES[core.role]} ({voter}) Term:{core.term} Lead:{core.leader}"


def status_lines(core: RaftCore) -> list[str]:
    lines = []
    for peer in core.status().peers:
        line = f"{peer.member}: State{peer.state.value.capitalize()} match={peer.match} next={peer.next}"
        line += " learner" if peer.is_learner else ""
        line += " paused" if peer.paused else ""
        line += f" pendingSnap={peer.pending_snapshot}" if peer.pending_snapshot else ""
        line += "" if peer.recent_active else " inactive"
        if peer.inflight_messages:
            full = core._state.tracker.progress[peer.member].inflights.full
            line += f" inflight={peer.inflight_messages}" + ("[full]" if full else "")
        lines.append(line)
    return lines

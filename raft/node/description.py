"""A member's view of itself, gathered from its parts."""

from __future__ import annotations

from raft.core import RaftCore
from raft.node.admission import Admission, CutGuard
from raft.node.applying import Applier
from raft.node.proposals import Proposals
from raft.node.reads import Reads
from raft.node.snapshots import Snapshots
from raft.node.status import NodeStatistics, NodeStatus
from raft.node.write_behind import WriteBehind
from raft.storage.protocol import LogWriter
from raft.transport.protocol import Transport


def describe(
    *,
    core: RaftCore,
    applier: Applier,
    proposals: Proposals,
    reads: Reads,
    write_behind: WriteBehind,
    admission: Admission,
    cut_guard: CutGuard,
    snapshots: Snapshots,
    log: LogWriter,
    transport: Transport,
    leader_changes: int,
    turns: int,
) -> NodeStatus:
    """A consistent snapshot of this moment."""
    status = core.status()
    return NodeStatus(
        member_id=core.id,
        term=status.term,
        vote=status.vote,
        leader=status.leader,
        role=status.role,
        commit=status.commit,
        applied=applier.applied,
        first_index=core.first_index,
        last_index=status.last_index,
        durable_index=write_behind.durable.index,
        admitted=admission.admitted,
        trusted=not cut_guard.active,
        conf=status.conf,
        matched={peer.member: peer.match for peer in status.peers},
        waiting_operations=len(proposals.waiting),
        in_flight_operations=proposals.flight_count,
        undurable_bytes=write_behind.undurable_bytes,
        state_file_bytes=write_behind.state.size_bytes(),
        statistics=NodeStatistics(
            batches_proposed=proposals.batches,
            operations_proposed=proposals.operations,
            entries_applied=applier.entries,
            operations_applied=applier.operations,
            read_rounds=reads.rounds,
            reads=reads.reads,
            leader_changes=leader_changes,
            state_commits=write_behind.commits,
            state_commit_buckets=tuple(write_behind.buckets),
            state_commit_seconds=write_behind.seconds,
            turns=turns,
        ),
        images=snapshots.statistics(),
        writer=log.statistics(),
        peers=transport.statistics(),
    )

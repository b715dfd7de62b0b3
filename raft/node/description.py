"""A member's view of itself, gathered from its parts."""

from __future__ import annotations

from raft.core import RaftCore
from raft.node.applying import Applier
from raft.node.checkpointer import Checkpointer
from raft.node.identity_check import IdentityCheck, TornTailGuard
from raft.node.node_status import NodeStatistics, NodeStatus
from raft.node.proposals import Proposals
from raft.node.reads import Reads
from raft.node.snapshots import Snapshots
from raft.storage.storage_protocol import LogWriter
from raft.transport.transport_protocol import Transport


def describe(
    *,
    core: RaftCore,
    applier: Applier,
    proposals: Proposals,
    reads: Reads,
    checkpointer: Checkpointer,
    identity_check: IdentityCheck,
    torn_tail_guard: TornTailGuard,
    snapshots: Snapshots,
    log: LogWriter,
    transport: Transport,
    leader_changes: int,
    iterations: int,
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
        durable_index=checkpointer.durable.index,
        vote_eligible=identity_check.vote_eligible,
        trusted=not torn_tail_guard.active,
        conf=status.conf,
        matched={peer.member: peer.match for peer in status.peers},
        waiting_operations=len(proposals.waiting),
        in_flight_operations=proposals.flight_count,
        undurable_bytes=checkpointer.undurable_bytes,
        backend_bytes=checkpointer.state.size_bytes(),
        statistics=NodeStatistics(
            batches_proposed=proposals.batches,
            operations_proposed=proposals.operations,
            entries_applied=applier.entries,
            operations_applied=applier.operations,
            read_rounds=reads.rounds,
            reads=reads.reads,
            leader_changes=leader_changes,
            state_commits=checkpointer.commits,
            state_commit_buckets=tuple(checkpointer.buckets),
            state_commit_seconds=checkpointer.seconds,
            iterations=iterations,
        ),
        snapshots=snapshots.statistics(),
        writer=log.statistics(),
        peers=transport.statistics(),
    )

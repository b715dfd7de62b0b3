"""Builds a node in one pass, each part from those before it.

The few references that point forward (to the identity check, the receiver, the node itself) are callbacks,
and nothing calls them before the node has started.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

from raft.core import BootState, Config, RaftCore
from raft.core.types import ConfState
from raft.node.applying import Applier
from raft.node.change_queue import ChangeQueue
from raft.node.checkpointer import Checkpointer
from raft.node.disk_health import DiskHealth
from raft.node.failover import Failover
from raft.node.forwarder import Forwarder, RequestQueues
from raft.node.identity_check import IdentityCheck, IdentityEvents, PeerIncarnations
from raft.node.leader_rpc import LeaderRpc
from raft.node.membership import Membership
from raft.node.node import Node
from raft.node.node_errors import BackendBeyondLog
from raft.node.outbox import Outbox
from raft.node.peer_receiver import PeerReceiver, Peers
from raft.node.proposal_queue import ProposalQueue
from raft.node.reads import Reads
from raft.node.replica import Inbox, MemberOptions, MemberStorage, Replica
from raft.node.snapshots import ReplicatedState, Snapshots
from raft.node.state_machine import StateMachine
from raft.node.torn_tail_guard import TornTailGuard
from raft.storage.storage_protocol import Checkpoint, Recovered
from raft.transport.liveness import HANDSHAKE_FORMAT_VERSION
from raft.transport.transport_protocol import Handshake, Transport

AnyNode = TypeVar("AnyNode", bound=Node)


def assemble(
    options: MemberOptions,
    storage: MemberStorage,
    transport: Transport,
    machine: StateMachine,
    node_type: type[AnyNode],
) -> AnyNode:
    """Make a node that `start` begins to run, in the running event loop.

    Raises ValueError for a wrong configuration or a directory of another member, and BackendBeyondLog
    when the log and the backend do not belong together.
    """
    options.config.validate()
    recovered, checkpoint = storage.recovered, storage.checkpoint
    if recovered.identity.member_id != options.config.member_id:
        raise ValueError("the data directory belongs to another member")
    check_backend(recovered, checkpoint)
    conf = checkpoint.conf if checkpoint.conf.voters else recovered.snapshot.conf
    core = make_core(options, recovered, checkpoint, conf)
    replica = Replica(options, core, transport, Inbox(asyncio.get_running_loop()))

    disk = DiskHealth(replica, storage.log)
    incarnations = PeerIncarnations()
    torn_tail_guard = TornTailGuard(recovered, conf.voters, storage.log.record_vote_eligible)
    queues = make_queues(replica, incarnations)
    membership = Membership(
        replica, machine, conf, queues.changes, torn_tail_guard, lambda reason: node.leave(reason)
    )
    applier = Applier(replica, machine, queues.proposals, queues.changes, membership, checkpoint)
    checkpointer = Checkpointer(
        replica, machine, applier, storage.backend, checkpoint, lambda reason: node.fail(reason)
    )
    state = ReplicatedState(machine, applier, checkpointer)
    forwarder = Forwarder(replica, queues, incarnations, disk, checkpointer)

    failover = Failover(
        replica, lambda: identity_check.vote_eligible and disk.may_campaign and replica.inbox.open
    )
    events = IdentityEvents(
        accepts=membership.accepts,
        removed=membership.on_removed,
        recorded=lambda member_id: receiver.recorded(member_id),
        restarted=lambda *restart: receiver.restarted(*restart),
    )
    voters = conf.voters if options.bootstrap_voters is None else options.bootstrap_voters
    identity_check = IdentityCheck(
        make_handshake(options, recovered), recovered, voters, storage.log, incarnations, events
    )
    peers = Peers(incarnations, identity_check, torn_tail_guard, membership, failover)
    snapshots = Snapshots(replica, storage, state, identity_check, membership, forwarder)
    outbox = Outbox(replica, storage.log, disk, torn_tail_guard, snapshots)
    receiver = PeerReceiver(replica, peers, forwarder, disk, snapshots)
    node = node_type(replica, peers, receiver, forwarder, state, outbox)
    return node


def check_backend(recovered: Recovered, checkpoint: Checkpoint) -> None:
    """Raises BackendBeyondLog unless the log holds what follows on the backend."""
    base = recovered.snapshot.index
    last = base + len(recovered.entries)
    if not base <= checkpoint.index <= last:
        raise BackendBeyondLog(
            f"the backend is at index {checkpoint.index}, the log holds {base} to {last}: damage"
        )


def make_core(
    options: MemberOptions, recovered: Recovered, checkpoint: Checkpoint, conf: ConfState
) -> RaftCore:
    config = Config(
        member_id=options.config.member_id,
        election_ticks=options.config.election_ticks,
        commit_broadcast_deferred=True,
    )
    boot = BootState(
        hard_state=recovered.hard_state,
        snapshot=recovered.snapshot,
        entries=recovered.entries,
        applied=checkpoint.index,
        conf=conf,
    )
    return RaftCore(config, boot, options.rng)


def make_queues(replica: Replica, incarnations: PeerIncarnations) -> RequestQueues:
    config, incarnation, core = replica.config, replica.incarnation, replica.core
    return RequestQueues(
        ProposalQueue(config, incarnation),
        Reads(incarnation, gather_s=config.gather_ms / 1000, linger_s=config.linger_ms / 1000),
        LeaderRpc(
            member_id=config.member_id,
            incarnation=incarnation,
            leader=lambda: core.leader,
            clock=replica.loop.time,
            send=replica.transport.send,
        ),
        ChangeQueue(replica, incarnations),
    )


def make_handshake(options: MemberOptions, recovered: Recovered) -> Handshake:
    return Handshake(
        format_version=HANDSHAKE_FORMAT_VERSION,
        cluster_id=options.config.cluster_id,
        member_id=options.config.member_id,
        disk_id=recovered.identity.disk_id,
        incarnation=options.incarnation,
        urls=options.peer_urls,
    )

"""Every method of one member's services."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from google.protobuf.message import Message

from kvstore.errors import NotSupportedForLearner
from kvstore.rpc.call import Method
from kvstore.rpc.cluster_service import ClusterService
from kvstore.rpc.convert import Headers
from kvstore.rpc.election_service import ElectionService
from kvstore.rpc.health_service import HealthService
from kvstore.rpc.kv_service import KVService
from kvstore.rpc.lease_service import LeaseService
from kvstore.rpc.lock_service import LockService
from kvstore.rpc.maintenance_service import MaintenanceService
from kvstore.rpc.watch_service import WatchService
from kvstore.server.backup_stream import Backups
from kvstore.server.local_member import LocalMember
from kvstore.server.membership_changes import MembershipChanges
from kvstore.wire import rpc_pb2 as pb


def all_methods(member: LocalMember, changes: MembershipChanges, backups: Backups) -> tuple[Method, ...]:
    headers = Headers(member)
    rows = (
        *KVService(member, headers).methods(),
        *LeaseService(member, headers).methods(),
        *LockService(member, headers).methods(),
        *ElectionService(member, headers).methods(),
        *WatchService(member, headers).methods(),
        *ClusterService(member, changes, headers).methods(),
        *MaintenanceService(member, changes, backups, headers).methods(),
    )
    admit = partial(refuse_on_learner, member)
    every = (*(replace(row, admit=admit) for row in rows), *HealthService().methods())
    # As in etcd, a caller that requires a leader is refused without one, whatever the call is.
    return tuple(replace(row, needs_leader=member.has_leader) for row in every)


def refuse_on_learner(member: LocalMember, request: Message | None) -> None:
    """Raise NotSupportedForLearner. A learner serves only its status, snapshots and serializable reads, as in
    etcd."""
    if not member.is_learner() or isinstance(request, pb.StatusRequest | pb.SnapshotRequest):
        return
    if not (isinstance(request, pb.RangeRequest) and request.serializable):
        raise NotSupportedForLearner

"""All rows of all services of one member."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from google.protobuf.message import Message

from kvstore.errors import NotSupportedForLearner
from kvstore.rpc.call import Method
from kvstore.rpc.cluster import ClusterService
from kvstore.rpc.election import ElectionService
from kvstore.rpc.headers import Headers
from kvstore.rpc.health import HealthService
from kvstore.rpc.kv import KVService
from kvstore.rpc.leadership import LeadershipService
from kvstore.rpc.lease import LeaseService
from kvstore.rpc.lock import LockService
from kvstore.rpc.maintenance import MaintenanceService
from kvstore.rpc.snapshot import SnapshotService
from kvstore.rpc.upkeep import UpkeepService
from kvstore.rpc.watch import WatchService
from kvstore.server.backups import Backups
from kvstore.server.cluster_changes import ClusterChanges
from kvstore.server.local_member import LocalMember
from kvstore.server.lock_queue import LockQueues
from kvstore.wire import rpc_pb2 as pb


def all_methods(member: LocalMember, changes: ClusterChanges, backups: Backups) -> tuple[Method, ...]:
    """What both bindings serve."""
    headers = Headers(member)
    queues = LockQueues(member)
    rows = (
        *KVService(member, headers).methods(),
        *LeaseService(member, headers).methods(),
        *LockService(member, headers, queues).methods(),
        *ElectionService(member, headers, queues).methods(),
        *WatchService(member, headers).methods(),
        *ClusterService(member, changes, headers).methods(),
        *MaintenanceService(member, headers).methods(),
        *LeadershipService(changes).methods(),
        *SnapshotService(backups).methods(),
        *UpkeepService(member, headers).methods(),
    )
    admit = partial(refuse_on_learner, member)
    every = (*(replace(row, admit=admit) for row in rows), *HealthService().methods())
    # Whoever asks for a leader is refused without one whatever the call is, as in etcd.
    return tuple(replace(row, needs_leader=member.has_leader) for row in every)


def refuse_on_learner(member: LocalMember, request: Message | None) -> None:
    """Raise NotSupportedForLearner for what a learner does not serve: all but its status and serializable
    reads, as in etcd."""
    if not member.is_learner() or isinstance(request, pb.StatusRequest | pb.SnapshotRequest):
        return
    if not (isinstance(request, pb.RangeRequest) and request.serializable):
        raise NotSupportedForLearner

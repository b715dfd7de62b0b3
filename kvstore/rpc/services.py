"""All rows of all services of one member."""

from __future__ import annotations

from kvstore.rpc.call import Method
from kvstore.rpc.cluster import ClusterService
from kvstore.rpc.election import ElectionService
from kvstore.rpc.headers import Headers
from kvstore.rpc.health import HealthService
from kvstore.rpc.kv import KVService
from kvstore.rpc.lease import LeaseService
from kvstore.rpc.lock import LockService
from kvstore.rpc.maintenance import MaintenanceService
from kvstore.rpc.upkeep import UpkeepService
from kvstore.rpc.watch import WatchService
from kvstore.server.local_member import LocalMember
from kvstore.server.lock_queue import LockQueues


def all_methods(member: LocalMember) -> tuple[Method, ...]:
    """What both bindings serve."""
    headers = Headers(member)
    queues = LockQueues(member)
    return (
        *KVService(member, headers).methods(),
        *LeaseService(member, headers).methods(),
        *LockService(member, headers, queues).methods(),
        *ElectionService(member, headers, queues).methods(),
        *WatchService(member, headers).methods(),
        *ClusterService(member, headers).methods(),
        *MaintenanceService(member, headers).methods(),
        *UpkeepService(member, headers).methods(),
        *HealthService().methods(),
    )

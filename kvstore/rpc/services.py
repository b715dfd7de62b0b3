"""All rows of all services of one member."""

from __future__ import annotations

from kvstore.rpc.call import Method
from kvstore.rpc.cluster import ClusterService
from kvstore.rpc.headers import Headers
from kvstore.rpc.health import HealthService
from kvstore.rpc.kv import KVService
from kvstore.rpc.lease import LeaseService
from kvstore.rpc.maintenance import MaintenanceService
from kvstore.rpc.upkeep import UpkeepService
from kvstore.rpc.watch import WatchService
from kvstore.server.local_member import LocalMember


def all_methods(member: LocalMember) -> tuple[Method, ...]:
    """What both bindings serve."""
    headers = Headers(member)
    return (
        *KVService(member, headers).methods(),
        *LeaseService(member, headers).methods(),
        *WatchService(member, headers).methods(),
        *ClusterService(member, headers).methods(),
        *MaintenanceService(member, headers).methods(),
        *UpkeepService(member, headers).methods(),
        *HealthService().methods(),
    )

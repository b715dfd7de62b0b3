"""Whether this member can serve: no alarm, a leader, and a linearizable read, in etcd's order.

The reasons are the texts of etcd's `/health` (`server/etcdserver/api/etcdhttp/health.go`, 3.5).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import NamedTuple

from kvstore.engine import AlarmType
from kvstore.errors import KVError
from kvstore.replica.replica import Replica


class Health(NamedTuple):
    """`reason` is empty when healthy."""

    healthy: bool
    reason: str


def check_health(
    replica: Replica,
    *,
    serializable: bool,
    excluded_alarms: Collection[str],
    on_result: Callable[[Health], None],
) -> None:
    """Check this member; a serializable check needs neither a leader nor a linearizable read."""
    for alarm in replica.engine.alarms():
        name = AlarmType(alarm.alarm).name
        if name not in excluded_alarms:
            on_result(Health(False, f"ALARM {name}"))
            return
    if serializable:
        on_result(Health(True, ""))
    elif not replica.has_leader():
        on_result(Health(False, "RAFT NO LEADER"))
    else:
        replica.barrier(partial(_confirmed, on_result))


def _confirmed(on_result: Callable[[Health], None], error: KVError | None) -> None:
    on_result(Health(True, "") if error is None else Health(False, f"RANGE ERROR:{error.text}"))

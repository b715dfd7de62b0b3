"""What a client can find in a cluster, as plain values that JSON can hold.

Everything is taken at one revision or does not depend on it, so that the same cluster gives the same
observation however much is written later. Bytes are written as Latin-1 text, one character for each byte.
"""

from __future__ import annotations

from typing import Any

import grpc

from kvstore.wire import kv_pb2, rpc_pb2, v3election_pb2
from tests.compatibility.calls import Calls

Observation = dict[str, Any]

LASTING_S = 60
"""Leases granted for less may be gone when they are looked for, so they are left out."""

ALL_KEYS: dict[str, Any] = {"key": b"\0", "range_end": b"\0"}


def observe(calls: Calls, revision: int, election: bytes) -> Observation:
    """What one member serves. Raises grpc.RpcError, as for a revision that it has not reached."""
    kvs = calls("KV/Range", rpc_pb2.RangeRequest(revision=revision, **ALL_KEYS)).kvs
    hashed = calls("Maintenance/HashKV", rpc_pb2.HashKVRequest(revision=revision))
    listed = calls("Cluster/MemberList", rpc_pb2.MemberListRequest(linearizable=True))
    alarms = calls("Maintenance/Alarm", rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.GET)).alarms
    leader = calls("Election/Leader", v3election_pb2.LeaderRequest(name=election)).kv
    return {
        "cluster_id": listed.header.cluster_id,
        "members": [
            {"id": one.ID, "name": one.name, "peer_urls": list(one.peerURLs), "is_learner": one.isLearner}
            for one in sorted(listed.members, key=lambda one: str(one.name))
        ],
        "alarms": len(alarms),
        "keys": [_pair(kv) for kv in kvs],
        "compacted": hashed.compact_revision,
        "compaction_is_told": _is_refused(calls, hashed.compact_revision - 1),
        "history": _history(calls, hashed.compact_revision + 1, revision),
        "hash": hashed.hash,
        "leases": _leases(calls),
        "elected": _pair(leader),
    }


def differences(expected: Observation, found: Observation) -> list[str]:
    """One line for each part that is not as expected."""
    parts = sorted({*expected, *found})
    return [
        f"{part}: expected {expected.get(part)}, found {found.get(part)}"
        for part in parts
        if expected.get(part) != found.get(part)
    ]


def _text(data: bytes) -> str:
    return data.decode("latin-1")


def _pair(kv: Any) -> list[object]:
    numbers = (kv.create_revision, kv.mod_revision, kv.version, kv.lease)
    return [_text(kv.key), _text(kv.value), *numbers]


def _is_refused(calls: Calls, revision: int) -> bool:
    try:
        calls("KV/Range", rpc_pb2.RangeRequest(revision=revision, **ALL_KEYS))
    except grpc.RpcError as error:
        return "required revision has been compacted" in str(error)
    return False


def _history(calls: Calls, first: int, last: int) -> list[list[object]]:
    """Every change from `first` to `last`, which must itself be the revision of one."""
    create = rpc_pb2.WatchCreateRequest(start_revision=first, **ALL_KEYS)
    changes: list[list[object]] = []
    for reply in calls.stream("Watch/Watch", rpc_pb2.WatchRequest(create_request=create)):
        changes += [
            [kv_pb2.Event.EventType.Name(event.type), *_pair(event.kv)]
            for event in reply.events
            if event.kv.mod_revision <= last
        ]
        if reply.events and reply.events[-1].kv.mod_revision >= last:
            return changes
    raise AssertionError("the watch ended")


def _leases(calls: Calls) -> list[list[object]]:
    """Id, granted time to live in seconds, and attached keys of every lease that lasts."""
    found: list[list[object]] = []
    for lease in calls("Lease/LeaseLeases", rpc_pb2.LeaseLeasesRequest()).leases:
        asked = rpc_pb2.LeaseTimeToLiveRequest(ID=lease.ID, keys=True)
        told = calls("Lease/LeaseTimeToLive", asked)
        if told.grantedTTL >= LASTING_S:
            found.append([lease.ID, told.grantedTTL, sorted(map(_text, told.keys))])
    return sorted(found)

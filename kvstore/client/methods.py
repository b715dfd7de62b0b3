"""The calls of the etcd v3 API that are used, with what may be done when one fails."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import Message

from kvstore.wire import rpc_pb2 as pb
from kvstore.wire import v3election_pb2 as election_pb
from kvstore.wire import v3lock_pb2 as lock_pb

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Reply]):
    path: str
    request: type[Request]
    reply: type[Reply]
    changes: bool
    """True when a second try could apply the request twice."""


class Caller(Protocol):
    """Makes calls: a `Connection`, or its counterpart for a simulated cluster.

    Code written against this protocol can be tested against either.
    """

    async def call(self, method: Method[Request, Reply], request: Request) -> Reply:
        """Make one call. Raises `kvstore.errors.KVError`."""


def _read(name: str, request: type[Request], reply: type[Reply]) -> Method[Request, Reply]:
    """A call, as service and name, that may be made again; the package is that of its messages."""
    return Method(f"/{request.DESCRIPTOR.file.package}.{name}", request, reply, changes=False)


def _change(name: str, request: type[Request], reply: type[Reply]) -> Method[Request, Reply]:
    """A call, as service and name, that is made once; the package is that of its messages."""
    return replace(_read(name, request, reply), changes=True)


RANGE = _read("KV/Range", pb.RangeRequest, pb.RangeResponse)
PUT = _change("KV/Put", pb.PutRequest, pb.PutResponse)
DELETE_RANGE = _change("KV/DeleteRange", pb.DeleteRangeRequest, pb.DeleteRangeResponse)
TXN = _change("KV/Txn", pb.TxnRequest, pb.TxnResponse)
MEMBER_LIST = _read("Cluster/MemberList", pb.MemberListRequest, pb.MemberListResponse)
STATUS = _read("Maintenance/Status", pb.StatusRequest, pb.StatusResponse)
ALARM = _change("Maintenance/Alarm", pb.AlarmRequest, pb.AlarmResponse)
COMPACT = _change("KV/Compact", pb.CompactionRequest, pb.CompactionResponse)
HASH_KV = _read("Maintenance/HashKV", pb.HashKVRequest, pb.HashKVResponse)
DEFRAGMENT = _read("Maintenance/Defragment", pb.DefragmentRequest, pb.DefragmentResponse)
MEMBER_ADD = _change("Cluster/MemberAdd", pb.MemberAddRequest, pb.MemberAddResponse)
MEMBER_REMOVE = _change("Cluster/MemberRemove", pb.MemberRemoveRequest, pb.MemberRemoveResponse)
MEMBER_UPDATE = _change("Cluster/MemberUpdate", pb.MemberUpdateRequest, pb.MemberUpdateResponse)
MEMBER_PROMOTE = _change("Cluster/MemberPromote", pb.MemberPromoteRequest, pb.MemberPromoteResponse)
MOVE_LEADER = _change("Maintenance/MoveLeader", pb.MoveLeaderRequest, pb.MoveLeaderResponse)
LEASE_GRANT = _change("Lease/LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse)
LEASE_REVOKE = _change("Lease/LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse)
LEASE_TIME_TO_LIVE = _read("Lease/LeaseTimeToLive", pb.LeaseTimeToLiveRequest, pb.LeaseTimeToLiveResponse)
LEASE_LEASES = _read("Lease/LeaseLeases", pb.LeaseLeasesRequest, pb.LeaseLeasesResponse)
LOCK = _change("Lock/Lock", lock_pb.LockRequest, lock_pb.LockResponse)
UNLOCK = _change("Lock/Unlock", lock_pb.UnlockRequest, lock_pb.UnlockResponse)
LEASE_KEEP_ALIVE = _read("Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse)
WATCH = _read("Watch/Watch", pb.WatchRequest, pb.WatchResponse)
SNAPSHOT = _read("Maintenance/Snapshot", pb.SnapshotRequest, pb.SnapshotResponse)
CAMPAIGN = _change("Election/Campaign", election_pb.CampaignRequest, election_pb.CampaignResponse)
OBSERVE = _read("Election/Observe", election_pb.LeaderRequest, election_pb.LeaderResponse)
RESIGN = _change("Election/Resign", election_pb.ResignRequest, election_pb.ResignResponse)

"""The calls of the etcd v3 API that are used, with what may be done when one fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import Message

from kvstore.wire import rpc_pb2, v3election_pb2, v3lock_pb2

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Reply]):
    """One unary call."""

    path: str
    request: type[Request]
    reply: type[Reply]
    changes: bool
    """True when a second try could apply the request twice."""


class Caller(Protocol):
    """Whatever makes calls: a `Connection`, or its twin to a simulated cluster. What code that uses the
    store asks for, so that it can be tested against either."""

    async def call(self, method: Method[Request, Reply], request: Request) -> Reply:
        """Make one call. Raises `kvstore.errors.KVError`."""


RANGE = Method("/etcdserverpb.KV/Range", rpc_pb2.RangeRequest, rpc_pb2.RangeResponse, changes=False)
PUT = Method("/etcdserverpb.KV/Put", rpc_pb2.PutRequest, rpc_pb2.PutResponse, changes=True)
DELETE_RANGE = Method(
    "/etcdserverpb.KV/DeleteRange", rpc_pb2.DeleteRangeRequest, rpc_pb2.DeleteRangeResponse, changes=True
)
TXN = Method("/etcdserverpb.KV/Txn", rpc_pb2.TxnRequest, rpc_pb2.TxnResponse, changes=True)
MEMBER_LIST = Method(
    "/etcdserverpb.Cluster/MemberList", rpc_pb2.MemberListRequest, rpc_pb2.MemberListResponse, changes=False
)
STATUS = Method(
    "/etcdserverpb.Maintenance/Status", rpc_pb2.StatusRequest, rpc_pb2.StatusResponse, changes=False
)
ALARM = Method("/etcdserverpb.Maintenance/Alarm", rpc_pb2.AlarmRequest, rpc_pb2.AlarmResponse, changes=True)
COMPACT = Method(
    "/etcdserverpb.KV/Compact", rpc_pb2.CompactionRequest, rpc_pb2.CompactionResponse, changes=True
)
HASH_KV = Method(
    "/etcdserverpb.Maintenance/HashKV", rpc_pb2.HashKVRequest, rpc_pb2.HashKVResponse, changes=False
)
DEFRAGMENT = Method(
    "/etcdserverpb.Maintenance/Defragment",
    rpc_pb2.DefragmentRequest,
    rpc_pb2.DefragmentResponse,
    changes=False,
)
MEMBER_ADD = Method(
    "/etcdserverpb.Cluster/MemberAdd", rpc_pb2.MemberAddRequest, rpc_pb2.MemberAddResponse, changes=True
)
MEMBER_REMOVE = Method(
    "/etcdserverpb.Cluster/MemberRemove",
    rpc_pb2.MemberRemoveRequest,
    rpc_pb2.MemberRemoveResponse,
    changes=True,
)
MEMBER_UPDATE = Method(
    "/etcdserverpb.Cluster/MemberUpdate",
    rpc_pb2.MemberUpdateRequest,
    rpc_pb2.MemberUpdateResponse,
    changes=True,
)
MEMBER_PROMOTE = Method(
    "/etcdserverpb.Cluster/MemberPromote",
    rpc_pb2.MemberPromoteRequest,
    rpc_pb2.MemberPromoteResponse,
    changes=True,
)
MOVE_LEADER = Method(
    "/etcdserverpb.Maintenance/MoveLeader",
    rpc_pb2.MoveLeaderRequest,
    rpc_pb2.MoveLeaderResponse,
    changes=True,
)
LEASE_GRANT = Method(
    "/etcdserverpb.Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest, rpc_pb2.LeaseGrantResponse, changes=True
)
LEASE_REVOKE = Method(
    "/etcdserverpb.Lease/LeaseRevoke", rpc_pb2.LeaseRevokeRequest, rpc_pb2.LeaseRevokeResponse, changes=True
)
LEASE_TIME_TO_LIVE = Method(
    "/etcdserverpb.Lease/LeaseTimeToLive",
    rpc_pb2.LeaseTimeToLiveRequest,
    rpc_pb2.LeaseTimeToLiveResponse,
    changes=False,
)
LEASE_LEASES = Method(
    "/etcdserverpb.Lease/LeaseLeases", rpc_pb2.LeaseLeasesRequest, rpc_pb2.LeaseLeasesResponse, changes=False
)
LOCK = Method("/v3lockpb.Lock/Lock", v3lock_pb2.LockRequest, v3lock_pb2.LockResponse, changes=True)
UNLOCK = Method("/v3lockpb.Lock/Unlock", v3lock_pb2.UnlockRequest, v3lock_pb2.UnlockResponse, changes=True)
CAMPAIGN = Method(
    "/v3electionpb.Election/Campaign",
    v3election_pb2.CampaignRequest,
    v3election_pb2.CampaignResponse,
    changes=True,
)
RESIGN = Method(
    "/v3electionpb.Election/Resign", v3election_pb2.ResignRequest, v3election_pb2.ResignResponse, changes=True
)

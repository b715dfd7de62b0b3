"""A call that waits for a lock or an election keeps no lease alive, neither etcd's nor ours.

etcd makes a session for each such call and stops its keep-alives before it queues (`Session.Orphan`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.message import Message

from bench.clusters import Cluster, pause
from kvstore.wire import rpc_pb2, v3election_pb2, v3lock_pb2

PATIENCE_S = 60.0
TTL_S = 2
"""The shortest that etcd grants with its own election timeout."""

KINDS = {
    "lock": ("v3lockpb.Lock/Lock", v3lock_pb2.LockRequest, v3lock_pb2.LockResponse),
    "campaign": (
        "v3electionpb.Election/Campaign",
        v3election_pb2.CampaignRequest,
        v3election_pb2.CampaignResponse,
    ),
}


class Caller:
    """Calls to one member."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def begin(self, path: str, request: Message, reply: type[Message]) -> grpc.Future:
        call = self._channel.unary_unary(f"/{path}", type(request).SerializeToString, reply.FromString)
        return call.future(request, timeout=PATIENCE_S)

    def lease(self, name: str, request: Message, reply: type[Message]) -> Message:
        return self.begin(f"etcdserverpb.Lease/Lease{name}", request, reply).result()

    def grant(self, ttl_s: int) -> int:
        return self.lease("Grant", rpc_pb2.LeaseGrantRequest(TTL=ttl_s), rpc_pb2.LeaseGrantResponse).ID

    def revoke(self, lease: int) -> None:
        self.lease("Revoke", rpc_pb2.LeaseRevokeRequest(ID=lease), rpc_pb2.LeaseRevokeResponse)

    def is_gone(self, lease: int) -> bool:
        request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease)
        return self.lease("TimeToLive", request, rpc_pb2.LeaseTimeToLiveResponse).TTL == -1

    def keep_alive(self, lease: int) -> int:
        call = self._channel.stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            rpc_pb2.LeaseKeepAliveRequest.SerializeToString,
            rpc_pb2.LeaseKeepAliveResponse.FromString,
        )
        (reply,) = call(iter([rpc_pb2.LeaseKeepAliveRequest(ID=lease)]), timeout=PATIENCE_S)
        return reply.TTL

    def contend(self, kind: str, lease: int) -> grpc.Future:
        path, request, reply = KINDS[kind]
        return self.begin(path, request(name=b"waiting-" + kind.encode(), lease=lease), reply)


@pytest.fixture
def caller(cluster: Cluster) -> Iterator[Caller]:
    """Of a member that may well be no leader."""
    with grpc.insecure_channel(cluster.endpoints[1]) as channel:
        yield Caller(channel)


def test_a_waiting_call_does_not_keep_alive_its_lease(caller: Caller) -> None:
    holder, kept = caller.grant(300), caller.grant(TTL_S)
    for kind in KINDS:
        caller.contend(kind, holder).result()
    left = {kind: caller.grant(TTL_S) for kind in KINDS}
    waiting = {kind: caller.contend(kind, lease) for kind, lease in left.items()}
    kept_alive = {kind: caller.contend(kind, kept) for kind in KINDS}

    began_s = time.monotonic()
    alive = set(left.values())
    while alive or time.monotonic() < began_s + 3 * TTL_S:
        assert time.monotonic() < began_s + PATIENCE_S / 2, "the calls that wait keep their leases alive"
        assert caller.keep_alive(kept) == TTL_S, "the caller's own keep-alives count"
        alive = {lease for lease in alive if not caller.is_gone(lease)}
        pause(TTL_S / 10)
    assert not any(call.done() for call in (*waiting.values(), *kept_alive.values())), "they wait on"

    caller.revoke(holder)
    for kind, call in kept_alive.items():
        assert call.result().header.revision, kind
    caller.revoke(kept)  # should it stand before the others
    refused = waiting["lock"].exception()
    assert refused.code() is grpc.StatusCode.UNKNOWN
    assert refused.details() == "mutex: session is expired"
    waiting["campaign"].exception()  # etcd lets it win without a key: docs/compatibility.md

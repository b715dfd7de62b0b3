"""etcdserverpb.Lease: keys that live as long as their lease is kept alive (`api/v3rpc/lease.go`)."""

from __future__ import annotations

from collections import deque
from functools import partial

from google.protobuf.message import Message

from kvstore.engine import LeaseGrantResult, LeaseResult, Outcome
from kvstore.errors import KVError, NoLeader
from kvstore.lease.lessor import TimeLeft
from kvstore.rpc.call import HAS_LEADER_KEY, Call, Method, reply_to_outcome, reply_unless, reply_with, unary
from kvstore.rpc.convert import Headers
from kvstore.server.local_member import LocalMember
from kvstore.wire import rpc_pb2 as pb

SERVICE = "etcdserverpb.Lease"

KEEP_ALIVES_OPEN_MAX = 1024
"""Keep-alives of one stream without a response; beyond it flow control stops the caller."""


class LeaseService:
    def __init__(self, member: LocalMember, headers: Headers) -> None:
        self._member = member
        self._headers = headers

    def methods(self) -> tuple[Method, ...]:
        rows = unary(
            SERVICE,
            ("LeaseGrant", pb.LeaseGrantRequest, self.grant),
            ("LeaseRevoke", pb.LeaseRevokeRequest, self.revoke),
            ("LeaseTimeToLive", pb.LeaseTimeToLiveRequest, self.time_to_live),
            ("LeaseLeases", pb.LeaseLeasesRequest, self.leases),
        )
        keep_alive = Method(
            service=SERVICE,
            name="LeaseKeepAlive",
            request_type=pb.LeaseKeepAliveRequest,
            opens=lambda call: KeepAliveStream(self._member, self._headers, call),
        )
        return (*rows, keep_alive)

    def grant(self, request: pb.LeaseGrantRequest, call: Call) -> None:
        """Create a lease; id 0 lets this member choose one."""
        self._member.lessor.grant(request.ID, request.TTL, reply_to_outcome(call, self._granted))

    def _granted(self, outcome: LeaseGrantResult) -> Message:
        header = self._headers.at(outcome.revision)
        return pb.LeaseGrantResponse(header=header, ID=outcome.id, TTL=outcome.ttl_seconds)

    def revoke(self, request: pb.LeaseRevokeRequest, call: Call) -> None:
        self._member.lessor.revoke(request.ID, reply_to_outcome(call, self._revoked))

    def _revoked(self, outcome: LeaseResult) -> Message:
        return pb.LeaseRevokeResponse(header=self._headers.at(outcome.revision))

    def time_to_live(self, request: pb.LeaseTimeToLiveRequest, call: Call) -> None:
        """The remaining TTL of a lease. The keys are read here, so this member must first have applied
        everything that the leader had when it answered."""
        self._member.lessor.time_left(request.ID, partial(self._found, call, request))

    def _found(self, call: Call, request: pb.LeaseTimeToLiveRequest, left: Outcome[TimeLeft]) -> None:
        if isinstance(left, KVError):
            call.fail(left)
            return
        make = partial(self._time_left, request, left)
        if request.keys and left.granted_seconds:
            self._member.barrier(partial(reply_unless, call, make))
        else:
            reply_with(call, make)

    def _time_left(self, request: pb.LeaseTimeToLiveRequest, left: TimeLeft) -> Message:
        header = self._headers.current()
        if not left.granted_seconds:
            return pb.LeaseTimeToLiveResponse(header=header, ID=request.ID, TTL=-1)
        return pb.LeaseTimeToLiveResponse(
            header=header,
            ID=request.ID,
            TTL=left.remaining_ms // 1000,
            grantedTTL=left.granted_seconds,
            keys=self._member.engine.leases.keys_of(request.ID) if request.keys else (),
        )

    def leases(self, _request: pb.LeaseLeasesRequest, _call: Call) -> Message:
        """All leases that this member knows, without a request to the others, as in etcd."""
        leases = [pb.LeaseStatus(ID=lease_id) for lease_id in self._member.lessor.leases()]
        return pb.LeaseLeasesResponse(header=self._headers.current(), leases=leases)


class _KeepAlive:
    """One request of a stream; answered in order."""

    __slots__ = ("header", "lease_id", "outcome")

    def __init__(self, lease_id: int, header: pb.ResponseHeader) -> None:
        self.lease_id = lease_id
        self.header = header
        """Filled when the request arrived, as in etcd."""
        self.outcome: Outcome[TimeLeft] | None = None


class KeepAliveStream:
    """The keep-alives of one stream: they wait together and are answered in order."""

    def __init__(self, member: LocalMember, headers: Headers, call: Call) -> None:
        self._member = member
        self._headers = headers
        self._call = call
        self._open: deque[_KeepAlive] = deque()
        """Requests without a response, oldest first. At most KEEP_ALIVES_OPEN_MAX and those read ahead."""
        self._half_closed = False
        self._held = False
        """Flow control has stopped the caller's stream."""
        if call.metadata(HAS_LEADER_KEY) == "true":
            member.leader_loss.add(self._leader_lost)
            call.on_gone(lambda: member.leader_loss.remove(self._leader_lost))

    def receive(self, request: pb.LeaseKeepAliveRequest) -> None:
        """Keep one lease alive. An unknown lease has a TTL of 0."""
        keep_alive = _KeepAlive(request.ID, self._headers.current())
        self._open.append(keep_alive)
        if len(self._open) >= KEEP_ALIVES_OPEN_MAX:
            self._held = True
            self._call.hold_requests()
        self._member.lessor.keep_alive(request.ID, partial(self._kept_alive, keep_alive))

    def half_closed(self) -> None:
        self._half_closed = True
        self._flush()

    def _leader_lost(self) -> None:
        self._call.fail(NoLeader())

    def _kept_alive(self, keep_alive: _KeepAlive, outcome: Outcome[TimeLeft]) -> None:
        keep_alive.outcome = outcome
        self._flush()

    def _flush(self) -> None:
        call = self._call
        while self._open and self._open[0].outcome is not None:
            keep_alive = self._open.popleft()
            outcome = keep_alive.outcome
            if isinstance(outcome, KVError):
                call.fail(outcome)
                return
            assert outcome is not None
            call.send(
                pb.LeaseKeepAliveResponse(
                    header=keep_alive.header, ID=keep_alive.lease_id, TTL=outcome.granted_seconds
                )
            )
        if self._held and len(self._open) < KEEP_ALIVES_OPEN_MAX // 2:
            self._held = False
            call.resume_requests()
        if self._half_closed and not self._open:
            call.finish()

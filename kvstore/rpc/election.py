"""v3electionpb.Election: who comes first leads (`server/etcdserver/api/v3election`)."""

from __future__ import annotations

from functools import partial
from typing import Any

from google.protobuf.message import Message

from kvstore.engine import DeleteRange, Put, Txn
from kvstore.errors import KVError
from kvstore.rpc import convert
from kvstore.rpc.call import Call, Method, reply_with
from kvstore.rpc.headers import Headers
from kvstore.rpc.observe import Observer
from kvstore.rpc.relayed import MissingLeader, NoElectedLeader, relayed
from kvstore.server.local_member import LocalMember
from kvstore.server.lock_queue import Held, LockQueues, NotElected, first_of, is_place, prefix_of
from kvstore.wire import v3election_pb2 as pb

SERVICE = "v3electionpb.Election"


class ElectionService:
    """Elections."""

    def __init__(self, member: LocalMember, headers: Headers, queues: LockQueues) -> None:
        self._member = member
        self._headers = headers
        self._queues = queues

    def methods(self) -> tuple[Method, ...]:
        """The rows of this service."""
        rows = (
            ("Campaign", pb.CampaignRequest, self.campaign, False),
            ("Proclaim", pb.ProclaimRequest, self.proclaim, False),
            ("Leader", pb.LeaderRequest, self.leader, False),
            ("Observe", pb.LeaderRequest, self.observe, True),
            ("Resign", pb.ResignRequest, self.resign, False),
        )
        return tuple(
            Method(
                service=SERVICE,
                name=name,
                request_type=request_type,
                handler=handler,
                streaming=streaming,
                needs_leader=self._member.has_leader,
            )
            for name, request_type, handler, streaming in rows
        )

    def campaign(self, request: pb.CampaignRequest, call: Call) -> None:
        """Wait until the lease leads; a caller that leaves, leaves the queue."""
        settle = partial(self._elected, call, request.name)
        try:
            place = self._queues.enter(
                request.name, request.lease, settle, value=request.value, gone=NotElected
            )
        except KVError as error:
            raise relayed(error) from None
        call.on_gone(place.cancel)

    def _elected(self, call: Call, name: bytes, outcome: Held | KVError) -> None:
        if isinstance(outcome, KVError):
            call.fail(relayed(outcome))
            return
        key = pb.LeaderKey(name=name, key=outcome.key, rev=outcome.create_revision, lease=outcome.lease)
        # etcd's header is that of the moment of queueing up, however long the wait was.
        header = self._headers.at(outcome.entered_revision)
        reply_with(call, lambda: pb.CampaignResponse(header=header, leader=key))

    def proclaim(self, request: pb.ProclaimRequest, call: Call) -> None:
        """Say something else, as long as the key is still that of the campaign."""
        if not request.HasField("leader"):
            raise MissingLeader
        leader = request.leader
        command = Txn((is_place(leader.key, leader.rev),), (Put(leader.key, request.value, leader.lease),))
        try:
            self._member.quota.admit(command)
            self._member.propose(command, partial(self._proclaimed, call))
        except KVError as error:
            raise relayed(error) from None

    def _proclaimed(self, call: Call, outcome: Any) -> None:
        if isinstance(outcome, KVError):
            call.fail(relayed(outcome))
        elif not outcome.succeeded:
            call.fail(NotElected())
        else:
            reply_with(call, lambda: pb.ProclaimResponse(header=self._headers.at(outcome.revision)))

    def resign(self, request: pb.ResignRequest, call: Call) -> None:
        """Delete the key of a campaign. That it is another's by now is no error."""
        if not request.HasField("leader"):
            raise MissingLeader
        leader = request.leader
        command = Txn((is_place(leader.key, leader.rev),), (DeleteRange(leader.key),))
        try:
            self._member.propose(command, partial(self._resigned, call))
        except KVError as error:
            raise relayed(error) from None

    def _resigned(self, call: Call, outcome: Any) -> None:
        if isinstance(outcome, KVError):
            call.fail(relayed(outcome))
        else:
            reply_with(call, lambda: pb.ResignResponse(header=self._headers.at(outcome.revision)))

    def leader(self, request: pb.LeaderRequest, call: Call) -> None:
        """Who leads now."""
        self._member.barrier(partial(self._leader_proven, call, request.name))

    def _leader_proven(self, call: Call, name: bytes, error: KVError | None) -> None:
        if error is not None:
            call.fail(error)
        else:
            reply_with(call, partial(self._leader, name))

    def _leader(self, name: bytes) -> Message:
        result = self._member.engine.range(first_of(prefix_of(name)))
        if not result.kvs:
            raise NoElectedLeader
        return pb.LeaderResponse(
            header=self._headers.at(result.revision), kv=convert.key_value(result.kvs[0])
        )

    def observe(self, request: pb.LeaderRequest, call: Call) -> None:
        """Tell who leads and what they proclaim, until the caller leaves."""
        observer = Observer(self._member, self._headers, request.name, call)
        call.on_gone(observer.cancel)
        call.on_drained(observer.drained)
        self._member.barrier(observer.begin)

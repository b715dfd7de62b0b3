"""v3electionpb.Election: who comes first leads (`server/etcdserver/api/v3election`)."""

from __future__ import annotations

from functools import partial

from google.protobuf.message import Message

from kvstore.engine import DeleteRange, Put, Txn, TxnResult
from kvstore.errors import KVError
from kvstore.rpc import convert
from kvstore.rpc.call import Call, Method, reply_unless, unary
from kvstore.rpc.headers import Headers
from kvstore.rpc.observe import Observer
from kvstore.rpc.relayed import MissingLeader, NoElectedLeader, relay, relayed
from kvstore.server.local_member import LocalMember
from kvstore.server.lock_queue import Held, LockQueues, NotElected, first_of, is_queue_entry, prefix_of
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
        rows = unary(
            SERVICE,
            ("Campaign", pb.CampaignRequest, self.campaign),
            ("Proclaim", pb.ProclaimRequest, self.proclaim),
            ("Leader", pb.LeaderRequest, self.leader),
            ("Resign", pb.ResignRequest, self.resign),
        )
        observe = Method(
            service=SERVICE,
            name="Observe",
            request_type=pb.LeaderRequest,
            handler=self.observe,
            streaming=True,
        )
        return (*rows, observe)

    def campaign(self, request: pb.CampaignRequest, call: Call) -> None:
        """Wait until the lease leads; a caller that leaves, leaves the queue."""
        on_result = partial(relay, call, partial(self._elected, request.name))
        try:
            waiter = self._queues.enter(
                request.name, request.lease, on_result, value=request.value, gone=NotElected
            )
        except KVError as error:
            raise relayed(error) from None
        call.on_gone(waiter.cancel)

    def _elected(self, name: bytes, held: Held) -> Message:
        key = pb.LeaderKey(name=name, key=held.key, rev=held.create_revision, lease=held.lease)
        # etcd's header is that of the moment of queueing up, however long the wait was.
        return pb.CampaignResponse(header=self._headers.at(held.entered_revision), leader=key)

    def proclaim(self, request: pb.ProclaimRequest, call: Call) -> None:
        """Say something else, as long as the key is still that of the campaign."""
        if not request.HasField("leader"):
            raise MissingLeader
        leader = request.leader
        command = Txn(
            (is_queue_entry(leader.key, leader.rev),), (Put(leader.key, request.value, leader.lease),)
        )
        try:
            self._member.quota.admit(command)
            self._member.propose(command, partial(relay, call, self._proclaimed))
        except KVError as error:
            raise relayed(error) from None

    def _proclaimed(self, outcome: TxnResult) -> Message:
        if not outcome.succeeded:
            raise NotElected
        return pb.ProclaimResponse(header=self._headers.at(outcome.revision))

    def resign(self, request: pb.ResignRequest, call: Call) -> None:
        """Delete the key of a campaign. That it is another's by now is no error."""
        if not request.HasField("leader"):
            raise MissingLeader
        leader = request.leader
        command = Txn((is_queue_entry(leader.key, leader.rev),), (DeleteRange(leader.key),))
        try:
            self._member.propose(command, partial(relay, call, self._resigned))
        except KVError as error:
            raise relayed(error) from None

    def _resigned(self, outcome: TxnResult) -> Message:
        return pb.ResignResponse(header=self._headers.at(outcome.revision))

    def leader(self, request: pb.LeaderRequest, call: Call) -> None:
        """Who leads now."""
        self._member.barrier(partial(reply_unless, call, partial(self._leader, request.name)))

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

"""v3electionpb.Election: the candidate at the head of the queue leads
(`server/etcdserver/api/v3election`)."""

from __future__ import annotations

from functools import partial

from google.protobuf.message import Message

from kvstore.engine import DeleteRange, Event, KeyValue, Put, Txn, TxnResult
from kvstore.errors import KVError, NoLeader, RequestError
from kvstore.lease.lock_queue import Held, NotElected, end_of, first_of, is_queue_entry, prefix_of
from kvstore.rpc import convert
from kvstore.rpc.call import HAS_LEADER_KEY, Call, Method, reply_unless, unary
from kvstore.rpc.convert import Headers
from kvstore.rpc.lock_service import as_client_error, reply_as_client
from kvstore.server.local_member import LocalMember
from kvstore.watch.watch_hub import Subscription
from kvstore.wire import v3election_pb2 as pb

SERVICE = "v3electionpb.Election"


class MissingLeader(RequestError):
    text = '"leader" field must be provided'


class NoElectedLeader(RequestError):
    text = "election: no leader"


class ElectionService:
    def __init__(self, member: LocalMember, headers: Headers) -> None:
        self._member = member
        self._headers = headers

    def methods(self) -> tuple[Method, ...]:
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
        """Wait until the lease leads; a caller that leaves withdraws from the queue."""
        on_result = reply_as_client(call, partial(self._elected, request.name))
        try:
            waiter = self._member.lock_queues.enter(
                request.name, request.lease, on_result, value=request.value, gone=NotElected
            )
        except KVError as error:
            raise as_client_error(error) from None
        call.on_gone(waiter.cancel)

    def _elected(self, name: bytes, held: Held) -> Message:
        key = pb.LeaderKey(name=name, key=held.key, rev=held.create_revision, lease=held.lease)
        # As in etcd, the header has the revision at the entry into the queue, however long the wait was.
        return pb.CampaignResponse(header=self._headers.at(held.entered_revision), leader=key)

    def proclaim(self, request: pb.ProclaimRequest, call: Call) -> None:
        """Change the proclaimed value, while the key is still that of the campaign."""
        if not request.HasField("leader"):
            raise MissingLeader
        leader = request.leader
        command = Txn(
            (is_queue_entry(leader.key, leader.rev),), (Put(leader.key, request.value, leader.lease),)
        )
        try:
            self._member.quota.admit(command)
            self._member.propose(command, reply_as_client(call, self._proclaimed))
        except KVError as error:
            raise as_client_error(error) from None

    def _proclaimed(self, outcome: TxnResult) -> Message:
        if not outcome.succeeded:
            raise NotElected
        return pb.ProclaimResponse(header=self._headers.at(outcome.revision))

    def resign(self, request: pb.ResignRequest, call: Call) -> None:
        """Delete the key of a campaign. No error when the key belongs to another campaign by now."""
        if not request.HasField("leader"):
            raise MissingLeader
        leader = request.leader
        command = Txn((is_queue_entry(leader.key, leader.rev),), (DeleteRange(leader.key),))
        try:
            self._member.propose(command, reply_as_client(call, self._resigned))
        except KVError as error:
            raise as_client_error(error) from None

    def _resigned(self, outcome: TxnResult) -> Message:
        return pb.ResignResponse(header=self._headers.at(outcome.revision))

    def leader(self, request: pb.LeaderRequest, call: Call) -> None:
        self._member.barrier(partial(reply_unless, call, partial(self._leader, request.name)))

    def _leader(self, name: bytes) -> Message:
        result = self._member.engine.range(first_of(prefix_of(name)))
        if not result.kvs:
            raise NoElectedLeader
        return pb.LeaderResponse(
            header=self._headers.at(result.revision), kv=convert.key_value(result.kvs[0])
        )

    def observe(self, request: pb.LeaderRequest, call: Call) -> None:
        """Stream the leaders and their proclaimed values, until the caller leaves."""
        observer = Observer(self._member, self._headers, request.name, call)
        call.on_gone(observer.cancel)
        call.on_drained(observer.drained)
        self._member.barrier(observer.begin)


class Observer:
    """Sends the leader's key, each of its puts, then its successor's.

    A caller that reads slowly gets only the newest once it has space again.
    """

    def __init__(self, member: LocalMember, headers: Headers, name: bytes, call: Call) -> None:
        self._member = member
        self._headers = headers
        self._prefix = prefix_of(name)
        self._call = call
        self._leader: bytes | None = None
        """Key of the leader last seen; None while there is none."""
        self._seen_revision = 0
        """Changes up to this revision are sent or superseded."""
        self._unsent: tuple[int, KeyValue] | None = None
        """The newest key that found no space, with its header's revision."""
        self._subscription: Subscription | None = None
        if call.metadata(HAS_LEADER_KEY) == "true":
            member.leader_loss.add(self._leader_lost)

    def begin(self, error: KVError | None) -> None:
        """A read round has confirmed the state of this member: send it, then what follows."""
        if self._call.gone:
            return
        if error is not None:
            self._call.fail(error)
            return
        self._look()
        self._subscribe()

    def cancel(self) -> None:
        self._member.leader_loss.remove(self._leader_lost)
        self._unsubscribe()

    def drained(self) -> None:
        if self._unsent is not None:
            unsent, self._unsent = self._unsent, None
            self._send(*unsent)

    def _leader_lost(self) -> None:
        self._call.fail(NoLeader())

    def _unsubscribe(self) -> None:
        if self._subscription is not None:
            self._subscription.cancel()
            self._subscription = None

    def _subscribe(self) -> None:
        self._unsubscribe()
        self._subscription = self._member.watches.subscribe(
            self._prefix, end_of(self._prefix), 0, self._changed, self._lost
        )

    def _lost(self, _compact_revision: int) -> None:
        """The gap is compacted; only the current leader counts."""
        self._look()
        self._subscribe()

    def _look(self) -> None:
        result = self._member.engine.range(first_of(self._prefix))
        self._seen_revision = result.revision
        self._leader = result.kvs[0].key if result.kvs else None
        if result.kvs:
            self._send(result.revision, result.kvs[0])

    def _changed(self, revision: int, events: list[Event]) -> None:
        for event in events:
            if revision <= self._seen_revision:
                return
            if self._leader is None and not event.is_delete:
                self._leader = event.kv.key
            if event.kv.key != self._leader:
                continue
            if event.is_delete:
                self._look()
            else:
                self._send(revision, event.kv)

    def _send(self, revision: int, leader: KeyValue) -> None:
        if not self._call.has_room:
            self._unsent = (revision, leader)
            return
        self._unsent = None
        header = self._headers.at(revision)
        self._call.send(pb.LeaderResponse(header=header, kv=convert.key_value(leader)))

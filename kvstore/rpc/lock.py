"""v3lockpb.Lock: a lock by name, waited for in the server (`server/etcdserver/api/v3lock`)."""

from __future__ import annotations

from functools import partial

from google.protobuf.message import Message

from kvstore.engine import DeleteRange, DeleteResult, check_delete
from kvstore.errors import KVError
from kvstore.rpc.call import Call, Method, unary
from kvstore.rpc.headers import Headers
from kvstore.rpc.relayed import relay, relayed
from kvstore.server.local_member import LocalMember
from kvstore.server.lock_queue import Held, LockQueues
from kvstore.wire import v3lock_pb2 as pb

SERVICE = "v3lockpb.Lock"


class LockService:
    """Locks."""

    def __init__(self, member: LocalMember, headers: Headers, queues: LockQueues) -> None:
        self._member = member
        self._headers = headers
        self._queues = queues

    def methods(self) -> tuple[Method, ...]:
        """The rows of this service."""
        rows = (("Lock", pb.LockRequest, self.lock), ("Unlock", pb.UnlockRequest, self.unlock))
        return unary(SERVICE, *rows)

    def lock(self, request: pb.LockRequest, call: Call) -> None:
        """Wait until the lease holds the lock; a caller that leaves, leaves the queue."""
        try:
            waiter = self._queues.enter(request.name, request.lease, partial(relay, call, self._locked))
        except KVError as error:
            raise relayed(error) from None
        call.on_gone(waiter.cancel)

    def _locked(self, held: Held) -> Message:
        return pb.LockResponse(header=self._headers.at(held.revision), key=held.key)

    def unlock(self, request: pb.UnlockRequest, call: Call) -> None:
        """Delete the key of a place, whoever asks and whether or not it is there, as in etcd."""
        command = DeleteRange(request.key)
        try:
            check_delete(command)
            self._member.propose(command, partial(relay, call, self._unlocked))
        except KVError as error:
            raise relayed(error) from None

    def _unlocked(self, outcome: DeleteResult) -> Message:
        return pb.UnlockResponse(header=self._headers.at(outcome.revision))

"""v3lockpb.Lock: a lock by name, waited for in the server (`server/etcdserver/api/v3lock`)."""

from __future__ import annotations

from functools import partial
from typing import Any

from kvstore.engine import DeleteRange, check_delete
from kvstore.errors import KVError
from kvstore.rpc.call import Call, Method, reply_with
from kvstore.rpc.headers import Headers
from kvstore.rpc.relayed import relayed
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
        return tuple(
            Method(
                service=SERVICE,
                name=name,
                request_type=request_type,
                handler=handler,
                needs_leader=self._member.has_leader,
            )
            for name, request_type, handler in rows
        )

    def lock(self, request: pb.LockRequest, call: Call) -> None:
        """Wait until the lease holds the lock; a caller that leaves, leaves the queue."""
        try:
            place = self._queues.enter(request.name, request.lease, partial(self._settled, call))
        except KVError as error:
            raise relayed(error) from None
        call.on_gone(place.cancel)

    def _settled(self, call: Call, outcome: Held | KVError) -> None:
        if isinstance(outcome, KVError):
            call.fail(relayed(outcome))
        else:
            header = self._headers.at(outcome.revision)
            reply_with(call, lambda: pb.LockResponse(header=header, key=outcome.key))

    def unlock(self, request: pb.UnlockRequest, call: Call) -> None:
        """Delete the key of a place, whoever asks and whether or not it is there, as in etcd."""
        command = DeleteRange(request.key)
        try:
            check_delete(command)
            self._member.propose(command, partial(self._unlocked, call))
        except KVError as error:
            raise relayed(error) from None

    def _unlocked(self, call: Call, outcome: Any) -> None:
        if isinstance(outcome, KVError):
            call.fail(relayed(outcome))
        else:
            reply_with(call, lambda: pb.UnlockResponse(header=self._headers.at(outcome.revision)))

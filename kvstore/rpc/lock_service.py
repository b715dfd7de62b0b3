"""v3lockpb.Lock: locks by name with waiters in the server (`server/etcdserver/api/v3lock`).

etcd runs Lock and Election as clients of its own store: so their refusals keep the store's text and lose its
code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from google.protobuf.message import Message

from kvstore.engine import DeleteRange, DeleteResult, Outcome, check_delete
from kvstore.engine.results import R
from kvstore.errors import Code, KVError, RequestError
from kvstore.lease.lock_queue import Held
from kvstore.replica.outcome import OnResult
from kvstore.rpc.call import Call, Method, reply_with, unary
from kvstore.rpc.convert import Headers
from kvstore.server.local_member import LocalMember
from kvstore.wire import v3lock_pb2 as pb

SERVICE = "v3lockpb.Lock"


class StoreRefusal(RequestError):
    """A refusal of the store, as a client of it passes it on."""

    code = Code.UNKNOWN


def as_client_error(error: KVError) -> KVError:
    """Failures of the service itself keep their code."""
    return StoreRefusal(error.text) if isinstance(error, RequestError) else error


def reply_as_client(call: Call, make: Callable[[R], Message]) -> OnResult[R]:
    """As `reply_to_outcome`, with the errors of a client of the store."""

    def on_result(outcome: Outcome[R]) -> None:
        if isinstance(outcome, KVError):
            call.fail(as_client_error(outcome))
        else:
            reply_with(call, partial(make, outcome))

    return on_result


class LockService:
    def __init__(self, member: LocalMember, headers: Headers) -> None:
        self._member = member
        self._headers = headers

    def methods(self) -> tuple[Method, ...]:
        rows = (("Lock", pb.LockRequest, self.lock), ("Unlock", pb.UnlockRequest, self.unlock))
        return unary(SERVICE, *rows)

    def lock(self, request: pb.LockRequest, call: Call) -> None:
        """Wait until the lease holds the lock; a caller that leaves withdraws from the queue."""
        try:
            waiter = self._member.lock_queues.enter(
                request.name, request.lease, reply_as_client(call, self._locked)
            )
        except KVError as error:
            raise as_client_error(error) from None
        call.on_gone(waiter.cancel)

    def _locked(self, held: Held) -> Message:
        return pb.LockResponse(header=self._headers.at(held.revision), key=held.key)

    def unlock(self, request: pb.UnlockRequest, call: Call) -> None:
        """Delete the key of a queue entry, for any caller and whether or not it exists, as in etcd."""
        command = DeleteRange(request.key)
        try:
            check_delete(command)
            self._member.propose(command, reply_as_client(call, self._unlocked))
        except KVError as error:
            raise as_client_error(error) from None

    def _unlocked(self, outcome: DeleteResult) -> Message:
        return pb.UnlockResponse(header=self._headers.at(outcome.revision))

"""etcdserverpb.KV: validate, propose or prove, answer (`server/etcdserver/api/v3rpc/key.go`).

Space is asked for before anything is validated, as in etcd: who has none is told so first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from google.protobuf.message import Message

from kvstore.engine import (
    Range,
    Txn,
    check_delete,
    check_put,
    check_range,
    check_txn,
    is_read_only,
    is_serializable,
)
from kvstore.errors import KVError
from kvstore.rpc import convert
from kvstore.rpc.call import Call, Method, reply_to_outcome, reply_unless, unary
from kvstore.rpc.headers import Headers
from kvstore.rpc.range_stream import Pieces
from kvstore.server.compacting import compact
from kvstore.server.local_member import LocalMember
from kvstore.wire import rpc_pb2 as pb

SERVICE = "etcdserverpb.KV"

ConvertResult = Callable[[Any, pb.ResponseHeader], Message]
"""From the engine's result of one kind of command to its reply."""


class KVService:
    """Keys and values."""

    def __init__(self, member: LocalMember, headers: Headers) -> None:
        self._member = member
        self._headers = headers

    def methods(self) -> tuple[Method, ...]:
        """The rows of this service."""
        streamed = Method(
            service=SERVICE,
            name="RangeStream",
            request_type=pb.RangeRequest,
            handler=self.range_stream,
            streaming=True,
        )
        rows = unary(
            SERVICE,
            ("Range", pb.RangeRequest, self.range),
            ("Put", pb.PutRequest, self.put),
            ("DeleteRange", pb.DeleteRangeRequest, self.delete_range),
            ("Txn", pb.TxnRequest, self.txn),
            ("Compact", pb.CompactionRequest, self.compact),
        )
        return (*rows, streamed)

    def range(self, request: pb.RangeRequest, call: Call) -> Message | None:
        """Read an interval: at once when serializable, else after proof that nothing is missed."""
        wanted = convert.range_(request)
        check_range(wanted)
        if wanted.serializable:
            return self._read_range(wanted)
        self._member.barrier(partial(reply_unless, call, partial(self._read_range, wanted)))
        return None

    def _read_range(self, wanted: Range) -> Message:
        result = self._member.engine.range(wanted)
        return convert.range_response(result, self._headers.at(result.revision))

    def range_stream(self, request: pb.RangeRequest, call: Call) -> None:
        """Read an interval in pieces (etcd 3.7); put together they are the answer of `range`.

        Sort orders and filters, which etcd refuses here, are served.
        """
        wanted = convert.range_(request)
        check_range(wanted)
        if wanted.serializable:
            self._range_stream_confirmed(call, wanted, None)
        else:
            self._member.barrier(partial(self._range_stream_confirmed, call, wanted))

    def _range_stream_confirmed(self, call: Call, wanted: Range, error: KVError | None) -> None:
        if error is not None:
            call.fail(error)
        else:
            try:
                result = self._member.engine.range(wanted)
            except KVError as refusal:
                call.fail(refusal)
            else:
                Pieces(call, result, self._headers.at(result.revision)).start()

    def put(self, request: pb.PutRequest, call: Call) -> None:
        """Store one pair."""
        wanted = convert.put(request)
        self._member.quota.admit(wanted)
        check_put(wanted)
        self._member.propose(wanted, partial(self._complete, call, convert.put_response))

    def delete_range(self, request: pb.DeleteRangeRequest, call: Call) -> None:
        """Delete an interval."""
        wanted = convert.delete_range(request)
        check_delete(wanted)
        self._member.propose(wanted, partial(self._complete, call, convert.delete_response))

    def txn(self, request: pb.TxnRequest, call: Call) -> Message | None:
        """One atomic step: compares, then one branch. Without writes it is a read."""
        wanted = convert.txn(request)
        self._member.quota.admit(wanted)
        check_txn(wanted, self._member.limits.txn_operations_max)
        if not is_read_only(wanted):
            self._member.propose(wanted, partial(self._complete, call, convert.txn_response))
            return None
        if is_serializable(wanted):
            return self._read_txn(wanted)
        self._member.barrier(partial(reply_unless, call, partial(self._read_txn, wanted)))
        return None

    def _read_txn(self, wanted: Txn) -> Message:
        result = self._member.engine.read_txn(wanted)
        return convert.txn_response(result, self._headers.at(result.revision))

    def compact(self, request: pb.CompactionRequest, call: Call) -> None:
        """Forget history up to a revision."""
        on_result = partial(self._complete, call, convert.compact_response)
        compact(self._member, request.revision, physical=request.physical, on_result=on_result)

    def _complete(self, call: Call, convert_result: ConvertResult, outcome: Any) -> None:
        """Answer a proposed call with its outcome; the header tells the revision after it."""
        reply_to_outcome(
            call, lambda result: convert_result(result, self._headers.at(result.revision)), outcome
        )

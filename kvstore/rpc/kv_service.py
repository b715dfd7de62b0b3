"""etcdserverpb.KV: validate, propose or confirm the read, reply (`server/etcdserver/api/v3rpc/key.go`).

The quota is checked before the request is validated, as in etcd: NOSPACE comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from google.protobuf.message import Message

from kvstore.engine import (
    CompactResult,
    DeleteResult,
    PutResult,
    Range,
    RangeResult,
    Txn,
    TxnResult,
    check_delete,
    check_put,
    check_range,
    check_txn,
    is_read_only,
    is_serializable,
)
from kvstore.errors import KVError
from kvstore.replica.outcome import OnResult
from kvstore.rpc import convert
from kvstore.rpc.call import Call, Method, reply_to_outcome, reply_unless, unary
from kvstore.rpc.convert import Headers
from kvstore.server.local_member import LocalMember
from kvstore.server.mvcc_compaction import compact
from kvstore.wire import rpc_pb2 as pb

SERVICE = "etcdserverpb.KV"

CHUNK_BYTES = 1024 * 1024
"""Of keys and values in one message of RangeStream, about: far below the 4 MiB that clients take by
default."""

Written = TypeVar("Written", PutResult, DeleteResult, TxnResult, CompactResult)


class KVService:
    def __init__(self, member: LocalMember, headers: Headers) -> None:
        self._member = member
        self._headers = headers

    def methods(self) -> tuple[Method, ...]:
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
        """Read an interval: at once when serializable, else after a read round."""
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
        """Read an interval in chunks (etcd 3.7), which concatenate to the response of `range`.

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
                RangeStream(call, result, self._headers.at(result.revision)).start()

    def put(self, request: pb.PutRequest, call: Call) -> None:
        wanted = convert.put(request)
        self._member.quota.admit(wanted)
        check_put(wanted)
        self._member.propose(wanted, self._reply(call, convert.put_response))

    def delete_range(self, request: pb.DeleteRangeRequest, call: Call) -> None:
        wanted = convert.delete_range(request)
        check_delete(wanted)
        self._member.propose(wanted, self._reply(call, convert.delete_response))

    def txn(self, request: pb.TxnRequest, call: Call) -> Message | None:
        """A transaction without writes is a read."""
        wanted = convert.txn(request)
        self._member.quota.admit(wanted)
        check_txn(wanted, self._member.limits.txn_operations_max)
        if not is_read_only(wanted):
            self._member.propose(wanted, self._reply(call, convert.txn_response))
            return None
        if is_serializable(wanted):
            return self._read_txn(wanted)
        self._member.barrier(partial(reply_unless, call, partial(self._read_txn, wanted)))
        return None

    def _read_txn(self, wanted: Txn) -> Message:
        result = self._member.engine.read_txn(wanted)
        return convert.txn_response(result, self._headers.at(result.revision))

    def compact(self, request: pb.CompactionRequest, call: Call) -> None:
        on_result = self._reply(call, convert.compact_response)
        compact(self._member, request.revision, physical=request.physical, on_result=on_result)

    def _reply(
        self, call: Call, convert_result: Callable[[Written, pb.ResponseHeader], Message]
    ) -> OnResult[Written]:
        """The callback of a proposal; the header has the revision after it."""
        return reply_to_outcome(
            call, lambda result: convert_result(result, self._headers.at(result.revision))
        )


class RangeStream:
    """Sends one result in chunks, as fast as its caller reads.

    The read is complete, at one revision; only the messages are built when the caller has space for them.
    Header, `more` and `count` come with the last chunk.
    """

    def __init__(self, call: Call, result: RangeResult, header: pb.ResponseHeader) -> None:
        self._call = call
        self._result = result
        self._header = header
        self._next = 0
        """Index of the first pair not sent."""
        self._ended = False

    def start(self) -> None:
        self._call.on_drained(self._fill)
        self._fill()

    def _fill(self) -> None:
        call = self._call
        while call.has_room and not self._ended and not call.gone:
            call.send(self._chunk().SerializeToString())
            if self._ended:
                call.finish()

    def _chunk(self) -> pb.RangeStreamResponse:
        begin, pairs = self._next, self._result.kvs
        end, chunk_bytes = begin, 0
        while end < len(pairs) and chunk_bytes < CHUNK_BYTES:
            chunk_bytes += len(pairs[end].key) + len(pairs[end].value)
            end += 1
        self._next = end
        self._ended = end == len(pairs)
        if self._ended:
            last = convert.range_response(self._result._replace(kvs=pairs[begin:]), self._header)
            return pb.RangeStreamResponse(range_response=last)
        return pb.RangeStreamResponse(range_response=convert.range_chunk(pairs[begin:end]))

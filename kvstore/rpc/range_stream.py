"""An answer to a Range in pieces: `KV.RangeStream` of etcd 3.7.

The pieces put together are the answer of Range; header, `more` and `count` come with the last. What
is read is read at once, at one revision; the messages are made when the caller has room for them.
"""

from __future__ import annotations

from kvstore.engine import RangeResult
from kvstore.rpc import convert
from kvstore.rpc.call import Call
from kvstore.wire import rpc_pb2 as pb

PIECE_BYTES = 1024 * 1024
"""Of keys and values in one message, about: well below the 4 MiB that a client takes by default."""


class Pieces:
    """Sends one result, as fast as its caller reads."""

    def __init__(self, call: Call, result: RangeResult, header: pb.ResponseHeader) -> None:
        self._call = call
        self._result = result
        self._header = header
        self._next = 0
        """Pairs before it were sent."""
        self._ended = False

    def start(self) -> None:
        self._call.on_drained(self._fill)
        self._fill()

    def _fill(self) -> None:
        call = self._call
        while call.has_room and not self._ended and not call.gone:
            call.send(self._piece().SerializeToString())
            if self._ended:
                call.finish()

    def _piece(self) -> pb.RangeStreamResponse:
        begin, pairs = self._next, self._result.kvs
        end, held_bytes = begin, 0
        while end < len(pairs) and held_bytes < PIECE_BYTES:
            held_bytes += len(pairs[end].key) + len(pairs[end].value)
            end += 1
        self._next = end
        self._ended = end == len(pairs)
        if self._ended:
            last = convert.range_response(self._result._replace(kvs=pairs[begin:]), self._header)
            return pb.RangeStreamResponse(range_response=last)
        return pb.RangeStreamResponse(range_response=convert.range_piece(pairs[begin:end]))

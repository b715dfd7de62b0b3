"""The handlers on kvstore.http2: no task, future or timer per call.

A call is its own receiver: what arrives on its stream is decoded, answered by the handler, and the reply goes
out with the rest of the loop iteration. Results, codes and texts are those of `grpc_binding`; the errors that
concern no handler have the texts of grpc-go (`kvstore.http2.status`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from google.protobuf.message import Message

from kvstore.errors import Code, KVError, ServerStopped
from kvstore.http2.limits import ServerLimits
from kvstore.http2.server import Http2Server
from kvstore.http2.server_stream import Route, ServerStream
from kvstore.rpc.binding import (
    FRAMING_BYTES_MAX,
    KEEPALIVE_INTERVAL_S,
    KEEPALIVE_TIMEOUT_S,
    UNREAD_LOW_BYTES,
    UNREAD_LOW_MESSAGES,
    UNREAD_MESSAGES_MAX,
    Gate,
    SlowCaller,
    encode,
)
from kvstore.rpc.call import (
    OUTCOME_TRAILER,
    Call,
    HandlerFault,
    Inbound,
    Method,
    answer,
    open_stream,
    outcome_of,
    receive,
)

logger = logging.getLogger("kvstore.rpc")


class Http2Call(Call):
    """What the kinds of calls share. Completed at most once; later results are ignored."""

    __slots__ = ("_completed", "_gate", "_method", "_stream")

    def __init__(self, method: Method, gate: Gate, stream: ServerStream) -> None:
        self.gone = False
        self._on_gone = None
        self._on_drained = None
        self._method = method
        self._gate = gate
        self._stream = stream
        self._completed = False
        """The handler has decided the result."""
        method.statistics.started += 1

    @property
    def peer(self) -> str:
        return self._stream.peer

    def metadata(self, key: str) -> str | None:
        name = key.encode()
        for field, value in self._stream.headers:
            if field == name:
                return value.decode("ascii", "replace")
        return None

    def time_remaining(self) -> float | None:
        return self._stream.time_remaining()

    def hold_requests(self) -> None:
        self._stream.hold()

    def resume_requests(self) -> None:
        self._stream.resume()

    def _fail_stream(self, error: KVError) -> None:
        self._stream.fail(int(error.code), error.text, ((OUTCOME_TRAILER, outcome_of(error)),))

    def _ended(self, code: int) -> None:
        """Once, when the result is on its way or the caller is gone."""
        self._method.statistics.ended(code)
        self._gate.leave(self)

    def _end_by_caller(self, code: int) -> None:
        self._completed = True
        self._ended(code)
        self.mark_gone()


class UnaryCall(Http2Call):
    """One request, one reply."""

    __slots__ = ()

    @property
    def has_room(self) -> bool:
        return True

    def send(self, message: Message | bytes) -> None:
        raise AssertionError("a unary call has one reply")

    def finish(self) -> None:
        raise AssertionError("a unary call ends with its reply")

    def reply(self, message: Message) -> None:
        if self._completed:
            return
        try:
            data = encode(self._method, message)
        except KVError as error:
            self.fail(error)
            return
        self._completed = True
        self._ended(Code.OK)
        self._stream.respond(data)

    def fail(self, error: KVError) -> None:
        if not self._completed:
            self._completed = True
            self._ended(int(error.code))
            self._fail_stream(error)

    # -- the stream's receiver -------------------------------------------------------------------

    def message(self, data: bytes) -> None:
        method = self._method
        method.statistics.received_bytes += len(data)
        try:
            if not self._gate.is_open:
                raise ServerStopped
            message = answer(method, data, self)
        except KVError as error:
            self.fail(error)
            return
        if message is not None:
            self.reply(message)
        elif not self._completed:
            self._gate.enter(self)

    def half_closed(self) -> None:
        raise AssertionError("of a single request only the message counts")

    def drained(self) -> None:
        raise AssertionError("a unary call has one reply")

    def closed(self) -> None:
        """An error is on its way, which is counted already."""

    def ended_by_caller(self, code: int) -> None:
        if not self._completed:
            self._end_by_caller(code)


class StreamingCall(Http2Call):
    """Replies are a stream. The handler's result is kept until everything before it has left."""

    __slots__ = ("_code",)

    def __init__(self, method: Method, gate: Gate, stream: ServerStream) -> None:
        super().__init__(method, gate, stream)
        self._code = 0
        """Of the handler's result."""
        stream.begin_replies()

    @property
    def has_room(self) -> bool:
        stream = self._stream
        unsent = stream.unsent_messages
        if stream.is_congested and unsent:
            return False
        return unsent < UNREAD_LOW_MESSAGES and stream.unsent_bytes < UNREAD_LOW_BYTES

    def send(self, message: Message | bytes) -> None:
        if self.gone or self._completed:
            return
        if self._stream.unsent_messages >= UNREAD_MESSAGES_MAX:
            self.fail(SlowCaller())
            return
        try:
            self._stream.send(encode(self._method, message))
        except KVError as error:
            self.fail(error)

    def reply(self, message: Message) -> None:
        raise AssertionError("replies of a stream are sent")

    def finish(self) -> None:
        if not (self.gone or self._completed):
            self._completed = True
            self._stream.finish()

    def fail(self, error: KVError) -> None:
        if not (self.gone or self._completed):
            self._completed = True
            self._code = int(error.code)
            self._fail_stream(error)

    # -- the stream's receiver -------------------------------------------------------------------

    def message(self, data: bytes) -> None:
        raise NotImplementedError

    def drained(self) -> None:
        if self._on_drained is not None:
            try:
                self._on_drained()
            except Exception:
                logger.exception("filling a stream of %s failed", self.peer)
                self.fail(HandlerFault())

    def closed(self) -> None:
        self._ended(self._code)
        self.mark_gone()

    def ended_by_caller(self, code: int) -> None:
        self._end_by_caller(code)


class ServerStreamCall(StreamingCall):
    """One request, a stream of replies."""

    __slots__ = ()

    def message(self, data: bytes) -> None:
        self._method.statistics.received_bytes += len(data)
        try:
            if not self._gate.is_open:
                raise ServerStopped
            answer(self._method, data, self)
        except KVError as error:
            self.fail(error)
        if not self._completed:
            self._gate.enter(self)

    def half_closed(self) -> None:
        raise AssertionError("of a single request only the message counts")


class DuplexCall(StreamingCall):
    """A stream of requests, a stream of replies."""

    __slots__ = ("_inbound",)

    def __init__(self, method: Method, gate: Gate, stream: ServerStream) -> None:
        super().__init__(method, gate, stream)
        self._inbound: Inbound | None = None

    def start(self) -> None:
        """Open the handler's side."""
        try:
            if not self._gate.is_open:
                raise ServerStopped
            self._inbound = open_stream(self._method, self)
        except KVError as error:
            self.fail(error)
        if not self._completed:
            self._gate.enter(self)

    def message(self, data: bytes) -> None:
        self._method.statistics.received_bytes += len(data)
        self._receive(data)

    def half_closed(self) -> None:
        self._receive(None)

    def _receive(self, data: bytes | None) -> None:
        assert self._inbound is not None
        try:
            receive(self._method, self._inbound, data)
        except KVError as error:
            self.fail(error)


def _open_duplex(method: Method, gate: Gate, stream: ServerStream) -> DuplexCall:
    call = DuplexCall(method, gate, stream)
    stream.receiver = call
    call.start()
    return call


def _route(method: Method, gate: Gate) -> Route:
    if method.opens is not None:
        return Route(partial(_open_duplex, method, gate), is_single=False)
    kind = ServerStreamCall if method.streaming else UnaryCall
    return Route(partial(kind, method, gate), is_single=True)


def make_http2_server(
    methods: Sequence[Method],
    *,
    request_bytes_max: int,
    gate: Gate | None = None,
    keepalive_interval_s: float = KEEPALIVE_INTERVAL_S,
    keepalive_timeout_s: float = KEEPALIVE_TIMEOUT_S,
) -> Http2Server:
    """A server for these methods on libnghttp2, not yet bound to any address; see `make_grpc_server`."""
    limits = ServerLimits(
        message_bytes=request_bytes_max + FRAMING_BYTES_MAX,
        keepalive_interval_s=keepalive_interval_s,
        keepalive_timeout_s=keepalive_timeout_s,
    )
    shared = gate or Gate()
    routes = {method.path.encode(): _route(method, shared) for method in methods}
    return Http2Server(routes, limits, asyncio.get_running_loop())

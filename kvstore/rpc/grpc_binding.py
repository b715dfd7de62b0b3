"""The handlers on grpc.aio: the reference binding.

Generic handlers over bytes: this module decodes and encodes the messages, so that every failure has a
deliberate status. The status text is exactly the error's text; a trailer carries whether the request may have
been applied.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import NoReturn

import grpc
import grpc.aio
from google.protobuf.message import Message

from kvstore.errors import Code, KVError, ServerStopped
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

STATUS_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class GrpcCall(Call):
    """A call carried by grpc.aio. Completed at most once; later results are ignored."""

    __slots__ = (
        "_context",
        "_finished",
        "_held",
        "_metadata",
        "_pending",
        "_unread",
        "_unread_bytes",
        "completed",
    )

    def __init__(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        super().__init__()
        self._context = context
        self._metadata: dict[str, str] | None = None
        self._pending: asyncio.Future[None] | None = None
        """Awaited by the binding's coroutine; created only for a call that does not complete at once."""
        self._unread: deque[Message | bytes] = deque()
        """Messages of a streaming reply not yet taken. Invariant: at most UNREAD_MESSAGES_MAX."""
        self._unread_bytes = 0
        """Of the unread messages that are bytes."""
        self._finished = False
        """The streaming reply is complete when `_unread` is empty."""
        self._held: asyncio.Future[None] | None = None
        """While requests are held: awaited by the reader of the caller's stream."""
        self.completed: Message | KVError | None = None

    @property
    def peer(self) -> str:
        return str(self._context.peer())

    def metadata(self, key: str) -> str | None:
        if self._metadata is None:
            pairs = self._context.invocation_metadata() or ()
            self._metadata = {}
            for name, value in pairs:
                if isinstance(value, str):
                    self._metadata.setdefault(name, value)
        return self._metadata.get(key)

    def time_remaining(self) -> float | None:
        return self._context.time_remaining()

    def reply(self, message: Message) -> None:
        self._complete(message)

    def fail(self, error: KVError) -> None:
        self._complete(error)

    def send(self, message: Message | bytes) -> None:
        if self.gone or self.completed is not None or self._finished:
            return
        if len(self._unread) >= UNREAD_MESSAGES_MAX:
            self._complete(SlowCaller())
            return
        self._unread.append(message)
        if type(message) is bytes:
            self._unread_bytes += len(message)
        self._rouse()

    @property
    def has_room(self) -> bool:
        return len(self._unread) < UNREAD_LOW_MESSAGES and self._unread_bytes < UNREAD_LOW_BYTES

    def finish(self) -> None:
        self._finished = True
        self._rouse()

    def hold_requests(self) -> None:
        if self._held is None:
            self._held = asyncio.get_running_loop().create_future()

    def resume_requests(self) -> None:
        held, self._held = self._held, None
        if held is not None and not held.done():
            held.set_result(None)

    async def requests_wanted(self) -> None:
        while self._held is not None:
            await self._held

    def _complete(self, result: Message | KVError) -> None:
        if self.gone or self.completed is not None:
            return
        self.completed = result
        self._rouse()

    def _rouse(self) -> None:
        if self._pending is not None and not self._pending.done():
            self._pending.set_result(None)

    async def result(self) -> Message:
        """Wait for the reply. Raises KVError."""
        if self.completed is None:
            self._pending = asyncio.get_running_loop().create_future()
            await self._pending
        assert self.completed is not None
        if isinstance(self.completed, KVError):
            raise self.completed
        return self.completed

    def _call_drained(self) -> None:
        if self._on_drained is not None:
            try:
                self._on_drained()
            except Exception:
                logger.exception("filling a stream of %s failed", self.peer)
                raise HandlerFault from None

    async def messages(self) -> AsyncIterator[Message | bytes]:
        """The streaming reply, until the call completes or its caller is gone. Raises KVError."""
        while True:
            while self._unread:
                message = self._unread.popleft()
                if type(message) is bytes:
                    self._unread_bytes -= len(message)
                yield message
            if isinstance(self.completed, KVError):
                raise self.completed
            if self._finished:
                return
            self._pending = asyncio.get_running_loop().create_future()
            self._call_drained()
            if not self._unread:
                await self._pending


async def _abort(method: Method, context: grpc.aio.ServicerContext[bytes, bytes], error: KVError) -> NoReturn:
    method.statistics.ended(int(error.code))
    trailer = ((OUTCOME_TRAILER, outcome_of(error)),)
    await context.abort(STATUS_CODES[int(error.code)], error.text, trailer)
    raise AssertionError("abort always raises")


async def _end(reader: asyncio.Task[None] | None) -> None:
    """Stop the task that reads a caller's requests, and await it."""
    if reader is not None:
        reader.cancel()
        await asyncio.wait([reader])
        if not reader.cancelled() and reader.exception() is not None:
            logger.debug("reading requests ended: %r", reader.exception())


class _Behaviour:
    """Runs one method for grpc.aio."""

    def __init__(self, method: Method, gate: Gate) -> None:
        self._method = method
        self._statistics = method.statistics
        self._gate = gate

    async def unary(self, data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        self._statistics.started += 1
        self._statistics.received_bytes += len(data)
        call = GrpcCall(context)
        try:
            message = self._answer(data, call)
            if message is None:
                self._gate.enter(call)
                message = await call.result()
            reply = encode(self._method, message)
        except KVError as error:
            await _abort(self._method, context, error)
        except asyncio.CancelledError:
            self._statistics.ended(Code.CANCELLED)
            call.mark_gone()
            raise
        finally:
            self._gate.leave(call)
        self._statistics.ended(Code.OK)
        return reply

    async def stream(
        self, data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        self._statistics.started += 1
        self._statistics.received_bytes += len(data)
        call = GrpcCall(context)
        try:
            self._answer(data, call)
            self._gate.enter(call)
            async for message in call.messages():
                yield encode(self._method, message)
        except KVError as error:
            call.mark_gone()
            await _abort(self._method, context, error)
        except (asyncio.CancelledError, GeneratorExit):
            self._statistics.ended(Code.CANCELLED)
            call.mark_gone()
            raise
        finally:
            self._gate.leave(call)
        self._statistics.ended(Code.OK)
        call.mark_gone()

    async def duplex(self, _requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """A stream of requests, a stream of replies: this task writes, another one reads."""
        self._statistics.started += 1
        call = GrpcCall(context)
        reader: asyncio.Task[None] | None = None
        try:
            if not self._gate.is_open:
                raise ServerStopped
            inbound = open_stream(self._method, call)
            self._gate.enter(call)
            reader = asyncio.get_running_loop().create_task(self._read(inbound, call, context))
            async for message in call.messages():
                await context.write(encode(self._method, message))
        except KVError as error:
            call.mark_gone()
            await _end(reader)
            await _abort(self._method, context, error)
        except BaseException:  # cancelled, or the connection broke under a write
            self._statistics.ended(Code.CANCELLED)
            call.mark_gone()
            await _end(reader)
            raise
        finally:
            self._gate.leave(call)
        call.mark_gone()
        await _end(reader)
        self._statistics.ended(Code.OK)

    async def _read(
        self, inbound: Inbound, call: GrpcCall, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        while not call.gone:
            data = await context.read()
            try:
                if not isinstance(data, bytes):  # grpc.aio.EOF
                    receive(self._method, inbound, None)
                    return
                self._statistics.received_bytes += len(data)
                receive(self._method, inbound, data)
            except KVError as error:
                call.fail(error)
                return
            await call.requests_wanted()

    def _answer(self, data: bytes, call: Call) -> Message | None:
        if not self._gate.is_open:
            raise ServerStopped
        return answer(self._method, data, call)


class _Handlers(grpc.GenericRpcHandler):
    """Finds the method of a path; grpc answers an unknown path with Unimplemented."""

    def __init__(self, methods: Iterable[Method], gate: Gate) -> None:
        self._by_path: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {}
        handler: grpc.RpcMethodHandler[bytes, bytes]
        for method in methods:
            behaviour = _Behaviour(method, gate)
            if method.opens is not None:
                handler = grpc.stream_stream_rpc_method_handler(behaviour.duplex)
            elif method.streaming:
                handler = grpc.unary_stream_rpc_method_handler(behaviour.stream)
            else:
                handler = grpc.unary_unary_rpc_method_handler(behaviour.unary)
            self._by_path[method.path] = handler

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        return self._by_path.get(handler_call_details.method)


def make_grpc_server(
    methods: Sequence[Method],
    *,
    request_bytes_max: int,
    gate: Gate | None = None,
    keepalive_interval_s: float = KEEPALIVE_INTERVAL_S,
    keepalive_timeout_s: float = KEEPALIVE_TIMEOUT_S,
) -> grpc.aio.Server:
    """A grpc.aio server for these methods, not yet bound to any address.

    Once the gate is shut, every call is refused as by a stopped server.

    Two servers must never share a port, replies have no size limit, and clients may ping at any rate
    (aetcd pings idle connections every 6 s, Kubernetes every 30 s).
    """
    timeout_ms = round(1000 * keepalive_timeout_s)
    options = [
        ("grpc.so_reuseport", 0),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", request_bytes_max + FRAMING_BYTES_MAX),
        ("grpc.keepalive_time_ms", round(1000 * keepalive_interval_s)),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        ("grpc.http2.ping_timeout_ms", timeout_ms),  # the longer one of the two counts
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 1),
        ("grpc.http2.max_ping_strikes", 0),
    ]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((_Handlers(methods, gate or Gate()),))
    return server

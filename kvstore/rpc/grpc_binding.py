"""The handlers on grpc.aio: the reference binding.

Generic handlers over bytes: the messages are parsed and made by us, so that every failure has a
status on purpose. The status text is exactly the error's text; a trailer says whether the request
may have been applied.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import NoReturn

import grpc
import grpc.aio
from google.protobuf.message import EncodeError, Message

from kvstore.errors import Code, KVError, ServerStopped
from kvstore.rpc.call import OUTCOME_TRAILER, Call, HandlerFault, Method, answer, outcome_of

logger = logging.getLogger("kvstore.rpc")

FRAMING_BYTES_MAX = 512 * 1024
"""What a message may be larger than a request, as in etcd (`grpcOverheadBytes`)."""

UNREAD_MESSAGES_MAX = 1024
"""Messages of one streaming reply that wait for its caller; a slower caller's call is ended."""

KEEPALIVE_INTERVAL_MS = 2 * 60 * 60 * 1000
KEEPALIVE_TIMEOUT_MS = 20_000
"""When an idle caller is asked for a sign of life, and how long it may take: etcd's defaults."""

STATUS_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class SlowCaller(KVError):
    code, text = Code.RESOURCE_EXHAUSTED, "kvstore: the caller reads too slowly"


class GrpcCall(Call):
    """A call carried by grpc.aio. Settled at most once; later settlements are ignored."""

    __slots__ = ("_context", "_metadata", "_pending", "_unread", "_wake", "settled")

    def __init__(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        super().__init__()
        self._context = context
        self._metadata: dict[str, str] | None = None
        self._pending: asyncio.Future[None] | None = None
        """What the binding's coroutine awaits; only made for a call that is not settled at once."""
        self._unread: deque[Message] = deque()
        """Messages of a streaming reply not yet taken. Invariant: at most UNREAD_MESSAGES_MAX."""
        self.settled: Message | KVError | None = None

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
        self._settle(message)

    def fail(self, error: KVError) -> None:
        self._settle(error)

    def send(self, message: Message) -> None:
        if self.gone or self.settled is not None:
            return
        if len(self._unread) >= UNREAD_MESSAGES_MAX:
            self._settle(SlowCaller())
            return
        self._unread.append(message)
        self._rouse()

    def _settle(self, result: Message | KVError) -> None:
        if self.gone or self.settled is not None:
            return
        self.settled = result
        self._rouse()

    def _rouse(self) -> None:
        if self._pending is not None and not self._pending.done():
            self._pending.set_result(None)

    async def result(self) -> Message:
        """The reply, when there is one. Raises KVError."""
        if self.settled is None:
            self._pending = asyncio.get_running_loop().create_future()
            await self._pending
        assert self.settled is not None
        if isinstance(self.settled, KVError):
            raise self.settled
        return self.settled

    async def messages(self) -> AsyncIterator[Message]:
        """The streaming reply, until the call fails or its caller is gone. Raises KVError."""
        while True:
            while self._unread:
                yield self._unread.popleft()
            if isinstance(self.settled, KVError):
                raise self.settled
            self._pending = asyncio.get_running_loop().create_future()
            await self._pending


async def _abort(method: Method, context: grpc.aio.ServicerContext[bytes, bytes], error: KVError) -> NoReturn:
    """End a call with the error's code and text and its outcome trailer."""
    method.statistics.ended(int(error.code))
    trailer = ((OUTCOME_TRAILER, outcome_of(error)),)
    await context.abort(STATUS_CODES[int(error.code)], error.text, trailer)
    raise AssertionError("abort always raises")


class _Behaviour:
    """Runs one method for grpc.aio."""

    def __init__(self, method: Method, is_serving: Callable[[], bool]) -> None:
        self._method = method
        self._statistics = method.statistics
        self._is_serving = is_serving

    async def unary(self, data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        """One request, one reply."""
        self._statistics.started += 1
        self._statistics.received_bytes += len(data)
        call = GrpcCall(context)
        try:
            message = self._answer(data, call)
            if message is None:
                message = await call.result()
            reply = self._encode(message)
        except KVError as error:
            await _abort(self._method, context, error)
        except asyncio.CancelledError:
            self._statistics.ended(Code.CANCELLED)
            call.mark_gone()
            raise
        self._statistics.ended(Code.OK)
        return reply

    async def stream(
        self, data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        """One request, a stream of replies."""
        self._statistics.started += 1
        self._statistics.received_bytes += len(data)
        call = GrpcCall(context)
        try:
            self._answer(data, call)
            async for message in call.messages():
                yield self._encode(message)
        except KVError as error:
            call.mark_gone()
            await _abort(self._method, context, error)
        except (asyncio.CancelledError, GeneratorExit):
            self._statistics.ended(Code.CANCELLED)
            call.mark_gone()
            raise

    def _answer(self, data: bytes, call: Call) -> Message | None:
        if not self._is_serving():
            raise ServerStopped
        return answer(self._method, data, call)

    def _encode(self, message: Message) -> bytes:
        try:
            data = message.SerializeToString()
        except (ValueError, EncodeError):  # larger than a message can be
            logger.exception("a reply of %s cannot be encoded", self._method.path)
            raise HandlerFault from None
        self._statistics.sent_bytes += len(data)
        return data


class _Handlers(grpc.GenericRpcHandler):
    """Finds the method of a path; what it does not know grpc answers with Unimplemented."""

    def __init__(self, methods: Iterable[Method], is_serving: Callable[[], bool]) -> None:
        self._by_path: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {}
        for method in methods:
            behaviour = _Behaviour(method, is_serving)
            self._by_path[method.path] = (
                grpc.unary_stream_rpc_method_handler(behaviour.stream)
                if method.streaming
                else grpc.unary_unary_rpc_method_handler(behaviour.unary)
            )

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        return self._by_path.get(handler_call_details.method)


def make_grpc_server(
    methods: Sequence[Method], *, request_bytes_max: int, is_serving: Callable[[], bool] = lambda: True
) -> grpc.aio.Server:
    """A grpc.aio server for these methods, not yet bound to any address.

    Once `is_serving` turns false, every call is refused as by a stopped server.

    Two servers must never share a port, replies have no size limit, and clients may ping as they
    like (aetcd pings idle connections every 6 s, Kubernetes every 30 s).
    """
    options = [
        ("grpc.so_reuseport", 0),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", request_bytes_max + FRAMING_BYTES_MAX),
        ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 1),
        ("grpc.http2.max_ping_strikes", 0),
    ]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((_Handlers(methods, is_serving),))
    return server

"""The client's side of HTTP/2: calls against grpc.aio's server and ours, and how each of them ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from kvstore.http2 import client
from kvstore.http2.client_connection import CallEnd, ClientConnection, ClientLimits, ConnectionEnd
from kvstore.http2.connection import Runtime
from kvstore.http2.engine import ENHANCE_YOUR_CALM, EngineBounds, EngineError, server_engine
from kvstore.http2.limits import ServerLimits
from kvstore.http2.server import Http2Server
from kvstore.http2.server_stream import Route, ServerStream
from kvstore.http2.status import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    INTERNAL,
    INVALID_ARGUMENT,
    OK,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    UNKNOWN,
)

pytestmark = pytest.mark.asyncio

MESSAGE_BYTES_MAX = 4 << 20
LIMITS = ClientLimits(message_bytes=MESSAGE_BYTES_MAX)
UNARY, STREAM = b"/test.Echo/Unary", b"/test.Echo/Stream"


class Echo:
    """Our server's receiver: sends requests back, obeys some, and notes how the call ended."""

    def __init__(self, stream: ServerStream, ends: list[int], *, is_single: bool) -> None:
        self.stream = stream
        self.ends = ends
        self.is_single = is_single
        if not is_single:
            stream.begin_replies()

    def message(self, data: bytes) -> None:
        if data == b"fail":
            self.stream.fail(INVALID_ARGUMENT, "not thät", [("why", "a reason")])
        elif data != b"wait":
            (self.stream.respond if self.is_single else self.stream.send)(data)

    def half_closed(self) -> None:
        if not self.is_single:
            self.stream.finish()

    def drained(self) -> None:
        pass

    def closed(self) -> None:
        pass

    def ended_by_caller(self, code: int) -> None:
        self.ends.append(code)


class Recorder:
    """A call's receiver that lets a test wait."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.end: CallEnd | None = None
        self.drains = 0
        self._news = asyncio.Event()

    def message(self, data: bytes) -> None:
        assert self.end is None
        self.messages.append(data)
        self._news.set()

    def drained(self) -> None:
        self.drains += 1
        self._news.set()

    def ended(self, end: CallEnd) -> None:
        assert self.end is None
        self.end = end
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._news.clear()
                await self._news.wait()


class Harness:
    """A server of either kind, and connections to it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.runtime = Runtime(asyncio.get_running_loop())
        self.ends: list[int] = []
        """Codes with which calls ended on our server without its doing."""
        self.port = 0
        self.server: Any = None
        self.connections: list[ClientConnection] = []

    async def start(self) -> None:
        if self.kind == "ngh2":
            routes = {
                UNARY: Route(lambda stream: Echo(stream, self.ends, is_single=True), is_single=True),
                STREAM: Route(lambda stream: Echo(stream, self.ends, is_single=False), is_single=False),
            }
            limits = ServerLimits(message_bytes=MESSAGE_BYTES_MAX, engine=EngineBounds(streams=100))
            self.server = Http2Server(routes, limits, asyncio.get_running_loop())
        else:
            self.server = grpc.aio.server()
            self.server.add_generic_rpc_handlers((self._handlers(),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()

    def _handlers(self) -> grpc.GenericRpcHandler:
        async def unary(data: bytes, context: Any) -> bytes:
            if data == b"fail":
                context.set_trailing_metadata([("why", "a reason")])
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not thät")
            if data == b"wait":
                await asyncio.get_running_loop().create_future()
            return data

        async def stream(requests: AsyncIterator[bytes], context: Any) -> None:
            async for data in requests:
                await context.write(await unary(data, context))

        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(unary),
            "Stream": grpc.stream_stream_rpc_method_handler(stream),
        }
        return grpc.method_handlers_generic_handler("test.Echo", handlers)

    async def connect(self, limits: ClientLimits = LIMITS, **options: Any) -> ClientConnection:
        connection = await client.connect(self.runtime, "127.0.0.1", self.port, limits, **options)
        self.connections.append(connection)
        return connection

    async def close(self) -> None:
        for connection in self.connections:
            connection.close()
        await self.server.stop(None)
        self.runtime.wheel.close()


@pytest_asyncio.fixture(params=["ngh2", "grpcio"])
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    made = Harness(request.param)
    await made.start()
    yield made
    await made.close()


@pytest.mark.parametrize("size", [0, 1, 20_000, 3 << 20])
async def test_a_call_is_answered_whatever_its_size(harness: Harness, size: int) -> None:
    connection = await harness.connect()
    request = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert await client.call(connection, UNARY, request) == request
    assert await client.call(connection, UNARY, b"again") == b"again"


async def test_many_calls_share_a_connection(harness: Harness) -> None:
    connection = await harness.connect()
    requests = [b"%d" % number for number in range(300)]  # more than the server admits at once
    assert await asyncio.gather(*(client.call(connection, UNARY, one) for one in requests)) == requests


async def test_an_error_carries_its_text_and_metadata(harness: Harness) -> None:
    connection = await harness.connect()
    with pytest.raises(client.CallError, match="not thät") as raised:
        await client.call(connection, UNARY, b"fail")
    assert raised.value.end.code == INVALID_ARGUMENT
    assert (b"why", b"a reason") in raised.value.end.trailers


async def test_an_unknown_method_is_an_error(harness: Harness) -> None:
    connection = await harness.connect()
    with pytest.raises(client.CallError) as raised:
        await client.call(connection, b"/test.Echo/Other", b"x")
    assert raised.value.end.code == UNIMPLEMENTED


async def test_a_deadline_ends_the_call_on_both_sides(harness: Harness) -> None:
    connection = await harness.connect()
    with pytest.raises(client.CallError) as raised:
        await client.call(connection, UNARY, b"wait", timeout_s=0.05)
    assert raised.value.end.code == DEADLINE_EXCEEDED
    assert await client.call(connection, UNARY, b"next", timeout_s=60.0) == b"next"


async def test_a_stream_runs_both_ways_and_ends_after_the_last_reply(harness: Harness) -> None:
    connection, recorder = await harness.connect(), Recorder()
    stream = connection.open(STREAM, recorder)
    sent = [b"a", bytes(1 << 20), b"", b"z" * 70_000]
    for message in sent:
        stream.send(message)
    stream.half_close()
    await recorder.until(lambda: recorder.end is not None)
    assert recorder.messages == sent
    assert recorder.end is not None
    assert recorder.end.code == OK


async def test_a_stream_is_writable_once_what_was_sent_has_left(harness: Harness) -> None:
    connection, recorder = await harness.connect(), Recorder()
    stream = connection.open(STREAM, recorder)
    await recorder.until(lambda: recorder.drains == 1)
    assert stream.is_writable
    stream.send(b"x")
    assert not stream.is_writable
    await recorder.until(lambda: recorder.drains == 2 and recorder.messages == [b"x"])
    assert stream.is_writable


async def test_a_cancelled_call_reports_nothing_and_frees_the_server() -> None:
    harness = Harness("ngh2")
    await harness.start()
    connection, recorder = await harness.connect(), Recorder()
    stream = connection.open(STREAM, recorder)
    stream.send(b"x")
    await recorder.until(lambda: bool(recorder.messages))
    stream.cancel()
    assert await client.call(connection, UNARY, b"next") == b"next"
    assert harness.ends == [CANCELLED]
    assert recorder.end is None
    await harness.close()


async def test_the_loss_of_the_connection_ends_its_calls(harness: Harness) -> None:
    ends: list[ConnectionEnd] = []
    connection = await harness.connect(on_end=ends.append)
    assert await client.call(connection, UNARY, b"x") == b"x"
    recorder = Recorder()
    connection.open(UNARY, recorder).send(b"wait")
    await recorder.until(lambda: recorder.drains > 0)
    connection.transport.abort()  # as if the peer had
    await recorder.until(lambda: recorder.end is not None)
    assert recorder.end is not None
    assert (recorder.end.code, recorder.end.is_connection_lost) == (UNAVAILABLE, True)
    assert [end.is_by_peer for end in ends] == [True]
    with pytest.raises(EngineError):
        connection.open(UNARY, recorder)


async def test_closing_reports_nothing(harness: Harness) -> None:
    ends: list[ConnectionEnd] = []
    connection, recorder = await harness.connect(on_end=ends.append), Recorder()
    connection.open(STREAM, recorder)
    connection.close()
    await asyncio.sleep(0)
    assert (recorder.end, ends) == (None, [])


async def test_a_reply_beyond_the_limit_ends_the_call_alone(harness: Harness) -> None:
    connection = await harness.connect(ClientLimits(message_bytes=1000))
    with pytest.raises(client.CallError) as raised:
        await client.call(connection, UNARY, bytes(1001))
    assert raised.value.end.code == RESOURCE_EXHAUSTED
    assert await client.call(connection, UNARY, bytes(1000)) == bytes(1000)


class Scripted(asyncio.Protocol):
    """A server that answers the first bytes with those of its script, and then says nothing, or closes."""

    def __init__(self, script: bytes, *, closes: bool) -> None:
        self.script = script
        self.closes = closes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        script, self.script = self.script, b""
        self.transport.write(script)
        if self.closes:
            self.transport.close()


async def scripted(script: bytes, *, closes: bool = False) -> tuple[asyncio.Server, int]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Scripted(script, closes=closes), "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


def settings() -> bytes:
    return server_engine(EngineBounds(streams=16)).data_to_send()


def replies(headers: list[tuple[bytes, bytes]], data: bytes = b"") -> bytes:
    """SETTINGS, and a response without trailers on the first stream."""
    ours = server_engine(EngineBounds(streams=16))
    theirs = Runtime(asyncio.get_running_loop())
    connection = ClientConnection(theirs, "test", LIMITS)
    connection.open(UNARY, Recorder())
    ours.receive_data(connection.engine.data_to_send())
    ours.send_response(1, headers, end_stream=not data)
    if data:
        ours.send_data(1, data, end_stream=True)
    return ours.data_to_send()


@pytest.mark.parametrize(
    ("headers", "data", "code", "words"),
    [
        ([(b":status", b"503")], b"", UNKNOWN, "HTTP status 503"),
        ([(b":status", b"200"), (b"content-type", b"text/html")], b"<html>", UNKNOWN, "not gRPC"),
        ([(b":status", b"200"), (b"content-type", b"application/grpc")], b"", INTERNAL, "without"),
        (
            [(b":status", b"200"), (b"content-type", b"application/grpc")],
            bytes(5),
            INTERNAL,
            "without sending trailers",
        ),
    ],
)
async def test_what_is_no_grpc_is_an_error(
    headers: list[tuple[bytes, bytes]], data: bytes, code: int, words: str
) -> None:
    server, port = await scripted(replies(headers, data))
    async with server:
        runtime = Runtime(asyncio.get_running_loop())
        connection = await client.connect(runtime, "127.0.0.1", port, LIMITS)
        with pytest.raises(client.CallError, match=words) as raised:
            async with asyncio.timeout(10):
                await client.call(connection, UNARY, b"x")
        assert raised.value.end.code == code
        connection.close()


@pytest.mark.parametrize("script", ["", "settings"], ids=["never begins", "answers no ping"])
async def test_a_silent_server_is_given_up(script: str) -> None:
    limits = ClientLimits(
        message_bytes=1, handshake_s=0.05, keepalive_interval_s=0.05, keepalive_timeout_s=0.05
    )
    ended: asyncio.Future[ConnectionEnd] = asyncio.get_running_loop().create_future()
    server, port = await scripted(settings() if script else b"")
    async with server:
        runtime = Runtime(asyncio.get_running_loop())
        await client.connect(runtime, "127.0.0.1", port, limits, ended.set_result)
        async with asyncio.timeout(10):
            assert await ended == ConnectionEnd("the peer was silent", is_by_peer=False)


async def test_a_refusal_of_the_connection_is_not_its_loss() -> None:
    engine = server_engine(EngineBounds(streams=16))
    engine.send_goaway(ENHANCE_YOUR_CALM, debug_data=b"too_many_pings")
    ended: asyncio.Future[ConnectionEnd] = asyncio.get_running_loop().create_future()
    server, port = await scripted(engine.data_to_send(), closes=True)
    async with server:
        runtime = Runtime(asyncio.get_running_loop())
        await client.connect(runtime, "127.0.0.1", port, LIMITS, ended.set_result)
        async with asyncio.timeout(10):
            end = await ended
    assert not end.is_by_peer
    assert "too_many_pings" in end.reason

"""The stack of peers on kvstore.http2: callbacks all the way, no task once a stream is open.

An end is evidence of death (`StreamEnd`, `CallFailed`) only if the peer's kernel said so: it refused the
connection at every address of the host, or closed or reset it without an error in HTTP/2 before. A stopping
server may also reset a call or fail it; then the end of its connection is waited for, which is evidence.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence

from kvstore.http2 import client
from kvstore.http2.client_connection import (
    CallEnd,
    ClientConnection,
    ClientLimits,
    ClientStream,
    ConnectionEnd,
)
from kvstore.http2.connection import Runtime
from kvstore.http2.engine import ENHANCE_YOUR_CALM, REFUSED_STREAM, EngineBounds, EngineError
from kvstore.http2.limits import ServerLimits
from kvstore.http2.request_side import Receiver
from kvstore.http2.server import Http2Server
from kvstore.http2.server_stream import Route, ServerStream
from kvstore.http2.status import CANCELLED, INTERNAL, INVALID_ARGUMENT, TRUNCATED_TEXT, UNAVAILABLE
from raft.transport import sockets
from raft.transport.liveness import FRAME_BYTES_MAX, MESSAGE_BYTES_MAX, SILENCE_TIMEOUT_S
from raft.transport.stack import CallFailed, Handlers, Refused, Stream, StreamEnd, StreamHandler

_BOUNDS = EngineBounds(streams=16, stream_window=16 << 20)
"""A connection carries one stream. It is wide enough for the bandwidth and delay of continents; messages are
taken as they come, so it pins no memory."""

_MESSAGE_BYTES_MAX = MESSAGE_BYTES_MAX + FRAME_BYTES_MAX
_PING_S = SILENCE_TIMEOUT_S / 2
"""A silent connection is pinged after half of SILENCE_TIMEOUT_S; the answer has the other half."""

_CLIENT_LIMITS = ClientLimits(
    message_bytes=_MESSAGE_BYTES_MAX,
    engine=_BOUNDS,
    handshake_s=SILENCE_TIMEOUT_S,
    keepalive_interval_s=_PING_S,
    keepalive_timeout_s=_PING_S,
)
_SERVER_LIMITS = ServerLimits(
    message_bytes=_MESSAGE_BYTES_MAX,
    engine=_BOUNDS,
    # A connection closed for a limit would look like a death; without descriptors the system is silent.
    connections=sys.maxsize,
    keepalive_interval_s=_PING_S,
    keepalive_timeout_s=_PING_S,
)
_REFUSALS = (REFUSED_STREAM, ENHANCE_YOUR_CALM)
"""Codes by which a living server refuses a stream."""


class Http2Stack:
    """See `raft.transport.stack.Stack`. Created with the loop running."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._runtime = Runtime(self._loop)
        self._connections: dict[ClientConnection, sockets.Addresses] = {}
        """Those dialled and not ended, with their local and remote address."""
        self._connecting: set[asyncio.Task[None]] = set()
        self._listener: Http2Listener | None = None
        """The newest, also after its end."""
        self._resets = 0
        """Of all connections by ourselves: what ended meanwhile says nothing of the peer."""

    def dial(self, host: str, port: int, method: str, handler: StreamHandler) -> Stream:
        stream = _Dialled(self._loop, handler)
        task = stream.task = self._loop.create_task(
            self._open(stream, host, port, method), name=f"dial {host}:{port}"
        )
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return stream

    async def call(self, host: str, port: int, method: str, data: bytes) -> bytes:
        ended = asyncio.Event()
        resets = self._resets
        try:
            connection = await self._connect(host, port, lambda end: ended.set())
        except OSError as error:
            raise CallFailed(str(error), is_evidence=_is_refusal(error)) from error
        try:
            return await client.call(connection, method.encode(), data)
        except client.CallError as error:
            end = error.end
            is_stopping = end.code in (CANCELLED, UNAVAILABLE) and end.reset_code not in _REFUSALS
            if not (end.is_connection_lost or is_stopping):
                raise CallFailed(end.text, is_evidence=False) from error
            await ended.wait()
            raise self._lost(connection, resets) from error
        except EngineError as error:
            raise self._lost(connection, resets) from error
        finally:
            self._close(connection)

    async def listen(self, addresses: Sequence[tuple[str, int]], handlers: Handlers) -> Http2Listener:
        routes = {
            path.encode(): Route(_unary(reply), is_single=True) for path, reply in handlers.unary.items()
        }
        for path, opened in handlers.streams.items():
            routes[path.encode()] = Route(_streaming(opened), is_single=False)
        server = Http2Server(routes, _SERVER_LIMITS, self._loop)
        ports = []
        for host, port in addresses:
            address = "127.0.0.1" if host == "localhost" else host
            try:
                ports.append(server.add_insecure_port(f"[{address}]:{port}"))
            except OSError as error:
                server.abort()
                raise OSError(error.errno, f"cannot listen for peers on {host}:{port}") from error
        await server.start()
        listener = self._listener = Http2Listener(server, tuple(ports))
        return listener

    def reset_connections(self) -> None:
        self._resets += 1
        dialled = frozenset(tuple(self._connections.values()))  # copied at once: this may be another thread
        listener = self._listener
        if listener is not None:
            # Before the loop finds that its listening sockets accept nothing, and reports that as a fault.
            self._loop.call_soon_threadsafe(listener.close_nowait)
            ports = frozenset(listener.ports)
            sockets.shut_down(sockets.listening_on(ports))
            sockets.shut_down(sockets.accepted_on(ports))
        sockets.shut_down(sockets.between(dialled))

    async def close(self) -> None:
        if self._connecting:
            await asyncio.wait(tuple(self._connecting))
        await asyncio.sleep(0)  # transports close their sockets in the iteration after
        if not self._connections:
            self._runtime.wheel.close()

    async def _open(self, stream: _Dialled, host: str, port: int, method: str) -> None:
        try:
            connection = await self._connect(host, port)
        except OSError as error:
            stream.failed(StreamEnd(str(error), is_evidence=_is_refusal(error)))
            return
        stream.connected(connection, method.encode(), self._close)

    async def _connect(
        self, host: str, port: int, on_end: Callable[[ConnectionEnd], None] = lambda end: None
    ) -> ClientConnection:
        connection: ClientConnection | None = None

        def ended(end: ConnectionEnd) -> None:
            if connection is not None:  # it may end while `connect` still waits
                self._connections.pop(connection, None)
            on_end(end)

        connection = await client.connect(self._runtime, host, port, _CLIENT_LIMITS, ended)
        addresses = sockets.addresses_of(connection.transport)
        if addresses is not None and not connection.is_lost:
            self._connections[connection] = addresses
        return connection

    def _lost(self, connection: ClientConnection, resets: int) -> CallFailed:
        """A call failed because its connection ended; `resets` is as of its beginning."""
        end = connection.end or ConnectionEnd("the connection takes no call", is_by_peer=False)
        return CallFailed(end.reason, is_evidence=end.is_by_peer and self._resets == resets)

    def _close(self, connection: ClientConnection) -> None:
        self._connections.pop(connection, None)
        connection.close()


class Http2Listener:
    """See `raft.transport.stack.Listener`."""

    def __init__(self, server: Http2Server, ports: tuple[int, ...]) -> None:
        self.ports = ports
        self._server = server

    def close_nowait(self) -> None:
        self._server.abort()

    async def wait_closed(self) -> None:
        await self._server.wait_closed()


class _Dialled:
    """A stream on a connection of its own; also the receiver of its call."""

    task: asyncio.Task[None]
    """Connects."""

    def __init__(self, loop: asyncio.AbstractEventLoop, handler: StreamHandler) -> None:
        self._loop = loop
        self._handler: StreamHandler | None = handler
        """None once the stream has ended."""
        self._early: list[bytes] = []
        """Written before the connection was open."""
        self._connection: ClientConnection | None = None
        self._stream: ClientStream | None = None
        self._close_connection: Callable[[ClientConnection], None] = ClientConnection.close
        self._is_writing = False

    @property
    def is_writable(self) -> bool:
        return self._stream is not None and self._stream.is_writable

    def write(self, data: bytes) -> None:
        if self._stream is None:
            self._early.append(data)
            return
        assert self._connection is not None
        self._is_writing = True
        try:
            self._stream.send(data)
            self._connection.flush()  # the writer has gathered what one loop iteration has
        finally:
            self._is_writing = False

    def close(self, error: str = "") -> None:
        self._handler = None
        self.task.cancel()
        if self._connection is not None:
            self._close_connection(self._connection)

    # -- for the stack ---------------------------------------------------------------------------

    def connected(
        self, connection: ClientConnection, path: bytes, close: Callable[[ClientConnection], None]
    ) -> None:
        self._connection, self._close_connection = connection, close
        if self._handler is None:
            close(connection)
            return
        try:
            self._stream = connection.open(path, self)
        except EngineError as error:
            self.failed(_stream_end(connection, str(error)))
            return
        for data in self._early:
            self._stream.send(data)
        self._early.clear()

    def failed(self, end: StreamEnd) -> None:
        handler, self._handler = self._handler, None
        if self._connection is not None:
            self._close_connection(self._connection)
        if handler is not None:
            handler.ended(end)

    # -- the call's receiver ---------------------------------------------------------------------

    def message(self, data: bytes) -> None:
        if self._handler is not None:
            self._handler.message(data)

    def drained(self) -> None:
        if self._handler is not None and not self._is_writing:
            self._handler.drained()

    def ended(self, end: CallEnd) -> None:
        assert self._connection is not None
        reason = end.text or "the stream ended"
        if end.is_connection_lost:
            found = _stream_end(self._connection, reason)
        else:
            found = StreamEnd(reason, is_evidence=False)
        if self._is_writing:
            self._loop.call_soon(self.failed, found)
        else:
            self.failed(found)


class _Accepted:
    """A stream that a peer opened; also the receiver of its call."""

    def __init__(self, stream: ServerStream, opened: Callable[[Stream], StreamHandler]) -> None:
        self._stream = stream
        self._is_closed = False
        self.is_writable = False
        stream.begin_replies()
        self._handler = opened(self)

    def write(self, data: bytes) -> None:
        self.is_writable = False
        self._stream.send(data)

    def close(self, error: str = "") -> None:
        if not self._is_closed:
            self._is_closed = True
            if error:
                self._stream.fail(INVALID_ARGUMENT, error)
            else:
                self._stream.finish()

    # -- the call's receiver ---------------------------------------------------------------------

    def message(self, data: bytes) -> None:
        self._handler.message(data)

    def half_closed(self) -> None:
        self._end("the stream ended")
        self._stream.finish()

    def drained(self) -> None:
        self.is_writable = True
        if not self._is_closed:
            self._handler.drained()

    def closed(self) -> None:
        pass

    def ended_by_caller(self, code: int) -> None:
        self._end("the peer ended the stream")

    def _end(self, reason: str) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._handler.ended(StreamEnd(reason, is_evidence=False))


class _Unary:
    """One request and its reply; the receiver of the call."""

    def __init__(self, stream: ServerStream, reply: Callable[[bytes], bytes]) -> None:
        self._stream = stream
        self._reply = reply

    def message(self, data: bytes) -> None:
        try:
            self._stream.respond(self._reply(data))
        except Refused as refusal:
            self._stream.fail(INVALID_ARGUMENT, str(refusal))

    def half_closed(self) -> None:
        self._stream.fail(INTERNAL, TRUNCATED_TEXT)  # does nothing after the reply

    def drained(self) -> None:
        pass

    def closed(self) -> None:
        pass

    def ended_by_caller(self, code: int) -> None:
        pass


def _unary(reply: Callable[[bytes], bytes]) -> Callable[[ServerStream], Receiver]:
    return lambda stream: _Unary(stream, reply)


def _streaming(opened: Callable[[Stream], StreamHandler]) -> Callable[[ServerStream], Receiver]:
    return lambda stream: _Accepted(stream, opened)


def _stream_end(connection: ClientConnection, reason: str) -> StreamEnd:
    """Of a stream that ended because its connection did."""
    end = connection.end
    return StreamEnd(reason, is_evidence=False) if end is None else StreamEnd(end.reason, end.is_by_peer)


def _is_refusal(error: OSError) -> bool:
    """Whether the peer's kernel, not the network or our own system, refused the connection."""
    return isinstance(error, (ConnectionRefusedError, ConnectionResetError))

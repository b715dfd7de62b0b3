"""A client that sends what it likes, on the engine; and a server of a few routes, without kvstore.rpc."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from kvstore.http2 import engine
from kvstore.http2.engine import EngineBounds, client_engine
from kvstore.http2.framing import prefix
from kvstore.http2.limits import ServerLimits
from kvstore.http2.server import Http2Server
from kvstore.http2.server_stream import Route, ServerStream

PING_FRAME = b"\x00\x00\x08\x06\x00"
"""How one that is no acknowledgement begins; short answers do not hold it by accident."""

PATIENCE_S = 20.0
"""For what must happen, on a busy machine."""

MESSAGE_BYTES_MAX = 2 * 1024 * 1024


def framed(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


def headers(
    path: bytes = b"/t.T/Unary",
    *more: tuple[bytes, bytes],
    content_type: bytes | None = b"application/grpc",
    method: bytes = b"POST",
) -> list[tuple[bytes, bytes]]:
    found = [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"test")]
    if content_type is not None:
        found.append((b"content-type", content_type))
    return [*found, (b"te", b"trailers"), *more]


@dataclass
class Answer:
    """What came back on one stream."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    trailers: dict[bytes, bytes] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    reset: int | None = None
    closed: bool = False

    @property
    def status(self) -> int | None:
        found = self.trailers.get(b"grpc-status", self.headers.get(b"grpc-status"))
        return None if found is None else int(found)

    @property
    def text(self) -> str:
        return self.trailers.get(b"grpc-message", self.headers.get(b"grpc-message", b"")).decode()

    @property
    def messages(self) -> list[bytes]:
        found, position, data = [], 0, self.data
        while position + 5 <= len(data):
            end = position + 5 + int.from_bytes(data[position + 1 : position + 5], "big")
            if end > len(data):
                break
            found.append(bytes(data[position + 5 : end]))
            position = end
        return found


class Peer(asyncio.Protocol):
    """One connection. Credits what it reads unless `reads` is False."""

    def __init__(self, bounds: EngineBounds | None = None) -> None:
        self.engine = client_engine(bounds or EngineBounds(streams=100))
        self.answers: dict[int, Answer] = {}
        self.reads = True
        self.unread: list[tuple[int, int]] = []
        self.lost = False
        self.goaways: list[engine.GoAwayReceived] = []
        self.pongs = 0
        self.pings = 0
        """Of the server, answered by the engine."""
        self.settings: dict[int, int] = {}
        self.failure: Exception | None = None
        self._changed = asyncio.Event()

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.flush()

    def connection_lost(self, exc) -> None:
        self.lost = True
        self._changed.set()

    def data_received(self, data: bytes) -> None:
        self.pings += data.count(PING_FRAME)
        try:
            self.engine.receive_data(data)
            for event in self.engine.events():
                self._see(event)
        except engine.EngineError as error:
            self.failure = error
        self.flush()
        self._changed.set()

    def _see(self, event) -> None:
        answer = self.answers.setdefault(getattr(event, "stream_id", 0), Answer())
        if isinstance(event, engine.ResponseReceived):
            answer.headers = dict(event.headers)
        elif isinstance(event, engine.TrailersReceived):
            answer.trailers = dict(event.headers)
        elif isinstance(event, engine.DataReceived):
            answer.data += event.data
            if self.reads:
                with contextlib.suppress(engine.EngineError):  # the connection ended with this
                    self.engine.acknowledge_received_data(len(event.data), event.stream_id)
            else:
                self.unread.append((event.stream_id, len(event.data)))
        elif isinstance(event, engine.StreamReset):
            answer.reset = event.error_code
        elif isinstance(event, engine.StreamClosed):
            answer.closed = True
        elif isinstance(event, engine.GoAwayReceived):
            self.goaways.append(event)
        elif isinstance(event, engine.PingAcknowledged):
            self.pongs += 1
        elif isinstance(event, engine.SettingsReceived):
            self.settings.update(event.settings)

    def flush(self) -> None:
        try:
            data = self.engine.data_to_send()
        except engine.EngineError:
            return
        if data:
            self.transport.write(data)

    def read(self) -> None:
        """Credit what was left unread, and read on."""
        self.reads = True
        for stream_id, amount in self.unread:
            self.engine.acknowledge_received_data(amount, stream_id)
        self.unread.clear()
        self.flush()

    def open(self, fields, body: bytes = b"", *, end: bool = True) -> int:
        stream_id = self.engine.send_request(fields, end_stream=end and not body)
        self.answers[stream_id] = Answer()
        if body:
            self.engine.send_data(stream_id, body, end_stream=end)
        self.flush()
        return stream_id

    def send(self, stream_id: int, body: bytes, *, end: bool = False) -> None:
        self.engine.send_data(stream_id, body, end_stream=end)
        self.flush()

    def reset(self, stream_id: int) -> None:
        self.engine.reset_stream(stream_id, engine.CANCEL)
        self.flush()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def answer(self, stream_id: int) -> Answer:
        """Once the stream is closed."""
        await self.until(lambda: self.answers[stream_id].closed or self.lost)
        return self.answers[stream_id]

    async def call(self, fields, body: bytes = b"", *, end: bool = True) -> Answer:
        return await self.answer(self.open(fields, body, end=end))

    async def all_seen(self) -> None:
        """Everything sent before has been seen by the server: a ping has come back."""
        self.engine.ping()
        self.flush()
        wanted = self.pongs + 1
        await self.until(lambda: self.pongs >= wanted)


class Recorded:
    """A receiver that answers by the route's function and keeps what it saw."""

    def __init__(self, stream: ServerStream, act: Callable[[Recorded, bytes], None]) -> None:
        self.stream = stream
        self.act = act
        self.messages: list[bytes] = []
        self.half = False
        self.drains = 0
        self.is_closed = False
        self.ended_with: int | None = None

    def message(self, data: bytes) -> None:
        self.messages.append(data)
        self.act(self, data)

    def half_closed(self) -> None:
        self.half = True
        self.act(self, b"<end>")

    def drained(self) -> None:
        self.drains += 1

    def closed(self) -> None:
        self.is_closed = True

    def ended_by_caller(self, code: int) -> None:
        self.ended_with = code


class Served:
    """A server with its receivers, in the order in which calls came."""

    def __init__(self, limits: ServerLimits) -> None:
        self.receivers: list[Recorded] = []
        self.acts: dict[str, Callable[[Recorded, bytes], None]] = {
            "Unary": lambda receiver, data: receiver.stream.respond(data),
            "Wait": lambda receiver, data: None,
            "Stream": self._stream,
            "Both": self._both,
            "Gather": self._gather,
            "Hold": lambda receiver, data: receiver.stream.hold(),
        }
        loop = asyncio.get_running_loop()
        routes = {f"/t.T/{name}".encode(): self._route(name) for name in self.acts}
        self.server = Http2Server(routes, limits, loop)
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    def _route(self, name: str) -> Route:
        def begin(stream: ServerStream) -> Recorded:
            receiver = Recorded(stream, self.acts[name])
            self.receivers.append(receiver)
            if name not in ("Unary", "Wait"):
                stream.begin_replies()
            return receiver

        return Route(begin, is_single=name in ("Unary", "Wait", "Stream"))

    @staticmethod
    def _stream(receiver: Recorded, data: bytes) -> None:
        for number in range(int(data)):
            receiver.stream.send(b"%d" % number)
        receiver.stream.finish()

    @staticmethod
    def _both(receiver: Recorded, data: bytes) -> None:
        if data == b"<end>":
            receiver.stream.finish()
        else:
            receiver.stream.send(data)

    @staticmethod
    def _gather(receiver: Recorded, data: bytes) -> None:
        if data == b"<end>":
            receiver.stream.send(b"+".join(receiver.messages))
            receiver.stream.finish()

    async def connect(self, bounds: EngineBounds | None = None) -> Peer:
        loop = asyncio.get_running_loop()
        _, peer = await loop.create_connection(lambda: Peer(bounds), "127.0.0.1", self.port)
        return peer

    @property
    def connections(self) -> list:
        return list(self.server._connections)


@asynccontextmanager
async def serving(**limits) -> AsyncIterator[Served]:
    served = Served(ServerLimits(**{"message_bytes": MESSAGE_BYTES_MAX, **limits}))
    await served.server.start()
    try:
        yield served
    finally:
        await served.server.stop(0)


async def eventually(condition: Callable[[], object]) -> None:
    """Wait for what has no event."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  it has no event
            await asyncio.sleep(0.005)


__all__ = ["Answer", "Peer", "Recorded", "Served", "eventually", "framed", "headers", "prefix", "serving"]

"""The server's side of a connection: makes calls of what arrives, and ends well."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from kvstore.http2.connection import Connection, Keepalive, Runtime
from kvstore.http2.engine import (
    DataReceived,
    EngineError,
    Event,
    PingAcknowledged,
    RequestReceived,
    SettingsReceived,
    StreamClosed,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
    server_engine,
)
from kvstore.http2.framing import check_encoding
from kvstore.http2.limits import ServerLimits
from kvstore.http2.metadata import is_grpc, parse_timeout
from kvstore.http2.request_side import RequestSide
from kvstore.http2.server_stream import Route, ServerStream
from kvstore.http2.status import (
    DEADLINE_EXCEEDED,
    DEADLINE_TEXT,
    StatusError,
    unknown_path,
    wrong_content_type,
    wrong_method,
)

if TYPE_CHECKING:
    import asyncio


class Routes:
    """The methods of a server, by path."""

    def __init__(self, routes: Mapping[bytes, Route]) -> None:
        self.by_path = dict(routes)
        self.services = frozenset(path.rpartition(b"/")[0].removeprefix(b"/") for path in routes)


class ServerConnection(Connection):
    def __init__(
        self,
        runtime: Runtime,
        routes: Routes,
        limits: ServerLimits,
        on_connected: Callable[[ServerConnection], bool],
        on_ended: Callable[[ServerConnection], None],
    ) -> None:
        """`on_connected` returns whether the connection may stay."""
        super().__init__(runtime, server_engine(limits.engine))
        self.limits = limits
        self._routes = routes
        self._on_connected = on_connected
        self._on_ended = on_ended
        self._streams: dict[int, ServerStream] = {}
        """Calls that are open, or still have something to send."""
        self._keepalive = Keepalive(self, limits.keepalive_interval_s, limits.keepalive_timeout_s)
        self.unfinished_bytes = 0
        """Received for handlers and not taken by them; see `ServerLimits`."""
        self.is_congested = False
        """More replies are unread than a connection may have; as of the last flush."""
        self._deferred: deque[RequestSide] = deque()
        """Streams whose requests wait until the connection is congested no more."""
        self._is_draining = False
        """The first GOAWAY was sent, the final one was not."""

    # -- transport -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._on_connected(self):
            self._keepalive.start(self.limits.handshake_s)
        else:
            self.abort()

    def _on_lost(self) -> None:
        self._keepalive.stop()
        self._deferred.clear()
        for stream in list(self._streams.values()):
            stream.lost()
        self._streams.clear()
        self._on_ended(self)

    # -- events ----------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if type(event) is DataReceived:
            self._on_data(event.stream_id, event.data, event.end_stream)
        elif type(event) is RequestReceived:
            self._on_request(event)
        elif type(event) is StreamClosed or type(event) is StreamReset:
            self._on_stream_gone(event.stream_id)
        elif type(event) is WindowUpdated:
            self.sender.window_opened(event.stream_id)
        elif type(event) is TrailersReceived:  # gRPC's clients send none; they end the requests
            self._on_data(event.stream_id, b"", is_last=True)
        elif type(event) is SettingsReceived:
            self.sender.window_opened(0)
            if not self.is_established:
                self.is_established = True
                self._keepalive.established()
        elif type(event) is PingAcknowledged and self._is_draining:
            self._say_goodbye()

    def _on_data(self, stream_id: int, data: bytes, is_last: bool) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.data(data, is_last)
            return
        if data:  # of a call that has ended here
            self.engine.acknowledge_received_data(len(data), stream_id)
        if is_last:
            self.sender.peer_ended(stream_id)

    def _on_stream_gone(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.lost()
        self.sender.discard(stream_id)

    def _on_request(self, event: RequestReceived) -> None:
        headers = event.headers  # made anew at each access
        fields = dict(headers)
        path = fields.get(b":path", b"")  # CONNECT has none
        route = self._routes.by_path.get(path)
        stream_id = event.stream_id
        stream = ServerStream(self, stream_id, headers, route)
        stream.is_half_closed = event.end_stream
        self._streams[stream_id] = stream
        try:
            if fields[b":method"] != b"POST":
                raise wrong_method(fields[b":method"])
            content_type = fields.get(b"content-type", b"")
            if content_type != b"application/grpc" and not is_grpc(content_type):
                raise wrong_content_type(content_type)
            timeout = fields.get(b"grpc-timeout")
            if timeout is not None:
                self._set_deadline(stream, parse_timeout(timeout))
            if route is None:
                raise unknown_path(path, self._routes.services)
            if b"grpc-encoding" in fields:
                stream.encoding = fields[b"grpc-encoding"]
                check_encoding(stream.encoding)
        except StatusError as error:
            stream.refuse(error)
            return
        stream.open()

    def _set_deadline(self, stream: ServerStream, seconds: float) -> None:
        if not seconds:
            raise StatusError(DEADLINE_EXCEEDED, DEADLINE_TEXT)
        stream.deadline = self.received_at + seconds
        self.runtime.wheel.add(stream, seconds, self.received_at)

    # -- for streams -----------------------------------------------------------------------------

    def ended(self, stream: RequestSide) -> None:
        """Nothing more happens to a call, but for what its outbox holds."""
        del self._streams[stream.stream_id]
        if not stream.is_half_closed:
            self.sender.reset_when_sent(stream.stream_id)

    def holds(self, stream: RequestSide) -> bool:
        """Whether a call is open, or has something to send."""
        return stream.stream_id in self._streams

    def defer(self, stream: RequestSide) -> None:
        """Resume a held stream once the replies before it have been read."""
        self._deferred.append(stream)

    def _on_flushed(self) -> None:
        self._measure_replies()
        while self._deferred and not self.is_congested:
            self._deferred.popleft().resume()
            self._measure_replies()

    def _measure_replies(self) -> None:
        unread = self.sender.nbytes + self.engine.queued_body_size()
        self.is_congested = unread > self.limits.replies_bytes

    # -- the end ---------------------------------------------------------------------------------

    def drain(self) -> None:
        """Let the calls end and take no new ones, then close.

        Two GOAWAYs, as in gRPC: the first names no last call, so what is on its way is still served; the ping
        behind it is answered by a client that has seen it.
        """
        if self._is_draining or self.is_lost:
            return
        self._is_draining = True
        if not self.is_established:
            self.abort()
            return
        try:
            self.engine.send_shutdown_notice()
            self.ping()
        except EngineError:  # it is ending already
            self.abort()

    def _say_goodbye(self) -> None:
        self._is_draining = False
        self.engine.send_goaway()
        self.schedule_flush()

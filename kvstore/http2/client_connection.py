"""The client's side of a connection: calls, what arrives for them, and why they end.

A call ends exactly once, by `ended` of its receiver or by its own `cancel`, after which the receiver is not
called any more. No method calls the receiver before it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from kvstore.http2.connection import Connection, Keepalive, Runtime
from kvstore.http2.engine import (
    CANCEL,
    ENHANCE_YOUR_CALM,
    NO_ERROR,
    REFUSED_STREAM,
    ConnectionClosed,
    DataReceived,
    EngineBounds,
    EngineError,
    Event,
    GoAwayReceived,
    Header,
    ResponseReceived,
    SettingsReceived,
    StreamClosed,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
    client_engine,
)
from kvstore.http2.framing import PREFIX_BYTES, MessageReader, check_encoding
from kvstore.http2.metadata import decode_message, encode_metadata, format_timeout, is_grpc
from kvstore.http2.sending import Outbox
from kvstore.http2.status import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    DEADLINE_TEXT,
    INTERNAL,
    OK,
    RESOURCE_EXHAUSTED,
    TRUNCATED_TEXT,
    UNAVAILABLE,
    UNKNOWN,
    StatusError,
)

RESET_CODES = {NO_ERROR: INTERNAL, CANCEL: CANCELLED, REFUSED_STREAM: UNAVAILABLE,
               ENHANCE_YOUR_CALM: RESOURCE_EXHAUSTED}  # fmt: skip
"""gRPC's status of a stream that was reset; INTERNAL for every other reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits:
    """What a client allows its server."""

    message_bytes: int
    """Largest message of a reply, as received and decompressed."""
    engine: EngineBounds = field(default_factory=EngineBounds)
    handshake_s: float = 20.0
    """From the connect to the server's SETTINGS."""
    keepalive_interval_s: float = 60.0
    """A connection on which nothing was received for so long is pinged."""
    keepalive_timeout_s: float = 20.0
    """Without anything received for so long after a ping the connection is closed."""


class ConnectionEnd(NamedTuple):
    """Why a connection ended."""

    reason: str
    is_by_peer: bool
    """The peer's kernel closed or reset it, and no GOAWAY with an error refused the connection before.
    Not so if the network reported a fault, the peer was silent, or either side broke the protocol."""


class CallEnd(NamedTuple):
    """How a call ended."""

    code: int
    text: str
    is_connection_lost: bool = False
    """The connection ended first; see `ClientConnection.end`."""
    trailers: Sequence[Header] = ()
    """As received; `grpc-status` and metadata."""
    reset_code: int | None = None
    """The server reset the stream with this HTTP/2 code."""


class CallReceiver(Protocol):
    """The user of a call."""

    def message(self, data: bytes) -> None:
        """One reply, in order."""

    def drained(self) -> None:
        """Everything sent so far has left; also once when the call begins."""

    def ended(self, end: CallEnd) -> None:
        """The call has ended; it is OK only after the last reply."""


class ClientStream:
    """One call of a client."""

    __slots__ = (
        "_connection",
        "_encoding",
        "_is_half_closing",
        "_limit",
        "_outbox",
        "_reader",
        "_receiver",
        "_responded",
        "is_writable",
        "stream_id",
        "wheel_slot",
    )

    def __init__(self, connection: ClientConnection, stream_id: int, receiver: CallReceiver) -> None:
        self._connection = connection
        self.stream_id = stream_id
        self._receiver: CallReceiver | None = receiver
        """None once the call has ended."""
        self._outbox: Outbox | None = connection.sender.open(stream_id, self)
        """None once our side has ended."""
        self.is_writable = False
        """Everything sent was passed to the transport."""
        self._is_half_closing = False
        """Our side ends once the outbox is empty."""
        self._responded = False
        """The response's headers have come."""
        self._encoding = b""
        self._reader: MessageReader | None = None
        """From the first frame on that is not exactly one message."""
        self._limit = connection.limits.message_bytes
        self.wheel_slot = 0

    # -- for the user ----------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """One request. Does nothing once the call has ended."""
        if self._outbox is not None:
            assert not self._is_half_closing
            self.is_writable = False
            self._connection.sender.send(self._outbox, message)
            self._connection.schedule_flush()

    def half_close(self) -> None:
        """No request follows."""
        self._is_half_closing = True
        if self.is_writable:
            self._end_requests()

    def cancel(self) -> None:
        """Give up the call; nothing is reported."""
        if self._receiver is not None:
            self._forget()
            self._reset()

    # -- for the connection ----------------------------------------------------------------------

    def response(self, headers: Sequence[Header], is_last: bool) -> None:
        fields = dict(headers)
        self._responded = True
        if is_last and b"grpc-status" in fields:
            self.trailers(headers)
            return
        try:
            if fields.get(b":status") != b"200":
                status = fields.get(b":status", b"").decode("ascii", "replace")
                raise StatusError(UNKNOWN, f"the server answered with HTTP status {status}")
            if not is_grpc(fields.get(b"content-type", b"")):
                raise StatusError(UNKNOWN, "the server's answer is not gRPC")
            self._encoding = fields.get(b"grpc-encoding", b"")
            check_encoding(self._encoding)
        except StatusError as error:
            self.fail(error.code, error.text)
            return
        if is_last:
            self.fail(INTERNAL, "the server closed the stream without sending trailers")

    def data(self, data: bytes, is_last: bool) -> None:
        """A DATA frame of an open call; the connection has credited it."""
        assert self._receiver is not None
        if self._reader is None and self._is_one_message(data):
            self._receiver.message(data[PREFIX_BYTES:])
        else:
            if self._reader is None:
                self._reader = MessageReader(self._limit, self._encoding)
            try:
                messages = self._reader.feed(data)
            except StatusError as error:
                self.fail(error.code, error.text)
                return
            for message, _ in messages:
                if self._receiver is not None:
                    self._receiver.message(message)
        if is_last:
            self.fail(INTERNAL, "the server closed the stream without sending trailers")

    def trailers(self, headers: Sequence[Header]) -> None:
        fields = dict(headers)
        value = fields.get(b"grpc-status", b"")
        code = int(value) if value.isdigit() else UNKNOWN
        text = decode_message(fields.get(b"grpc-message", b""))
        if code == OK and self._reader is not None and self._reader.nbytes:
            code, text = INTERNAL, TRUNCATED_TEXT
        is_open = self._outbox is not None  # we do not have to send the rest
        self._end(CallEnd(code, text, trailers=headers), is_open=is_open)

    def reset(self, error_code: int) -> None:
        """The server reset the stream, or the engine closed it."""
        code = RESET_CODES.get(error_code, INTERNAL)
        text = f"the peer reset the stream ({error_code})"
        self._end(CallEnd(code, text, reset_code=error_code), is_open=False)

    def fail(self, code: int, text: str) -> None:
        """End the call from here."""
        self._end(CallEnd(code, text), is_open=True)

    def lost(self, reason: str) -> None:
        """The connection has ended."""
        self._end(CallEnd(UNAVAILABLE, reason, is_connection_lost=True), is_open=False)

    def on_time(self) -> None:
        """The deadline has passed."""
        self.fail(DEADLINE_EXCEEDED, DEADLINE_TEXT)

    # -- sender's listener -----------------------------------------------------------------------

    def drained(self) -> None:
        self.is_writable = True
        if self._is_half_closing:
            self._end_requests()
        elif self._receiver is not None:
            self._receiver.drained()

    def closed(self) -> None:
        raise AssertionError("requests have no trailers")

    # -- inside ----------------------------------------------------------------------------------

    def _is_one_message(self, data: bytes) -> bool:
        size = len(data) - PREFIX_BYTES
        return int.from_bytes(data[:PREFIX_BYTES], "big") == size and 0 <= size <= self._limit

    def _end_requests(self) -> None:
        if self._outbox is not None:
            self._outbox = None
            with contextlib.suppress(EngineError):  # the server reset the stream; its event follows
                self._connection.engine.end_stream(self.stream_id)
            self._connection.sender.discard(self.stream_id)
            self._connection.schedule_flush()

    def _end(self, end: CallEnd, *, is_open: bool) -> None:
        """`is_open`: the engine still holds the stream."""
        receiver = self._receiver
        if receiver is not None:
            self._forget()
            if is_open:
                self._reset()
            receiver.ended(end)

    def _forget(self) -> None:
        connection = self._connection
        self._receiver = self._outbox = None
        if self.wheel_slot:
            connection.runtime.wheel.remove(self)
        connection.sender.discard(self.stream_id)
        connection.forget(self)

    def _reset(self) -> None:
        with contextlib.suppress(EngineError):  # it is closed; its event follows
            self._connection.engine.reset_stream(self.stream_id, CANCEL)
        self._connection.schedule_flush()


class ClientConnection(Connection):
    """One connection to a server."""

    def __init__(
        self,
        runtime: Runtime,
        authority: str,
        limits: ClientLimits,
        on_end: Callable[[ConnectionEnd], None] = lambda end: None,
    ) -> None:
        super().__init__(runtime, client_engine(limits.engine))
        self.limits = limits
        self._on_end = on_end
        self._streams: dict[int, ClientStream] = {}
        """The calls that are open."""
        self._keepalive = Keepalive(self, limits.keepalive_interval_s, limits.keepalive_timeout_s)
        self._refusal = ""
        """Of a GOAWAY with an error, or an error of our engine; empty without."""
        self.end: ConnectionEnd | None = None
        """Set once the connection has ended."""
        self._headers: tuple[Header, ...] = (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":authority", authority.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
        )

    def open(
        self,
        path: bytes,
        receiver: CallReceiver,
        *,
        timeout_s: float | None = None,
        metadata: Sequence[tuple[str, str | bytes]] = (),
    ) -> ClientStream:
        """Begin a call. Raises EngineError on a connection that has ended or takes no more calls.

        Calls beyond the server's limit of streams wait inside the engine.
        """
        if self.is_lost:
            raise EngineError("the connection has ended")
        headers = [*self._headers, (b":path", path)]
        headers.sort(key=_is_regular)  # pseudo-headers come first
        if timeout_s is not None:
            headers.append((b"grpc-timeout", format_timeout(timeout_s)))
        stream_id = self.engine.send_request([*headers, *encode_metadata(metadata)])
        stream = self._streams[stream_id] = ClientStream(self, stream_id, receiver)
        if timeout_s is not None:
            self.runtime.wheel.add(stream, timeout_s, self.runtime.loop.time())
        self.schedule_flush()
        return stream

    def forget(self, stream: ClientStream) -> None:
        """A call has ended."""
        self._streams.pop(stream.stream_id, None)

    def close(self) -> None:
        """End the connection at once. Neither the calls that are open nor `on_end` are called."""
        self._streams.clear()
        self._on_end = lambda end: None
        self._end_as("closed here", is_by_peer=False)
        self.abort()

    # -- transport -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._keepalive.start(self.limits.handshake_s)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.end is None:
            self._hear_last_words()
        is_by_peer = exc is None or isinstance(exc, (ConnectionResetError, BrokenPipeError))
        reason = "the peer closed the connection" if exc is None else str(exc)
        self._end_as(self._refusal or reason, is_by_peer=is_by_peer and not self._refusal)
        super().connection_lost(exc)

    def abort(self) -> None:
        self._end_as(self._refusal or "the peer was silent", is_by_peer=False)
        super().abort()

    def _end_with(self, error: EngineError) -> None:
        self._end_as(self._refusal or f"HTTP/2 was broken: {error}", is_by_peer=False)
        super()._end_with(error)

    def _hear_last_words(self) -> None:
        """What the engine makes of the bytes received may be an error that ends the connection, too."""
        with contextlib.suppress(EngineError):
            self.engine.data_to_send()
            for event in self.engine.events():
                if type(event) is ConnectionClosed and event.error_code != NO_ERROR and not self._refusal:
                    self._refusal = f"HTTP/2 was broken ({event.error_code})"

    def _end_as(self, reason: str, *, is_by_peer: bool) -> None:
        """Note why the connection ends; what comes first counts."""
        if self.end is None:
            self.end = ConnectionEnd(reason, is_by_peer)

    def _on_lost(self) -> None:
        assert self.end is not None
        self._keepalive.stop()
        for stream in list(self._streams.values()):
            stream.lost(self.end.reason)
        self._streams.clear()
        self._on_end(self.end)

    # -- events ----------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if type(event) is DataReceived:
            if event.data:
                self.engine.acknowledge_received_data(len(event.data), event.stream_id)
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                stream.data(event.data, event.end_stream)
        elif type(event) is WindowUpdated:
            self.sender.window_opened(event.stream_id)
        elif type(event) is SettingsReceived:
            self.sender.window_opened(0)
            if not self.is_established:
                self.is_established = True
                self._keepalive.established()
        elif type(event) is GoAwayReceived:
            if event.error_code != NO_ERROR and not self._refusal:
                why = event.debug_data.decode("utf-8", "replace")
                self._refusal = f"the peer refused the connection ({event.error_code}) {why}".rstrip()
        elif isinstance(event, (ResponseReceived, TrailersReceived, StreamReset, StreamClosed)):
            self._on_stream_event(event)

    def _on_stream_event(
        self, event: ResponseReceived | TrailersReceived | StreamReset | StreamClosed
    ) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        if type(event) is ResponseReceived:
            stream.response(event.headers, event.end_stream)
        elif type(event) is TrailersReceived:
            stream.trailers(event.headers)
        else:
            assert type(event) is StreamReset or type(event) is StreamClosed
            stream.reset(event.error_code)


def _is_regular(header: Header) -> bool:
    return not header[0].startswith(b":")

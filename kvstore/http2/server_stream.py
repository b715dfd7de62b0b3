"""One call of a server: its requests in, its replies out, its end.

A stream ends on our side exactly once: by `respond`, `finish`, `fail`, or because its caller is gone. Methods
called after that do nothing.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from kvstore.http2.connection import Runtime
from kvstore.http2.engine import Engine, EngineError, Header
from kvstore.http2.framing import ACCEPTED, PREFIX_BYTES, MessageReader, prefix
from kvstore.http2.limits import PIECE_BYTES, ServerLimits
from kvstore.http2.metadata import decode_metadata, encode_message, encode_metadata
from kvstore.http2.sending import Outbox, Sender
from kvstore.http2.status import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    DEADLINE_TEXT,
    INTERNAL,
    RESOURCE_EXHAUSTED,
    TRUNCATED_TEXT,
    UNIMPLEMENTED,
    UNKNOWN,
    StatusError,
)

RESPONSE: tuple[Header, ...] = ((b":status", b"200"), (b"content-type", b"application/grpc"))
UNFINISHED_TEXT = "kvstore: too many unfinished requests on one connection"
OK_TRAILERS: tuple[Header, ...] = ((b"grpc-status", b"0"),)


class StreamConnection(Protocol):
    """What a stream needs of its connection (`server_connection`)."""

    peer: str
    runtime: Runtime
    engine: Engine
    sender: Sender
    limits: ServerLimits
    is_congested: bool
    """More replies are unread than a connection may have."""
    unfinished_bytes: int
    """Received for handlers and not taken by them; kept by the streams."""

    def schedule_flush(self) -> None:
        """Something is to be sent."""

    def holds(self, stream: ServerStream) -> bool:
        """Whether a call is open, or has something to send."""

    def ended(self, stream: ServerStream) -> None:
        """Nothing more happens to a call, but for what its outbox holds."""

    def defer(self, stream: ServerStream) -> None:
        """Resume a held stream once the replies before it have been read."""


class Receiver(Protocol):
    """The other end of a stream: the code that answers the call."""

    def message(self, data: bytes) -> None:
        """One request, in order; of a route for single requests the only one."""

    def half_closed(self) -> None:
        """The caller has sent its last request; it may still read. Not for single requests."""

    def drained(self) -> None:
        """Everything sent so far has left; also once when a stream of replies begins."""

    def closed(self) -> None:
        """A stream of replies has been sent to its end, by `finish` or `fail`."""

    def ended_by_caller(self, code: int) -> None:
        """The call ended without us: its caller left (CANCELLED), or its deadline passed."""


class Route(NamedTuple):
    """A method of a server."""

    open: Callable[[ServerStream], Receiver]
    """A call begins. It may end the stream at once."""
    is_single: bool
    """It takes one request: what follows is dropped, and an end without one is an error."""


class ServerStream:
    __slots__ = (
        "_connection",
        "_held",
        "_is_asked",
        "_outbox",
        "_reader",
        "_responded",
        "_route",
        "_unacknowledged",
        "_waiting",
        "_waiting_bytes",
        "deadline",
        "done",
        "encoding",
        "headers",
        "is_half_closed",
        "receiver",
        "stream_id",
        "wheel_slot",
    )

    def __init__(
        self, connection: StreamConnection, stream_id: int, headers: Sequence[Header], route: Route | None
    ) -> None:
        self._connection = connection
        self._route = route
        """None for an unknown path, which is refused before it is opened."""
        self.stream_id = stream_id
        self.headers = headers
        """As received, pseudo-headers included."""
        self.receiver: Receiver | None = None
        """Set while the call is open."""
        self.encoding = b""
        """Of compressed messages."""
        self.deadline: float | None = None
        """In the loop's time."""
        self.wheel_slot = 0
        self.is_half_closed = False
        """The caller's side has ended."""
        self.done = False
        """Our side has ended, or will once the outbox is empty."""
        self._reader: MessageReader | None = None
        """From the first frame on that is not exactly one message."""
        self._is_asked = False
        """A single request has been delivered."""
        self._held = False
        self._waiting: deque[tuple[bytes, int]] | None = None
        """Whole messages that a held stream has not taken, each with its size on the wire."""
        self._waiting_bytes = 0
        self._unacknowledged = 0
        """Received and not credited. Invariant: at most `_waiting_bytes` between two frames."""
        self._outbox: Outbox | None = None
        """Of a stream of replies, or of a reply in pieces."""
        self._responded = False
        """The response's headers were sent."""

    # -- the call --------------------------------------------------------------------------------

    @property
    def peer(self) -> str:
        return self._connection.peer

    def metadata(self) -> Iterator[tuple[str, str | bytes]]:
        """Of the request; values of `-bin` keys are bytes."""
        return decode_metadata(self.headers)

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, never negative; None without one."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - self._connection.runtime.loop.time())

    @property
    def unsent_messages(self) -> int:
        return 0 if self._outbox is None else len(self._outbox.messages)

    @property
    def unsent_bytes(self) -> int:
        """Of messages that neither left nor were passed to the engine."""
        return 0 if self._outbox is None else self._outbox.nbytes

    @property
    def is_congested(self) -> bool:
        """The caller's connection holds as many unread replies as it may."""
        return self._connection.is_congested

    def respond(self, message: bytes) -> None:
        """The only reply, and success."""
        if self.done:
            return
        connection = self._connection
        self._decide()
        self._forget()
        engine = connection.engine
        try:
            engine.send_response(self.stream_id, RESPONSE)
            if len(message) <= PIECE_BYTES:
                engine.send_data(self.stream_id, prefix(len(message)) + message)
                engine.send_trailers(self.stream_id, OK_TRAILERS)
            else:
                outbox = connection.sender.open(self.stream_id, None)
                connection.sender.send(outbox, message)
                connection.sender.close(outbox, OK_TRAILERS)
        except EngineError:
            return  # the caller reset the stream; its event follows
        connection.schedule_flush()

    def begin_replies(self) -> None:
        """The replies are a stream: `send` them, then `finish`."""
        if not self.done:
            self._outbox = self._connection.sender.open(self.stream_id, self)
            self._connection.schedule_flush()

    def send(self, message: bytes) -> None:
        """One reply of a stream."""
        if self.done:
            return
        assert self._outbox is not None
        self._respond_once()
        self._connection.sender.send(self._outbox, message)
        self._connection.schedule_flush()

    def finish(self) -> None:
        """Success, after the replies sent."""
        if not self.done:
            self._respond_once()
            self._close(OK_TRAILERS)

    def fail(self, code: int, text: str, metadata: Sequence[tuple[str, str | bytes]] = ()) -> None:
        """An error, after the replies sent."""
        if not self.done:
            self._close(_trailers(code, text, metadata))

    def hold(self) -> None:
        """Deliver no more requests, nor their end; the caller can send as much as its window allows."""
        self._held = True

    def resume(self) -> None:
        """Deliver requests again, those that came meanwhile at once."""
        if not self._held:
            return
        self._held = False
        waiting = self._waiting
        while waiting and not self._held and not self.done:
            message, nbytes = waiting.popleft()
            self._waiting_bytes -= nbytes
            self._connection.unfinished_bytes -= nbytes
            self._deliver(message)
        self._credit()
        self._pass_half_close()

    # -- what arrives; for the connection --------------------------------------------------------

    def open(self) -> None:
        """The call begins."""
        assert self._route is not None
        receiver = self._route.open(self)
        if self._connection.holds(self):
            self.receiver = receiver
            self._pass_half_close()

    def data(self, data: bytes, is_last: bool) -> None:
        """A DATA frame."""
        connection, size = self._connection, len(data)
        if is_last:
            self.is_half_closed = True
        if connection.is_congested and self._is_single and not (self._held or self.done):
            self._held = True
            connection.defer(self)
        if self._is_one_message(data, size):
            connection.engine.acknowledge_received_data(size, self.stream_id)
            self._deliver(data[PREFIX_BYTES:])
        else:
            self._unacknowledged += size
            if not (self.done or self._is_asked):
                self._read(data)
            self._credit()
        if is_last:
            self._pass_half_close()

    def refuse(self, error: StatusError) -> None:
        """End the call with what this package found."""
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.ended_by_caller(error.code)
        self._close(_trailers(error.code, error.text, ()), error)

    def on_time(self) -> None:
        """The deadline has passed."""
        if self.receiver is None:
            return  # the call ended within the same slot of the wheel
        if self._outbox is not None:
            self._connection.sender.drop_messages(self._outbox)
        self.refuse(StatusError(DEADLINE_EXCEEDED, DEADLINE_TEXT))

    def lost(self) -> None:
        """The caller reset the stream, or its connection ended."""
        receiver, self.receiver = self.receiver, None
        self._decide()
        self._forget()
        if receiver is not None:
            receiver.ended_by_caller(CANCELLED)

    # -- sender's listener -----------------------------------------------------------------------

    def drained(self) -> None:
        if not self.done and self.receiver is not None:
            self.receiver.drained()

    def closed(self) -> None:
        receiver = self.receiver
        self._forget()
        if receiver is not None:
            receiver.closed()

    # -- inside ----------------------------------------------------------------------------------

    @property
    def _is_single(self) -> bool:
        return self._route is not None and self._route.is_single

    def _is_one_message(self, data: bytes, size: int) -> bool:
        """Whether a frame is exactly one message for the receiver, as it nearly always is."""
        return (
            int.from_bytes(data[:PREFIX_BYTES], "big") == size - PREFIX_BYTES
            and self._reader is None
            and not self._held
            and not self.done
            and not self._is_asked
            and size - PREFIX_BYTES <= self._connection.limits.message_bytes
        )

    def _read(self, data: bytes) -> None:
        connection = self._connection
        if self._reader is None:
            self._reader = MessageReader(connection.limits.message_bytes, self.encoding)
        reader = self._reader
        before = reader.nbytes
        try:
            messages = reader.feed(data)
        except StatusError as error:
            reader.nbytes = before
            self.refuse(error)
            return
        connection.unfinished_bytes += reader.nbytes - before
        for message, nbytes in messages:
            if self._held or self._waiting:
                self._wait(message, nbytes)
            else:
                self._deliver(message)
        if connection.unfinished_bytes > connection.limits.unfinished_bytes:
            self.refuse(StatusError(RESOURCE_EXHAUSTED, UNFINISHED_TEXT))

    def _deliver(self, message: bytes) -> None:
        receiver = self.receiver
        if receiver is None or self.done or self._is_asked:
            return
        self._is_asked = self._is_single
        receiver.message(message)

    def _wait(self, message: bytes, nbytes: int) -> None:
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append((message, nbytes))
        self._waiting_bytes += nbytes
        self._connection.unfinished_bytes += nbytes

    def _credit(self) -> None:
        """Credit what is not part of a whole message that waits."""
        amount = self._unacknowledged - min(self._unacknowledged, self._waiting_bytes)
        if amount:
            self._unacknowledged -= amount
            self._connection.engine.acknowledge_received_data(amount, self.stream_id)
            self._connection.schedule_flush()

    def _pass_half_close(self) -> None:
        if not self.is_half_closed or self._held or self.done or self.receiver is None:
            return
        is_truncated = self._reader is not None and self._reader.nbytes > 0
        if self._is_single:
            if not self._is_asked:
                self.refuse(StatusError(UNKNOWN if is_truncated else INTERNAL, TRUNCATED_TEXT))
        elif is_truncated:
            self.refuse(StatusError(INTERNAL, TRUNCATED_TEXT))
        else:
            self.receiver.half_closed()

    def _respond_once(self) -> None:
        if not self._responded:
            self._responded = True
            with contextlib.suppress(EngineError):  # the caller reset the stream; its event follows
                self._connection.engine.send_response(self.stream_id, RESPONSE)

    def _close(self, trailers: Sequence[Header], error: StatusError | None = None) -> None:
        """End our side after what was sent; if that is nothing, the response is its trailers."""
        connection = self._connection
        self._decide()
        if self._outbox is not None and (self._responded or self._outbox.messages):
            connection.sender.close(self._outbox, trailers)
            connection.schedule_flush()
            return  # `closed` follows
        connection.sender.discard(self.stream_id)
        self.closed()
        fields = [*RESPONSE, *trailers]
        if error is not None:
            fields[0] = (b":status", error.http_status)
            if error.code == UNIMPLEMENTED:
                fields.append((b"grpc-accept-encoding", ACCEPTED))
        with contextlib.suppress(EngineError):  # the caller reset the stream; its event follows
            connection.engine.send_response(self.stream_id, fields, end_stream=True)
        connection.schedule_flush()

    def _decide(self) -> None:
        """Our side ends: requests are delivered no more, and everything received is credited."""
        self.done = True
        if self._reader is not None or self._unacknowledged:
            unread = self._waiting_bytes + (self._reader.nbytes if self._reader is not None else 0)
            self._connection.unfinished_bytes -= unread
            self._waiting, self._reader, self._waiting_bytes = None, None, 0
            self._credit()

    def _forget(self) -> None:
        """Nothing more happens to this call."""
        self.receiver = None
        connection = self._connection
        if self.wheel_slot:
            connection.runtime.wheel.remove(self)
        connection.ended(self)


def _trailers(code: int, text: str, metadata: Sequence[tuple[str, str | bytes]]) -> list[Header]:
    return [
        (b"grpc-status", b"%d" % code),
        (b"grpc-message", encode_message(text)),
        *encode_metadata(metadata),
    ]

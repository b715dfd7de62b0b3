"""One call of a server: its requests in, its replies out, its end.

A stream ends on our side exactly once: by `respond`, `finish`, `fail`, or because its caller is gone. Methods
called after that do nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from kvstore.http2.engine import EngineError, Header
from kvstore.http2.framing import ACCEPTED, prefix
from kvstore.http2.limits import PIECE_BYTES
from kvstore.http2.metadata import decode_metadata, encode_message, encode_metadata
from kvstore.http2.request_side import Receiver, RequestSide, StreamConnection
from kvstore.http2.sending import Outbox
from kvstore.http2.status import CANCELLED, DEADLINE_EXCEEDED, DEADLINE_TEXT, UNIMPLEMENTED, StatusError

RESPONSE: tuple[Header, ...] = ((b":status", b"200"), (b"content-type", b"application/grpc"))
OK_TRAILERS: tuple[Header, ...] = ((b"grpc-status", b"0"),)


class Route(NamedTuple):
    """A method of a server."""

    open: Callable[[ServerStream], Receiver]
    """A call begins. It may end the stream at once."""
    is_single: bool
    """It takes one request: what follows is dropped, and an end without one is an error."""


class ServerStream(RequestSide):
    __slots__ = (
        "_outbox",
        "_responded",
        "_route",
        "deadline",
        "headers",
        "wheel_slot",
    )

    def __init__(
        self, connection: StreamConnection, stream_id: int, headers: Sequence[Header], route: Route | None
    ) -> None:
        super().__init__(connection, stream_id, route is not None and route.is_single)
        self._route = route
        """None for an unknown path, which is refused before it is opened."""
        self.headers = headers
        """As received, pseudo-headers included."""
        self.deadline: float | None = None
        """In the loop's time."""
        self.wheel_slot = 0
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

    # -- what arrives; for the connection --------------------------------------------------------

    def open(self) -> None:
        """The call begins."""
        assert self._route is not None
        receiver = self._route.open(self)
        if self._connection.holds(self):
            self.receiver = receiver
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

"""The receiving half of a server's stream: messages out of frames, credit, and what a held stream keeps."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from kvstore.http2.connection import Runtime
from kvstore.http2.engine import Engine
from kvstore.http2.framing import PREFIX_BYTES, MessageReader
from kvstore.http2.limits import ServerLimits
from kvstore.http2.sending import Sender
from kvstore.http2.status import INTERNAL, RESOURCE_EXHAUSTED, TRUNCATED_TEXT, UNKNOWN, StatusError

UNFINISHED_TEXT = "kvstore: too many unfinished requests on one connection"


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

    def holds(self, stream: RequestSide) -> bool:
        """Whether a call is open, or has something to send."""

    def ended(self, stream: RequestSide) -> None:
        """Nothing more happens to a call, but for what its outbox holds."""

    def defer(self, stream: RequestSide) -> None:
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


class RequestSide:
    """See `server_stream.ServerStream`, of which this is a part."""

    __slots__ = (
        "_connection",
        "_held",
        "_is_asked",
        "_is_single",
        "_reader",
        "_unacknowledged",
        "_waiting",
        "_waiting_bytes",
        "done",
        "encoding",
        "is_half_closed",
        "receiver",
        "stream_id",
    )

    def __init__(self, connection: StreamConnection, stream_id: int, is_single: bool) -> None:
        self._connection = connection
        self._is_single = is_single
        """One request: what follows it is dropped, and an end without one is an error."""
        self.stream_id = stream_id
        self.receiver: Receiver | None = None
        """Set while the call is open."""
        self.encoding = b""
        """Of compressed messages."""
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

    def refuse(self, error: StatusError) -> None:
        """End the call with what this package found."""
        raise NotImplementedError

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
            if self.done:
                return  # an earlier one has ended the call
            if self._held or self._waiting:
                self._wait(message, nbytes)
            else:
                self._deliver(message)
        if not self.done and connection.unfinished_bytes > connection.limits.unfinished_bytes:
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

    def _decide(self) -> None:
        """Our side ends: requests are delivered no more, and everything received is credited."""
        self.done = True
        if self._reader is not None or self._unacknowledged:
            unread = self._waiting_bytes + (self._reader.nbytes if self._reader is not None else 0)
            self._connection.unfinished_bytes -= unread
            self._waiting, self._reader, self._waiting_bytes = None, None, 0
            self._credit()

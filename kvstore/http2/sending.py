"""What the streams of one connection have to send, passed to the engine piece by piece.

The engine sends the data of a stream whole before it sends the next stream's, and keeps without bound what
the peer's windows do not admit. So each stream has an outbox, and the engine holds one piece of it at a time:
small replies wait for at most a piece of every long one, and memory is bounded by what outboxes may hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from kvstore.http2.engine import NO_ERROR, Engine, EngineError, Header
from kvstore.http2.framing import prefix
from kvstore.http2.limits import PIECE_BYTES


class Listener(Protocol):
    """The sender of a stream's messages."""

    def drained(self) -> None:
        """Everything sent so far was passed to the transport; more may be sent."""

    def closed(self) -> None:
        """Everything, trailers included, was passed to the engine."""


class Outbox:
    """The messages of one stream that the engine has not got."""

    __slots__ = ("_offset", "listener", "messages", "nbytes", "stream_id", "trailers")

    def __init__(self, stream_id: int, listener: Listener | None) -> None:
        self.stream_id = stream_id
        self.listener = listener
        """None for a stream that only has to end."""
        self.messages: deque[bytes] = deque()
        """Each with its prefix."""
        self.nbytes = 0
        """Of `messages`, less what was taken of the first."""
        self.trailers: Sequence[Header] | None = None
        """Sent after the last message; set once no message follows."""
        self._offset = 0
        """Bytes of the first message that the engine has got."""

    def append(self, message: bytes) -> None:
        framed = prefix(len(message)) + message
        self.messages.append(framed)
        self.nbytes += len(framed)

    def take_piece(self) -> bytes | memoryview:
        """At most PIECE_BYTES from the first message on; there is one."""
        messages = self.messages
        first = messages[0]
        if len(first) - self._offset > PIECE_BYTES:
            start = self._offset
            self._offset += PIECE_BYTES
            self.nbytes -= PIECE_BYTES
            return memoryview(first)[start : self._offset]
        piece = messages.popleft()
        if self._offset:
            piece = piece[self._offset :]
            self._offset = 0
        size = len(piece)
        if messages and size + len(messages[0]) <= PIECE_BYTES:
            parts = [piece]
            while messages and size + len(messages[0]) <= PIECE_BYTES:
                parts.append(messages.popleft())
                size += len(parts[-1])
            piece = b"".join(parts)
        self.nbytes -= size
        return piece


class Sender:
    """The outboxes of one connection. `pass_on`, the engine's `data_to_send` and `taken` are one round."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._outboxes: dict[int, Outbox] = {}
        """By stream, until closed or discarded."""
        self._ready: dict[Outbox, None] = {}
        """Those with something to pass on or to report, of which the engine holds nothing."""
        self._passed: list[Outbox] = []
        """Of this round."""
        self._blocked: dict[int, Outbox] = {}
        """Those whose data the engine still holds: the peer's windows do not admit it."""
        self._to_reset: dict[int, None] = {}
        """Streams that have ended on our side alone: reset once everything has left."""
        self.nbytes = 0
        """Of all outboxes."""

    def open(self, stream_id: int, listener: Listener | None) -> Outbox:
        outbox = self._outboxes[stream_id] = Outbox(stream_id, listener)
        self._ready[outbox] = None
        return outbox

    def send(self, outbox: Outbox, message: bytes) -> None:
        """One message, before the trailers."""
        assert outbox.trailers is None
        before = outbox.nbytes
        outbox.append(message)
        self.nbytes += outbox.nbytes - before
        if outbox.stream_id not in self._blocked:
            self._ready[outbox] = None

    def close(self, outbox: Outbox, trailers: Sequence[Header]) -> None:
        """End the stream after the messages sent."""
        outbox.trailers = trailers
        if outbox.stream_id not in self._blocked:
            self._ready[outbox] = None

    def drop_messages(self, outbox: Outbox) -> None:
        """Forget what the engine has not got. A message that it has in part is lost to the peer as well."""
        self.nbytes -= outbox.nbytes
        outbox.messages.clear()
        outbox.nbytes = 0

    def reset_when_sent(self, stream_id: int) -> None:
        """Our side has ended and the peer's has not: it need send no more."""
        self._to_reset[stream_id] = None

    def peer_ended(self, stream_id: int) -> None:
        """The peer's side ended by itself after ours."""
        self._to_reset.pop(stream_id, None)

    def discard(self, stream_id: int) -> None:
        """The stream is gone."""
        self._to_reset.pop(stream_id, None)
        outbox = self._outboxes.pop(stream_id, None)
        if outbox is not None:
            self.nbytes -= outbox.nbytes
            self._ready.pop(outbox, None)
            self._blocked.pop(stream_id, None)
            outbox.listener = None

    def window_opened(self, stream_id: int) -> None:
        """The peer admits more data, on one stream or (0) on any."""
        if not self._blocked:
            return
        if stream_id:
            opened = [self._blocked.pop(stream_id)] if stream_id in self._blocked else []
        else:
            opened, self._blocked = list(self._blocked.values()), {}
        self._ready.update(dict.fromkeys(opened))

    def pass_on(self) -> None:
        """One piece of each outbox that is ready."""
        if not self._ready:
            return
        ready, self._ready = self._ready, {}
        for outbox in ready:
            self._passed.append(outbox)
            if self._engine.queued_body_size(outbox.stream_id):
                continue  # a window opened by less than the piece
            try:
                self._pass_piece(outbox)
            except EngineError:  # the stream was reset; its event has not been seen yet
                self.discard(outbox.stream_id)
                self._passed.pop()

    def _pass_piece(self, outbox: Outbox) -> None:
        if outbox.messages:
            before = outbox.nbytes
            piece = outbox.take_piece()
            self.nbytes -= before - outbox.nbytes
            self._engine.send_data(outbox.stream_id, piece)  # type: ignore[arg-type]  # any buffer will do
        if not outbox.messages and outbox.trailers is not None:
            self._engine.send_trailers(outbox.stream_id, outbox.trailers)
            self._outboxes.pop(outbox.stream_id, None)
            if outbox.listener is not None:
                outbox.listener.closed()

    def taken(self) -> bool:
        """`data_to_send` was called: sort the outboxes of this round, and end what has been sent.

        Returns whether another round would do anything.
        """
        if not (self._passed or self._to_reset):
            return bool(self._ready)
        engine = self._engine
        passed, self._passed = self._passed, []
        for outbox in passed:
            if outbox.stream_id not in self._outboxes:
                continue  # closed or discarded
            if engine.queued_body_size(outbox.stream_id):
                self._blocked[outbox.stream_id] = outbox
            elif outbox.messages or outbox.trailers is not None:
                self._ready[outbox] = None
            elif outbox.listener is not None:
                outbox.listener.drained()
        if self._to_reset:
            sent = [
                one
                for one in self._to_reset
                if one not in self._outboxes and not engine.queued_body_size(one)
            ]
            for stream_id in sent:
                del self._to_reset[stream_id]
                engine.reset_stream(stream_id, NO_ERROR)
            return bool(sent or self._ready)
        return bool(self._ready)

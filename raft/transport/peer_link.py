"""One member's outgoing stream to one peer: lanes, dialling, back-off. Knows no stack.

Theory of operation. A link dials, exchanges handshakes, writes frames until the stream ends, waits, dials
again; callbacks of the stream and one timer drive it. `send` only queues a message. One callback in the next
loop iteration writes all queued messages as one frame, urgent lane first. While the stream takes no more,
messages queue, so frames grow with load and a lone message leaves at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass

from raft.core.messages import Message, MessageType
from raft.transport import codec
from raft.transport.liveness import (
    BULK_BOUNDS,
    FRAME_BYTES_MAX,
    HANDSHAKE_TIMEOUT_S,
    MESSAGE_BYTES_MAX,
    PROBE_TIMEOUT_S,
    ROUND_TRIP_BOUNDS_S,
    ROUND_TRIP_STALE_S,
    URGENT_BOUNDS,
    Backoff,
    Incarnations,
    LaneBounds,
    is_bulk,
    judge_answer,
    judge_incarnation,
    message_bytes,
)
from raft.transport.peer_service import PROBE_METHOD, STREAM_METHOD, host_port
from raft.transport.stack import CallFailed, Stack, Stream, StreamEnd
from raft.transport.transport_protocol import Handshake, Liveness, PeerMessage, PeerStatistics, Receiver

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LinkContext:
    """What all links of one member share."""

    stack: Stack
    handshake: Handshake
    receiver: Receiver
    incarnations: Incarnations
    rng: random.Random


class _Lane:
    """Messages waiting to be written, oldest first."""

    __slots__ = ("bounds", "nbytes", "queue")

    def __init__(self, bounds: LaneBounds) -> None:
        self.bounds = bounds
        self.queue: deque[tuple[PeerMessage, int]] = deque()
        self.nbytes = 0
        """Invariant: the sum of the sizes in `queue`, at most bounds.bytes_max."""

    def push(self, message: PeerMessage, nbytes: int) -> bool:
        if len(self.queue) >= self.bounds.messages_max or self.nbytes + nbytes > self.bounds.bytes_max:
            return False
        self.queue.append((message, nbytes))
        self.nbytes += nbytes
        return True

    def move(self, frame: list[PeerMessage], capacity: int) -> int:
        """Append messages to `frame` while they fit `capacity`, the first in any case; return the rest."""
        queue = self.queue
        while queue and (queue[0][1] <= capacity or not frame):
            message, nbytes = queue.popleft()
            self.nbytes -= nbytes
            capacity -= nbytes
            frame.append(message)
        return capacity

    def clear(self) -> None:
        self.queue.clear()
        self.nbytes = 0


class Link:
    """See `PeerLink`; also the handler of its stream. Belongs to one event loop."""

    def __init__(self, member_id: int, urls: tuple[str, ...], context: LinkContext) -> None:
        self.member_id = member_id
        self.urls = urls
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._backoff = Backoff(context.rng)
        self._attempts = 0
        """Dials so far; selects the next URL, round robin."""
        self._url = ""
        """Dialled last."""
        self._stream: Stream | None = None
        """From a dial to its end. Invariant: without one, `_timer` waits to dial, unless closed."""
        self._timer: asyncio.TimerHandle | None = None
        """The back-off, or the time left for the answer to the handshake; None while connected."""
        self._urgent = _Lane(URGENT_BOUNDS)
        self._bulk = _Lane(BULK_BOUNDS)
        """Both lanes are empty while not connected."""
        self._connected_to: int | None = None
        """The incarnation at the far end, once it has accepted our handshake."""
        self._flush_due = False
        self._closed = False
        self._last_trouble = ""
        """The reason logged last, so that a peer that is down for hours is logged once."""
        self._sent_messages = 0
        self._sent_bytes = 0
        self.received_bytes = 0
        self._send_failures = 0
        self._heartbeat_sent_s = 0.0
        """Loop time of the oldest unanswered heartbeat written; 0.0 when every one is answered."""
        self._round_trip_seconds = 0.0
        self._round_trip_buckets = [0] * (len(ROUND_TRIP_BOUNDS_S) + 1)

    @property
    def connected(self) -> bool:
        return self._connected_to is not None

    def send(self, message: PeerMessage) -> bool:
        if self._connected_to is not None:
            nbytes = message_bytes(message)
            lane = self._bulk if is_bulk(message) else self._urgent
            if nbytes <= MESSAGE_BYTES_MAX and lane.push(message, nbytes):
                if not self._flush_due:
                    self._flush_due = True
                    self._loop.call_soon(self._flush)
                return True
        self._send_failures += 1
        self._context.receiver.on_dropped(self.member_id, message)
        return False

    def dial(self) -> None:
        """Dial now; called once to begin, then by the link itself."""
        self._cancel_timer()
        if self._closed:
            return
        url = self._url = self.urls[self._attempts % len(self.urls)]
        self._attempts += 1
        stream = self._stream = self._context.stack.dial(*host_port(url), STREAM_METHOD, self)
        self._timer = self._loop.call_later(HANDSHAKE_TIMEOUT_S, self._handshake_unanswered)
        stream.write(codec.encode_opening(self._context.handshake))

    def wake(self) -> None:
        """Dial without waiting for the back-off: the peer has just dialled us, so it is up."""
        self._backoff.reset()
        if self._stream is None:
            self.dial()

    def heartbeat_answered(self) -> None:
        if self._heartbeat_sent_s:
            took_s = self._loop.time() - self._heartbeat_sent_s
            self._round_trip_seconds += took_s
            self._round_trip_buckets[bisect_left(ROUND_TRIP_BOUNDS_S, took_s)] += 1
            self._heartbeat_sent_s = 0.0

    def statistics(self) -> PeerStatistics:
        return PeerStatistics(
            sent_messages=self._sent_messages,
            sent_bytes=self._sent_bytes,
            received_bytes=self.received_bytes,
            send_failures=self._send_failures,
            round_trip_seconds=self._round_trip_seconds,
            round_trip_buckets=tuple(self._round_trip_buckets),
        )

    def close_nowait(self) -> None:
        """Close the link and its stream. Reports nothing."""
        self._closed = True
        self._cancel_timer()
        self._reset()

    async def probe(self) -> Liveness:
        """Open one plain connection, exchange handshakes, close it; try each URL, within PROBE_TIMEOUT_S."""
        alive_as = self._context.incarnations.alive_as(self.member_id)
        verdict = Liveness.UNREACHABLE
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                for url in self.urls:
                    try:
                        return judge_incarnation(alive_as, await self._probe_url(url))
                    except CallFailed as failure:
                        if not failure.is_evidence:
                            logger.info("probe of member %x at %s: %s", self.member_id, url, failure)
                            return Liveness.UNREACHABLE
                        verdict = Liveness.DEAD
        except TimeoutError:
            return Liveness.UNREACHABLE
        except codec.Malformed as error:
            logger.info("probe of member %x: %s", self.member_id, error)
            return Liveness.UNREACHABLE
        return verdict

    async def _probe_url(self, url: str) -> int:
        """Return the incarnation that answers at `url`. Raises CallFailed."""
        opening = codec.encode_handshake(self._context.handshake)
        data = await self._context.stack.call(*host_port(url), PROBE_METHOD, opening)
        return codec.decode_answer(data).handshake.incarnation

    # -- the stream's handler --------------------------------------------------------------------

    def message(self, data: bytes) -> None:
        if self._connected_to is not None:
            return  # the acceptor sends nothing after its handshake
        try:
            answer = judge_answer(self._context.handshake, self.member_id, codec.decode_answer(data))
        except codec.Malformed as error:
            self._give_up(str(error))
            return
        self._context.receiver.on_answer(self.member_id, answer)
        if self._closed:
            return
        if answer.refusal:
            self._give_up(f"the process at {self._url} {answer.refusal}")
        else:
            self._open(answer.handshake.incarnation)

    def drained(self) -> None:
        self._flush()

    def ended(self, end: StreamEnd) -> None:
        """Wait, then dial again; report the end of an open stream."""
        incarnation = self._connected_to
        self._reset()
        if end.reason != self._last_trouble:
            self._last_trouble = end.reason
            logger.warning("no stream to member %x: %s", self.member_id, end.reason)
        self._cancel_timer()
        self._timer = self._loop.call_later(self._backoff.next_s(), self.dial)
        if incarnation is not None:
            self._context.incarnations.ended(self.member_id, incarnation)
            self._context.receiver.on_disconnected(self.member_id)

    # -- inside ----------------------------------------------------------------------------------

    def _open(self, incarnation: int) -> None:
        self._cancel_timer()
        self._context.incarnations.seen(self.member_id, incarnation)
        self._backoff.reset()
        self._last_trouble = ""
        self._connected_to = incarnation
        logger.info("stream to member %x is open", self.member_id)
        self._context.receiver.on_connected(self.member_id)

    def _handshake_unanswered(self) -> None:
        self._give_up(f"no answer to the handshake in {HANDSHAKE_TIMEOUT_S} s")

    def _give_up(self, reason: str) -> None:
        """End the stream on our side; what follows is the same as for an end by the peer."""
        self.ended(StreamEnd(reason, is_evidence=False))

    def _reset(self) -> None:
        """Forget the stream, and what was queued on it."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        self._connected_to = None
        self._urgent.clear()
        self._bulk.clear()
        self._heartbeat_sent_s = 0.0

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flush(self) -> None:
        """Write frames while the stream takes them; `drained` continues."""
        self._flush_due = False
        stream = self._stream
        while self._connected_to is not None and stream is not None and stream.is_writable:
            frame = self._take_frame()
            if not frame:
                return
            data = codec.encode_frame(frame)
            self._sent_messages += len(frame)
            self._sent_bytes += len(data)
            stream.write(data)

    def _take_frame(self) -> list[PeerMessage]:
        frame: list[PeerMessage] = []
        capacity = self._urgent.move(frame, FRAME_BYTES_MAX)
        self._bulk.move(frame, capacity)
        if not self._heartbeat_is_fresh():
            for message in frame:
                if isinstance(message, Message) and message.type is MessageType.HEARTBEAT:
                    self._heartbeat_sent_s = self._loop.time()
                    break
        return frame

    def _heartbeat_is_fresh(self) -> bool:
        """Whether a round trip is being measured; one whose answer was lost expires."""
        started_s = self._heartbeat_sent_s
        return bool(started_s) and self._loop.time() - started_s < ROUND_TRIP_STALE_S

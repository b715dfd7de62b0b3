"""One member's outgoing gRPC stream to one peer: lanes, dialling, back-off.

Theory of operation. Each link has one task: dial, exchange handshakes, write frames until the stream ends,
wait, dial again. `send` only queues a message and wakes that task. In its next iteration the task writes all
queued messages as one frame, urgent lane first. More messages queue while a frame is being written, so frames
grow with load and a lone message leaves at once.

Every attempt has a channel of its own: gRPC would otherwise keep a failed connection's back-off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from bisect import bisect_left
from collections import deque

import grpc

from raft.core.messages import Message, MessageType
from raft.transport import codec
from raft.transport.grpc_options import CHANNEL_OPTIONS, PROBE_METHOD, STREAM_METHOD, host_port, target_of
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
from raft.transport.transport_protocol import Handshake, Liveness, PeerMessage, PeerStatistics, Receiver

logger = logging.getLogger(__name__)

_Call = grpc.aio.StreamStreamCall[bytes, bytes]


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


class GrpcLink:
    """See `PeerLink`. Belongs to one event loop; created with the loop running."""

    def __init__(
        self,
        *,
        member_id: int,
        urls: tuple[str, ...],
        handshake: Handshake,
        receiver: Receiver,
        incarnations: Incarnations,
        rng: random.Random,
    ) -> None:
        self.member_id = member_id
        self.urls = urls
        self._handshake = handshake
        self._receiver = receiver
        self._incarnations = incarnations
        self._backoff = Backoff(rng)
        self._attempts = 0
        """Dials so far; selects the next URL, round robin."""
        self._urgent = _Lane(URGENT_BOUNDS)
        self._bulk = _Lane(BULK_BOUNDS)
        """Both lanes are empty while not connected."""
        self._connected = False
        self._closing = False
        """`close_nowait` was called. Cancelling the task may not suffice: gRPC swallows a cancellation that
        coincides with the end of the call."""
        self._sleeper: asyncio.Future[None] | None = None
        """The idle task waits on it, connected or not; any event resolves it."""
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
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run(), name=f"peer link to {member_id:x}")
        self._task.add_done_callback(self._task_ended)

    @property
    def connected(self) -> bool:
        return self._connected

    def send(self, message: PeerMessage) -> bool:
        if self._connected:
            nbytes = message_bytes(message)
            lane = self._bulk if is_bulk(message) else self._urgent
            if nbytes <= MESSAGE_BYTES_MAX and lane.push(message, nbytes):
                self._rouse()
                return True
        self._send_failures += 1
        self._receiver.on_dropped(self.member_id, message)
        return False

    def wake(self) -> None:
        """Dial without waiting for the back-off: the peer has just dialled us, so it is up."""
        self._backoff.reset()
        self._rouse()

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
        """Begin to close the link; `wait_closed` returns once its sockets are closed. Reports nothing."""
        self._connected = False
        self._closing = True
        self._task.cancel()

    @property
    def closed(self) -> bool:
        return self._task.done()

    async def wait_closed(self) -> None:
        await asyncio.wait([self._task])

    async def probe(self) -> Liveness:
        """Open one plain connection, exchange handshakes, close it; try each URL, within PROBE_TIMEOUT_S."""
        alive_as = self._incarnations.alive_as(self.member_id)
        verdict = Liveness.UNREACHABLE
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                for url in self.urls:
                    found = await self._probe_url(url)
                    if found is not None:
                        return judge_incarnation(alive_as, found)
                    verdict = Liveness.DEAD
        except (TimeoutError, OSError):
            return Liveness.UNREACHABLE
        return verdict

    async def _probe_url(self, url: str) -> int | None:
        """Return the incarnation that answers at `url`, None when the connection is refused or reset.

        Raises OSError when the network, not the peer, answers: no route, unknown name. gRPC hides these
        differences, so a bare connection is tried first.
        """
        host, port = host_port(url)
        try:
            _, writer = await asyncio.open_connection(host, port)
        except (ConnectionRefusedError, ConnectionResetError):
            return None
        writer.close()
        async with grpc.aio.insecure_channel(target_of(host, port), options=CHANNEL_OPTIONS) as channel:
            exchange: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PROBE_METHOD)
            try:
                data = await exchange(codec.encode_handshake(self._handshake))
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    return None
                raise OSError(error.details()) from error
            except asyncio.CancelledError:
                if _being_cancelled():
                    raise
                return None  # the peer's server is stopping
            return codec.decode_answer(data).handshake.incarnation

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """Report an exception of the receiver, which is a bug, to the loop's handler at once."""
        if not task.cancelled() and (fault := task.exception()) is not None:
            context = {"message": f"{task.get_name()} failed", "exception": fault, "task": task}
            self._loop.call_exception_handler(context)

    async def _run(self) -> None:
        while not self._closing:
            trouble = ""
            try:
                trouble = await self._run_stream()
            except grpc.aio.AioRpcError as error:
                trouble = error.details() or error.code().name
            except TimeoutError:
                trouble = f"no answer to the handshake in {HANDSHAKE_TIMEOUT_S} s"
            except asyncio.CancelledError:
                if _being_cancelled():
                    raise
                trouble = "the peer cancelled the stream"
            except (codec.Malformed, ValueError, asyncio.InvalidStateError) as error:
                trouble = str(error)
            if self._closing:
                return
            if trouble != self._last_trouble:
                self._last_trouble = trouble
                logger.warning("no stream to member %x: %s", self.member_id, trouble)
            await self._sleep(self._backoff.next_s())

    async def _run_stream(self) -> str:
        """Dial once and serve the stream until it ends; return the reason."""
        url = self.urls[self._attempts % len(self.urls)]
        self._attempts += 1
        async with grpc.aio.insecure_channel(target_of(*host_port(url)), options=CHANNEL_OPTIONS) as channel:
            call: _Call = channel.stream_stream(STREAM_METHOD)()
            try:
                async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                    await call.write(codec.encode_opening(self._handshake))
                    data = await call.read()
                if self._closing:
                    return "the link is closed"
                if not isinstance(data, bytes):
                    return "the stream ended before the handshake was answered"
                answer = judge_answer(self._handshake, self.member_id, codec.decode_answer(data))
                self._receiver.on_answer(self.member_id, answer)
                if answer.refusal:
                    return f"the process at {url} {answer.refusal}"
                await self._write_frames(call, answer.handshake.incarnation)
            finally:
                call.cancel()
        return "the stream ended"

    async def _write_frames(self, call: _Call, incarnation: int) -> None:
        """Write queued messages until the stream ends, then report that to the receiver."""
        self._incarnations.seen(self.member_id, incarnation)
        self._backoff.reset()
        self._last_trouble = ""
        self._connected = True
        logger.info("stream to member %x is open", self.member_id)
        ending = self._loop.create_task(self._read_to_end(call))
        ending.add_done_callback(lambda _: self._rouse())
        try:
            self._receiver.on_connected(self.member_id)
            while not ending.done():
                frame = self._take_frame()
                if frame:
                    data = codec.encode_frame(frame)
                    self._sent_messages += len(frame)
                    self._sent_bytes += len(data)
                    await call.write(data)
                else:
                    await self._sleep(None)
        finally:
            was_connected, self._connected = self._connected, False
            self._urgent.clear()
            self._bulk.clear()
            self._heartbeat_sent_s = 0.0
            if was_connected:
                self._incarnations.ended(self.member_id, incarnation)
                self._receiver.on_disconnected(self.member_id)
            ending.cancel()
            await asyncio.wait([ending])

    async def _read_to_end(self, call: _Call) -> None:
        """Return when the stream has ended in any way; the acceptor sends nothing after its handshake."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while isinstance(await call.read(), bytes):
                pass

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

    def _rouse(self) -> None:
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    async def _sleep(self, timeout_s: float | None) -> None:
        """Wait until roused, at most `timeout_s` seconds."""
        self._sleeper = self._loop.create_future()
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, self._rouse)
        try:
            await self._sleeper
        finally:
            self._sleeper = None
            if timer is not None:
                timer.cancel()


def _being_cancelled() -> bool:
    """Whether a CancelledError is meant for this task.

    gRPC raises the same error in a task that awaits a call which the *peer* has cancelled.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

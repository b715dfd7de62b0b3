"""The two ends of a snapshot's pipe over a stream of the stack."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from raft.transport import codec
from raft.transport.peer_service import SNAPSHOT_METHOD, host_port
from raft.transport.snapshot_stream import receive_snapshot, send_snapshot
from raft.transport.stack import Stack, Stream, StreamEnd
from raft.transport.transport_protocol import (
    Handshake,
    ReadSnapshot,
    Receiver,
    SnapshotChunk,
    SnapshotFailed,
    SnapshotOffer,
    SnapshotOpening,
    SnapshotStatus,
)

logger = logging.getLogger(__name__)

UNREAD_MESSAGES_MAX = 64
"""Messages received and not read that end an attempt. The protocol admits SNAPSHOT_CHUNKS_IN_FLIGHT chunks
and about as many statuses, so only a faulty peer has more."""


class _Pipe:
    """Makes reads and writes of one task from the callbacks of a stream."""

    stream: Stream
    """Set before the first callback."""

    def __init__(self) -> None:
        self._arrived: deque[bytes] = deque()
        self._end = ""
        """Why the stream has ended; empty while it is open."""
        self._news = asyncio.Event()

    async def read_bytes(self) -> bytes:
        """Raises SnapshotFailed after the last message of an ended stream."""
        while not self._arrived:
            await self._wait()
        return self._arrived.popleft()

    async def write_bytes(self, data: bytes) -> None:
        """Raises SnapshotFailed on an ended stream, unless a message, which may say why, is still unread."""
        while not self.stream.is_writable and not self._end:
            await self._wait()
        if not self._end:
            self.stream.write(data)
        elif not self._arrived:
            raise SnapshotFailed(self._end)

    async def _wait(self) -> None:
        if self._end:
            raise SnapshotFailed(self._end)
        self._news.clear()
        await self._news.wait()

    def message(self, data: bytes) -> None:
        self._arrived.append(data)
        if len(self._arrived) > UNREAD_MESSAGES_MAX:
            self.stream.close("more was sent than may be in flight")
            self.ended(StreamEnd("the other side sent more than may be in flight", is_evidence=False))
        self._news.set()

    def drained(self) -> None:
        self._news.set()

    def ended(self, end: StreamEnd) -> None:
        self._end = self._end or end.reason
        self._news.set()


class _SenderPipe(_Pipe):
    """See `SenderPipe`."""

    async def write(self, frame: SnapshotOpening | SnapshotChunk) -> None:
        await self.write_bytes(codec.encode_snapshot_frame(frame))

    async def read(self) -> SnapshotStatus:
        return codec.decode_snapshot_status(await self.read_bytes())


class _ReceiverPipe(_Pipe):
    """See `ReceiverPipe`."""

    async def write(self, status: SnapshotStatus) -> None:
        await self.write_bytes(codec.encode_snapshot_status(status))

    async def read(self) -> SnapshotOpening | SnapshotChunk:
        return codec.decode_snapshot_frame(await self.read_bytes())


class IncomingSnapshots:
    """Serves the snapshots that other members send, a task each."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._tasks: set[asyncio.Task[None]] = set()

    def opened(self, stream: Stream) -> _ReceiverPipe:
        """Begin to receive on a stream that was accepted."""
        pipe = _IncomingPipe()
        pipe.stream = stream
        pipe.task = asyncio.get_running_loop().create_task(self._receive(pipe), name="incoming snapshot")
        self._tasks.add(pipe.task)
        pipe.task.add_done_callback(self._tasks.discard)
        return pipe

    async def close(self) -> None:
        """End every attempt."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _receive(self, pipe: _ReceiverPipe) -> None:
        error = ""
        try:
            await receive_snapshot(pipe, self._receiver)
        except SnapshotFailed as failure:
            logger.info("the transfer of a snapshot was interrupted: %s", failure)
        except codec.Malformed as malformed:
            error = str(malformed)
        finally:
            pipe.stream.close(error)


class _IncomingPipe(_ReceiverPipe):
    """Ends its task with the stream: a write to the disk under way is abandoned, too."""

    task: asyncio.Task[None]

    def ended(self, end: StreamEnd) -> None:
        super().ended(end)
        self.task.cancel()


async def send_snapshot_to(
    stack: Stack,
    url: str,
    handshake: Handshake,
    offer: SnapshotOffer,
    read: ReadSnapshot,
    progress: Callable[[int], None],
) -> None:
    """Make one attempt to send a snapshot, over a connection of its own. Raises SnapshotFailed."""
    pipe = _SenderPipe()
    pipe.stream = stack.dial(*host_port(url), SNAPSHOT_METHOD, pipe)
    try:
        await send_snapshot(pipe, handshake, offer, read, progress)
    except codec.Malformed as error:
        raise SnapshotFailed(str(error)) from error
    finally:
        pipe.stream.close()

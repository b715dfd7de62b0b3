"""Sending a snapshot from one member to another: the protocol, the same for both implementations.

A snapshot travels on a connection of its own, so that no heartbeat ever waits behind it. The sender opens
with an offer. The receiver replies with the offset at which to continue, above 0 if an earlier attempt was
interrupted. Chunks follow, each with its checksum, at most SNAPSHOT_CHUNKS_IN_FLIGHT ahead of the receiver's
disk, so that memory is bounded at both ends. After the last chunk the receiver verifies and installs the
snapshot, and sends a status every SNAPSHOT_ALIVE_S meanwhile. Silence in either direction for
SNAPSHOT_SILENCE_S ends the attempt.

Rules of this file: no sockets and no encoding; the implementation provides the two ends of a pipe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from crc32c import crc32c

from raft.transport.liveness import HANDSHAKE_TIMEOUT_S
from raft.transport.transport_protocol import (
    Handshake,
    ReadSnapshot,
    Receiver,
    SnapshotChunk,
    SnapshotFailed,
    SnapshotOffer,
    SnapshotOpening,
    SnapshotRefused,
    SnapshotSink,
    SnapshotStatus,
)

SNAPSHOT_CHUNK_BYTES = 256 * 1024
"""One message: large enough that its flat costs vanish, small enough that the loop copies and checksums it in
well under a millisecond and a heartbeat of the same process is not late."""

SNAPSHOT_CHUNKS_IN_FLIGHT = 4
"""Chunks sent and not yet on the receiver's disk: hides a round trip, pins 1 MiB."""

SNAPSHOT_SILENCE_S = 10.0
"""Silence of the other end that ends the attempt: far above the slowest healthy sync."""

SNAPSHOT_ALIVE_S = 1.0
"""Interval at which the receiver sends its status while it verifies and installs."""


class SenderPipe(Protocol):
    """The sender's end. Both calls raise SnapshotFailed when the connection has ended."""

    async def write(self, frame: SnapshotOpening | SnapshotChunk) -> None: ...

    async def read(self) -> SnapshotStatus: ...


class ReceiverPipe(Protocol):
    """The receiver's end. Both calls raise SnapshotFailed when the connection has ended."""

    async def read(self) -> SnapshotOpening | SnapshotChunk: ...

    async def write(self, status: SnapshotStatus) -> None: ...


async def send_snapshot(
    pipe: SenderPipe,
    handshake: Handshake,
    offer: SnapshotOffer,
    read: ReadSnapshot,
    progress: Callable[[int], None],
    chunk_bytes: int = 0,
) -> None:
    """Send a snapshot until it is installed. Calls `progress(offset)` with every offset that the receiver
    reports. `chunk_bytes` defaults to SNAPSHOT_CHUNK_BYTES. Raises SnapshotFailed.
    """
    chunk_bytes = chunk_bytes or SNAPSHOT_CHUNK_BYTES
    try:
        async with asyncio.timeout(SNAPSHOT_SILENCE_S):
            await pipe.write(SnapshotOpening(handshake, offer))
        status = await _read_status(pipe, progress)
        position = status.offset
        while not status.done:
            limit = status.offset + SNAPSHOT_CHUNKS_IN_FLIGHT * chunk_bytes
            if position < min(offer.size_bytes, limit):
                data = await read(position, chunk_bytes)
                if not data:
                    raise SnapshotFailed("the snapshot became shorter while it was sent")
                async with asyncio.timeout(SNAPSHOT_SILENCE_S):
                    await pipe.write(SnapshotChunk(position, crc32c(data), data))
                position += len(data)
            else:
                status = await _read_status(pipe, progress)
    except TimeoutError:
        raise SnapshotFailed(f"the receiver was silent for {SNAPSHOT_SILENCE_S:.0f} s") from None


async def _read_status(pipe: SenderPipe, progress: Callable[[int], None]) -> SnapshotStatus:
    async with asyncio.timeout(SNAPSHOT_SILENCE_S):
        status = await pipe.read()
    if status.refusal:
        raise SnapshotFailed(f"refused: {status.refusal}")
    progress(status.offset)
    return status


async def receive_snapshot(pipe: ReceiverPipe, receiver: Receiver) -> None:
    """Serve one incoming connection until it ends. Raises SnapshotFailed if it breaks or falls silent."""
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            opening = await pipe.read()
        if not isinstance(opening, SnapshotOpening):
            raise SnapshotRefused("a snapshot must be offered before it is sent")
        sink = receiver.on_snapshot(opening.handshake, opening.offer)
        try:
            await _write_chunks(pipe, sink, opening.offer.size_bytes)
        finally:
            sink.release()
    except SnapshotRefused as refusal:
        await pipe.write(SnapshotStatus(0, False, str(refusal)))
    except TimeoutError:
        raise SnapshotFailed("the sender fell silent") from None


async def _write_chunks(pipe: ReceiverPipe, sink: SnapshotSink, size_bytes: int) -> None:
    offset = await sink.open()
    await pipe.write(SnapshotStatus(offset))
    while offset < size_bytes:
        async with asyncio.timeout(SNAPSHOT_SILENCE_S):
            chunk = await pipe.read()
        if not isinstance(chunk, SnapshotChunk) or chunk.offset != offset:
            raise SnapshotRefused(f"the chunk at byte {offset} is missing")
        data = chunk.data
        if not data or len(data) > size_bytes - offset or crc32c(data) != chunk.crc32c:
            raise SnapshotRefused(f"the chunk at byte {offset} is damaged")
        await sink.write(data)
        offset += len(data)
        await pipe.write(SnapshotStatus(offset))
    finishing = sink.finish()
    while not finishing.done():
        await asyncio.wait([finishing], timeout=SNAPSHOT_ALIVE_S)
        if not finishing.done():
            await pipe.write(SnapshotStatus(offset))
    finishing.result()
    await pipe.write(SnapshotStatus(offset, done=True))

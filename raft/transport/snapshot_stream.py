"""Moving an image of the state from one member to another: the rules, the same for both twins.

An image travels on a connection of its own, so that no heartbeat ever waits behind it. The sender opens
with what it brings; the receiver says from which byte to go on, which is not 0 when an earlier attempt
was interrupted; then chunks, each with its checksum, at most SNAPSHOT_WINDOW_CHUNKS ahead of what the
receiver has put on its disk, so that memory is bounded at both ends. When all bytes are there the
receiver verifies and installs the image, which takes a while, and says meanwhile that it lives. Silence
in either direction for SNAPSHOT_SILENCE_S ends the attempt.

Rules of this file: no socket and no bytes of the wire; a twin provides the two ends of a pipe.
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
"""One message: large enough that its flat costs vanish, small enough that the loop copies and sums it in
well under a millisecond and a heartbeat of the same process is not late."""

SNAPSHOT_WINDOW_CHUNKS = 4
"""Chunks under way and not yet on the receiver's disk: hides a round trip, pins 1 MiB."""

SNAPSHOT_SILENCE_S = 10.0
"""Nothing from the other end for this long ends the attempt: far above the slowest healthy sync."""

SNAPSHOT_ALIVE_S = 1.0
"""How often the receiver says that it lives while it verifies and installs."""


class SenderPipe(Protocol):
    """The sender's end. Both calls raise SnapshotFailed when the connection is gone."""

    async def write(self, frame: SnapshotOpening | SnapshotChunk) -> None: ...

    async def read(self) -> SnapshotStatus: ...


class ReceiverPipe(Protocol):
    """The receiver's end. Both calls raise SnapshotFailed when the connection is gone."""

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
    """Bring the image to its end. `progress(offset)` is told what the receiver has. Raises SnapshotFailed.

    `chunk_bytes`: SNAPSHOT_CHUNK_BYTES unless given.
    """
    chunk_bytes = chunk_bytes or SNAPSHOT_CHUNK_BYTES
    try:
        async with asyncio.timeout(SNAPSHOT_SILENCE_S):
            await pipe.write(SnapshotOpening(handshake, offer))
        status = await _heard(pipe, progress)
        position = status.offset
        while not status.done:
            window_end = status.offset + SNAPSHOT_WINDOW_CHUNKS * chunk_bytes
            if position < min(offer.size_bytes, window_end):
                data = await read(position, chunk_bytes)
                if not data:
                    raise SnapshotFailed("the image is shorter than it was")
                async with asyncio.timeout(SNAPSHOT_SILENCE_S):
                    await pipe.write(SnapshotChunk(position, crc32c(data), data))
                position += len(data)
            else:
                status = await _heard(pipe, progress)
    except TimeoutError:
        raise SnapshotFailed(f"the receiver was silent for {SNAPSHOT_SILENCE_S:.0f} s") from None


async def _heard(pipe: SenderPipe, progress: Callable[[int], None]) -> SnapshotStatus:
    async with asyncio.timeout(SNAPSHOT_SILENCE_S):
        status = await pipe.read()
    if status.refusal:
        raise SnapshotFailed(f"refused: {status.refusal}")
    progress(status.offset)
    return status


async def receive_snapshot(pipe: ReceiverPipe, receiver: Receiver) -> None:
    """Serve one incoming connection until it ends. Raises SnapshotFailed when the sender is gone or silent."""
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            opening = await pipe.read()
        if not isinstance(opening, SnapshotOpening):
            raise SnapshotRefused("an image must be announced before it is sent")
        sink = receiver.on_snapshot(opening.handshake, opening.offer)
        try:
            await _fill(pipe, sink, opening.offer.size_bytes)
        finally:
            sink.release()
    except SnapshotRefused as refusal:
        await pipe.write(SnapshotStatus(0, False, str(refusal)))
    except TimeoutError:
        raise SnapshotFailed("the sender fell silent") from None


async def _fill(pipe: ReceiverPipe, sink: SnapshotSink, size_bytes: int) -> None:
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

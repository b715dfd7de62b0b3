"""Moving an image of the state from one member to another: the rules, the same for both twins.

An image travels on a connection of its own, so that no heartbeat ever waits behind it. The sender opens
with what it brings; the receiver says from which byte to go on, which is not 0 when an earlier attempt
was interrupted; then chunks, each with its checksum, at most IMAGE_WINDOW_CHUNKS ahead of what the
receiver has put on its disk, so that memory is bounded at both ends. When all bytes are there the
receiver verifies and installs the image, which takes a while, and says meanwhile that it lives. Silence
in either direction for IMAGE_SILENCE_S ends the attempt.

Rules of this file: no socket and no bytes of the wire; a twin provides the two ends of a pipe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from crc32c import crc32c

from raft.transport.protocol import (
    Hello,
    ImageChunk,
    ImageFailed,
    ImageOffer,
    ImageOpening,
    ImageRefused,
    ImageSink,
    ImageStatus,
    ReadImage,
    Receiver,
)
from raft.transport.rules import HELLO_TIMEOUT_S

IMAGE_CHUNK_BYTES = 256 * 1024
"""One message: large enough that its flat costs vanish, small enough that the loop copies and sums it in
well under a millisecond and a heartbeat of the same process is not late."""

IMAGE_WINDOW_CHUNKS = 4
"""Chunks under way and not yet on the receiver's disk: hides a round trip, pins 1 MiB."""

IMAGE_SILENCE_S = 10.0
"""Nothing from the other end for this long ends the attempt: far above the slowest healthy sync."""

IMAGE_ALIVE_S = 1.0
"""How often the receiver says that it lives while it verifies and installs."""


class SenderPipe(Protocol):
    """The sender's end. Both calls raise ImageFailed when the connection is gone."""

    async def write(self, frame: ImageOpening | ImageChunk) -> None: ...

    async def read(self) -> ImageStatus: ...


class ReceiverPipe(Protocol):
    """The receiver's end. Both calls raise ImageFailed when the connection is gone."""

    async def read(self) -> ImageOpening | ImageChunk: ...

    async def write(self, status: ImageStatus) -> None: ...


async def send_image(
    pipe: SenderPipe,
    hello: Hello,
    offer: ImageOffer,
    read: ReadImage,
    progress: Callable[[int], None],
    chunk_bytes: int = 0,
) -> None:
    """Bring the image to its end. `progress(offset)` is told what the receiver has. Raises ImageFailed.

    `chunk_bytes`: IMAGE_CHUNK_BYTES unless given.
    """
    chunk_bytes = chunk_bytes or IMAGE_CHUNK_BYTES
    try:
        async with asyncio.timeout(IMAGE_SILENCE_S):
            await pipe.write(ImageOpening(hello, offer))
        status = await _heard(pipe, progress)
        position = status.offset
        while not status.done:
            window_end = status.offset + IMAGE_WINDOW_CHUNKS * chunk_bytes
            if position < min(offer.size_bytes, window_end):
                data = await read(position, chunk_bytes)
                if not data:
                    raise ImageFailed("the image is shorter than it was")
                async with asyncio.timeout(IMAGE_SILENCE_S):
                    await pipe.write(ImageChunk(position, crc32c(data), data))
                position += len(data)
            else:
                status = await _heard(pipe, progress)
    except TimeoutError:
        raise ImageFailed(f"the receiver was silent for {IMAGE_SILENCE_S:.0f} s") from None


async def _heard(pipe: SenderPipe, progress: Callable[[int], None]) -> ImageStatus:
    async with asyncio.timeout(IMAGE_SILENCE_S):
        status = await pipe.read()
    if status.refusal:
        raise ImageFailed(f"refused: {status.refusal}")
    progress(status.offset)
    return status


async def receive_image(pipe: ReceiverPipe, receiver: Receiver) -> None:
    """Serve one incoming connection until it ends. Raises ImageFailed when the sender is gone or silent."""
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            opening = await pipe.read()
        if not isinstance(opening, ImageOpening):
            raise ImageRefused("an image must be announced before it is sent")
        sink = receiver.on_image(opening.hello, opening.offer)
        try:
            await _fill(pipe, sink, opening.offer.size_bytes)
        finally:
            sink.release()
    except ImageRefused as refusal:
        await pipe.write(ImageStatus(0, False, str(refusal)))
    except TimeoutError:
        raise ImageFailed("the sender fell silent") from None


async def _fill(pipe: ReceiverPipe, sink: ImageSink, size_bytes: int) -> None:
    offset = await sink.open()
    await pipe.write(ImageStatus(offset))
    while offset < size_bytes:
        async with asyncio.timeout(IMAGE_SILENCE_S):
            chunk = await pipe.read()
        if not isinstance(chunk, ImageChunk) or chunk.offset != offset:
            raise ImageRefused(f"the chunk at byte {offset} is missing")
        data = chunk.data
        if not data or len(data) > size_bytes - offset or crc32c(data) != chunk.crc32c:
            raise ImageRefused(f"the chunk at byte {offset} is damaged")
        await sink.write(data)
        offset += len(data)
        await pipe.write(ImageStatus(offset))
    finishing = sink.finish()
    while not finishing.done():
        await asyncio.wait([finishing], timeout=IMAGE_ALIVE_S)
        if not finishing.done():
            await pipe.write(ImageStatus(offset))
    finishing.result()
    await pipe.write(ImageStatus(offset, done=True))

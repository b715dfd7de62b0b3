"""The two ends of an image's pipe over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from raft.transport import codec
from raft.transport.grpc_options import CHANNEL_OPTIONS, IMAGE_METHOD, host_port, target_of
from raft.transport.images import send_image
from raft.transport.protocol import (
    Hello,
    ImageChunk,
    ImageFailed,
    ImageOffer,
    ImageOpening,
    ImageStatus,
    ReadImage,
)

_Context = grpc.aio.ServicerContext[bytes, bytes]
_Call = grpc.aio.StreamStreamCall[bytes, bytes]


class GrpcSenderPipe:
    """See `SenderPipe`."""

    def __init__(self, call: _Call) -> None:
        self._call = call

    async def write(self, frame: ImageOpening | ImageChunk) -> None:
        await self._call.write(codec.encode_image_frame(frame))

    async def read(self) -> ImageStatus:
        data = await self._call.read()
        if not isinstance(data, bytes):
            raise ImageFailed("the receiver hung up")
        return codec.decode_image_status(data)


class GrpcReceiverPipe:
    """See `ReceiverPipe`."""

    def __init__(self, context: _Context) -> None:
        self._context = context

    async def read(self) -> ImageOpening | ImageChunk:
        data = await self._context.read()
        if not isinstance(data, bytes):
            raise ImageFailed("the sender hung up")
        return codec.decode_image_frame(data)

    async def write(self, status: ImageStatus) -> None:
        await self._context.write(codec.encode_image_status(status))


async def send_image_to(
    url: str, hello: Hello, offer: ImageOffer, read: ReadImage, progress: Callable[[int], None]
) -> None:
    """One attempt over a connection of its own. Raises ImageFailed."""
    channel = grpc.aio.insecure_channel(target_of(*host_port(url)), options=CHANNEL_OPTIONS)
    try:
        async with channel:
            call: _Call = channel.stream_stream(IMAGE_METHOD)()
            try:
                await send_image(GrpcSenderPipe(call), hello, offer, read, progress)
            finally:
                call.cancel()
    except grpc.aio.AioRpcError as error:
        raise ImageFailed(error.details() or error.code().name) from error
    except (codec.Malformed, asyncio.InvalidStateError) as error:
        raise ImageFailed(str(error)) from error
    except asyncio.CancelledError:
        # gRPC raises it also in whoever awaits a call that the *peer* has cancelled.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ImageFailed("the receiver cancelled the stream") from None

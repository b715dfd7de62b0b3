"""The two ends of a snapshot's pipe over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from raft.transport import codec
from raft.transport.grpc_options import CHANNEL_OPTIONS, SNAPSHOT_METHOD, host_port, target_of
from raft.transport.snapshot_stream import send_snapshot
from raft.transport.transport_protocol import (
    Handshake,
    ReadSnapshot,
    SnapshotChunk,
    SnapshotFailed,
    SnapshotOffer,
    SnapshotOpening,
    SnapshotStatus,
)

_Context = grpc.aio.ServicerContext[bytes, bytes]
_Call = grpc.aio.StreamStreamCall[bytes, bytes]


class GrpcSenderPipe:
    """See `SenderPipe`."""

    def __init__(self, call: _Call) -> None:
        self._call = call

    async def write(self, frame: SnapshotOpening | SnapshotChunk) -> None:
        await self._call.write(codec.encode_snapshot_frame(frame))

    async def read(self) -> SnapshotStatus:
        data = await self._call.read()
        if not isinstance(data, bytes):
            raise SnapshotFailed("the receiver closed the stream")
        return codec.decode_snapshot_status(data)


class GrpcReceiverPipe:
    """See `ReceiverPipe`."""

    def __init__(self, context: _Context) -> None:
        self._context = context

    async def read(self) -> SnapshotOpening | SnapshotChunk:
        data = await self._context.read()
        if not isinstance(data, bytes):
            raise SnapshotFailed("the sender closed the stream")
        return codec.decode_snapshot_frame(data)

    async def write(self, status: SnapshotStatus) -> None:
        await self._context.write(codec.encode_snapshot_status(status))


async def send_snapshot_to(
    url: str, handshake: Handshake, offer: SnapshotOffer, read: ReadSnapshot, progress: Callable[[int], None]
) -> None:
    """Make one attempt to send a snapshot, over a connection of its own. Raises SnapshotFailed."""
    channel = grpc.aio.insecure_channel(target_of(*host_port(url)), options=CHANNEL_OPTIONS)
    try:
        async with channel:
            call: _Call = channel.stream_stream(SNAPSHOT_METHOD)()
            try:
                await send_snapshot(GrpcSenderPipe(call), handshake, offer, read, progress)
            finally:
                call.cancel()
    except grpc.aio.AioRpcError as error:
        raise SnapshotFailed(error.details() or error.code().name) from error
    except (codec.Malformed, asyncio.InvalidStateError) as error:
        raise SnapshotFailed(str(error)) from error
    except asyncio.CancelledError:
        # gRPC also raises it in a task that awaits a call which the *peer* has cancelled.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise SnapshotFailed("the receiver cancelled the stream") from None

"""Calls without an end of their own: streams of replies, and calls that wait on the server.

`StreamCaller` is what watches, keep-alives, locks and elections need of a connection. `Connection` implements
it over gRPC, and the simulated cluster of `kvstore.testing` in memory, so both run the same client classes.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import grpc.aio
from google.protobuf.message import Message

from kvstore.client.methods import Caller, Method, Reply, Request
from kvstore.client.outcomes import OUTCOME_TRAILER, error_from_status
from kvstore.errors import Code

Metadata = Sequence[tuple[str, str]]

Sent = TypeVar("Sent", bound=Message, contravariant=True)
Received = TypeVar("Received", bound=Message, covariant=True)


class Stream(Protocol[Sent, Received]):
    """One call in progress at one member. To be cancelled by the code that opened it."""

    async def write(self, request: Sent) -> None:
        """Send one more request; waits while the server takes none. Does nothing once the call has ended:
        `read` then says why."""

    async def read(self) -> Received | None:
        """The next reply, or None after the last one. Raises KVError when the call has failed.

        A `read` that is cancelled, also by a timeout, cancels the call. To look at intervals, leave one task
        reading. Raises CancelledError after `cancel`.
        """

    def cancel(self) -> None:
        """End the call; the server withdraws what waits for it. Harmless once it has ended."""


class StreamCaller(Caller, Protocol):
    """Makes calls that end, and opens calls that go on."""

    async def open(
        self,
        method: Method[Request, Reply],
        request: Request | None = None,
        *,
        metadata: Metadata = (),
        deadline: float = math.inf,
    ) -> Stream[Request, Reply]:
        """Begin a call at the member that served last, or the first to be reached.

        With `request` it is the only one, else `write` sends them. `deadline`, in the time of the event loop,
        bounds only how long it may take to reach a member. Raises TimedOut.
        """

    def avoid(self) -> None:
        """A stream has failed: prefer another member from now on."""


def status_of(error: grpc.aio.AioRpcError) -> tuple[Code, str, str | None]:
    """Code, text and outcome trailer of a call that failed."""
    trailer = next((value for key, value in error.trailing_metadata() if key == OUTCOME_TRAILER), None)
    outcome = trailer.decode() if isinstance(trailer, bytes) else trailer
    return Code(error.code().value[0]), error.details() or "", outcome


class GrpcStream(Generic[Request, Reply]):
    """A `Stream` over a gRPC channel."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        method: Method[Request, Reply],
        request: Request | None,
        metadata: Metadata,
    ) -> None:
        self._method = method
        # A unary method is called as one with a stream of replies, of which it has one: the same on the wire.
        begin: Any = channel.stream_stream if request is None else channel.unary_stream
        call: Any = begin(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.reply.FromString,
        )
        sent = () if request is None else (request,)
        self._call: Any = call(*sent, metadata=tuple(metadata))

    async def write(self, request: Request) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.write(request)

    async def read(self) -> Reply | None:
        try:
            reply: Any = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise error_from_status(*status_of(error), changes=self._method.changes) from None
        return None if reply is grpc.aio.EOF else reply

    def cancel(self) -> None:
        self._call.cancel()

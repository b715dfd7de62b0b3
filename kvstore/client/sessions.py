"""Keeping a lease alive, and calls that wait on the server, over whichever member answers."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from typing import Any, Self

import grpc
import grpc.aio

from kvstore.client.connection import ROUND_PAUSE_S, Connection
from kvstore.client.methods import LEASE_GRANT, LEASE_REVOKE, Method, Reply, Request
from kvstore.client.outcomes import error_from_status
from kvstore.errors import Code, KVError
from kvstore.wire import rpc_pb2

KEEP_ALIVE_PATH = "/etcdserverpb.Lease/LeaseKeepAlive"

KEEP_ALIVES_PER_TTL = 3
"""A keep-alive is sent after a third of the TTL, as etcd's client does: two may be lost."""

# How a call ends when its member goes.
_LOST = frozenset({Code.UNAVAILABLE, Code.CANCELLED, Code.INTERNAL})


def _code_of(error: grpc.aio.AioRpcError) -> Code:
    return Code(error.code().value[0])


async def keep_alives(
    connection: Connection, lease: int, *, once: bool = False
) -> AsyncIterator[rpc_pb2.LeaseKeepAliveResponse]:
    """Keep a lease alive; yields every reply, the last with a TTL of 0.

    Ends without that when no keep-alive was answered for a whole TTL: then the client cannot know
    whether it lives. `once`: ends after the first reply. Raises KVError when it is refused.
    """
    loop = asyncio.get_running_loop()
    lives_until_s = math.inf
    while loop.time() < lives_until_s:
        stub: Any = (await connection.channel(min(lives_until_s, loop.time() + 3600))).stream_stream(
            KEEP_ALIVE_PATH,
            request_serializer=rpc_pb2.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=rpc_pb2.LeaseKeepAliveResponse.FromString,
        )
        call = stub()
        try:
            while True:
                sent_s = loop.time()
                await call.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease))
                async with asyncio.timeout_at(None if lives_until_s == math.inf else lives_until_s):
                    reply = await call.read()
                if reply is grpc.aio.EOF:
                    break
                yield reply
                if once or reply.TTL <= 0:
                    return
                lives_until_s = sent_s + reply.TTL
                await asyncio.sleep(max(0.0, sent_s + reply.TTL / KEEP_ALIVES_PER_TTL - loop.time()))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            if isinstance(error, grpc.aio.AioRpcError) and _code_of(error) not in _LOST:
                raise error_from_status(_code_of(error), error.details() or "", None, changes=False) from None
        except TimeoutError:
            return
        finally:
            call.cancel()
        connection.avoid()
        await asyncio.sleep(ROUND_PAUSE_S)


async def wait_for(connection: Connection, method: Method[Request, Reply], request: Request) -> Reply:
    """A call that the server answers when the time has come. When its member goes, another is asked, which
    is right for what may be asked twice: queue entries are identified by their lease.

    Raises KVError when it is refused. A cancellation reaches the server.
    """
    while True:
        stub: Any = (await connection.channel(math.inf)).unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.reply.FromString,
        )
        try:
            reply: Reply = await stub(request)
        except grpc.aio.AioRpcError as error:
            if _code_of(error) not in _LOST:
                raise error_from_status(
                    _code_of(error), error.details() or "", None, changes=method.changes
                ) from None
            connection.avoid()
            await asyncio.sleep(ROUND_PAUSE_S)
        else:
            return reply


class Session:
    """A lease that is kept alive while the block lasts, and revoked at its end."""

    def __init__(self, connection: Connection, ttl_seconds: int) -> None:
        self._connection = connection
        self._ttl_seconds = ttl_seconds
        self.lease = 0
        """Known once entered."""
        self.lost = asyncio.Event()
        """The lease has expired, or its state cannot be known any more."""
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        granted = await self._connection.call(LEASE_GRANT, rpc_pb2.LeaseGrantRequest(TTL=self._ttl_seconds))
        self.lease = granted.ID
        self._keeping = asyncio.create_task(self._keep(), name=f"lease {self.lease:x}")
        return self

    async def __aexit__(self, *_exception: object) -> None:
        assert self._keeping is not None
        lost = self.lost.is_set()  # it is set when keep-alives end, for any reason
        self._keeping.cancel()
        await asyncio.wait([self._keeping])
        if not lost:
            with contextlib.suppress(KVError):  # then it ends by itself
                await self._connection.call(LEASE_REVOKE, rpc_pb2.LeaseRevokeRequest(ID=self.lease))
        if not self._keeping.cancelled():
            self._keeping.result()  # an error in the keep-alives must not pass for an expired lease

    async def _keep(self) -> None:
        try:
            with contextlib.suppress(KVError):
                async for _ in keep_alives(self._connection, self.lease):
                    pass
        finally:
            self.lost.set()

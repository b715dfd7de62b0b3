"""Keeping a lease alive, and calls that wait on the server, over whichever member answers."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Self

from kvstore.client.connection import ROUND_PAUSE_S
from kvstore.client.methods import (
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    LEASE_REVOKE,
    OBSERVE,
    Method,
    Reply,
    Request,
)
from kvstore.client.streams import StreamCaller
from kvstore.errors import Code, KVError
from kvstore.wire import rpc_pb2, v3election_pb2

KEEP_ALIVES_PER_TTL = 3
"""A keep-alive is sent after a third of the TTL, as etcd's client does: two may be lost."""

# How a call ends when its member goes.
_LOST = frozenset({Code.UNAVAILABLE, Code.CANCELLED, Code.INTERNAL})


async def keep_alives(
    connection: StreamCaller, lease: int, *, once: bool = False
) -> AsyncIterator[rpc_pb2.LeaseKeepAliveResponse]:
    """Keep a lease alive; yields every reply, the last with a TTL of 0.

    Ends without that when no keep-alive was answered for a whole TTL: then the client cannot know
    whether it lives. `once`: ends after the first reply. Raises KVError when it is refused.
    """
    loop = asyncio.get_running_loop()
    lives_until_s = math.inf
    while loop.time() < lives_until_s:
        call = await connection.open(LEASE_KEEP_ALIVE, deadline=min(lives_until_s, loop.time() + 3600))
        try:
            while True:
                sent_s = loop.time()
                await call.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease))
                async with asyncio.timeout_at(None if lives_until_s == math.inf else lives_until_s):
                    reply = await call.read()
                if reply is None:
                    break
                yield reply
                if once or reply.TTL <= 0:
                    return
                lives_until_s = sent_s + reply.TTL
                await asyncio.sleep(max(0.0, sent_s + reply.TTL / KEEP_ALIVES_PER_TTL - loop.time()))
        except KVError as error:
            if error.code not in _LOST:
                raise
        except TimeoutError:
            return
        finally:
            call.cancel()
        connection.avoid()
        await asyncio.sleep(ROUND_PAUSE_S)


async def wait_for(connection: StreamCaller, method: Method[Request, Reply], request: Request) -> Reply:
    """A call that the server answers when the time has come. When its member goes, another is asked, which
    is right for what may be asked twice: queue entries are identified by their lease.

    Raises KVError when it is refused. A cancellation reaches the server.
    """
    while True:
        call = await connection.open(method, request)
        try:
            reply = await call.read()
        except KVError as error:
            if error.code not in _LOST:
                raise
            reply = None
        finally:
            call.cancel()
        if reply is not None:
            return reply
        connection.avoid()
        await asyncio.sleep(ROUND_PAUSE_S)


async def observe(
    connection: StreamCaller, name: bytes
) -> AsyncGenerator[v3election_pb2.LeaderResponse, None]:
    """The leader of an election, each of its proclaimed values, then its successors, as one member sees it.

    Raises KVError when that member goes; another call then begins with the leader of that time.
    """
    call = await connection.open(OBSERVE, v3election_pb2.LeaderRequest(name=name))
    try:
        while (reply := await call.read()) is not None:
            yield reply
    finally:
        call.cancel()


class Session:
    """A lease that is kept alive while the block lasts, and revoked at its end."""

    def __init__(self, connection: StreamCaller, ttl_seconds: int) -> None:
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

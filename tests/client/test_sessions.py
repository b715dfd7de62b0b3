"""A session keeps its lease alive during the block, through any member that answers, then revokes it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from kvstore.client import Connection, Session, parse_endpoints, sessions
from kvstore.wire import rpc_pb2

LEASE = 7
TTL_S = 1


class FakeLessor:
    """A member that grants one lease, and counts what becomes of it."""

    def __init__(self, keep_alives_max: int = 1_000_000) -> None:
        self.keep_alives_max = keep_alives_max
        """After so many it ends the stream, as a member does that goes."""
        self.kept_alive = 0
        self.revoked: list[int] = []
        self.ttl_s = TTL_S
        self.target = ""

    async def _grant(self, _request, _context):
        return rpc_pb2.LeaseGrantResponse(ID=LEASE, TTL=TTL_S)

    async def _revoke(self, request, _context):
        self.revoked.append(request.ID)
        return rpc_pb2.LeaseRevokeResponse()

    async def _keep_alive(self, requests, context):
        async for request in requests:
            if self.kept_alive == self.keep_alives_max:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "going")
            self.kept_alive += 1
            yield rpc_pb2.LeaseKeepAliveResponse(ID=request.ID, TTL=self.ttl_s)

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[FakeLessor]:
        unary, both_ways = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        rows = {
            "LeaseGrant": (unary, self._grant, rpc_pb2.LeaseGrantRequest),
            "LeaseRevoke": (unary, self._revoke, rpc_pb2.LeaseRevokeRequest),
            "LeaseKeepAlive": (both_ways, self._keep_alive, rpc_pb2.LeaseKeepAliveRequest),
        }
        handlers = {
            name: make(handler, request.FromString, lambda reply: reply.SerializeToString())
            for name, (make, handler, request) in rows.items()
        }
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("etcdserverpb.Lease", handlers),)
        )
        self.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield self
        finally:
            await server.stop(0)


@contextlib.asynccontextmanager
async def connected(*lessors: FakeLessor) -> AsyncIterator[Connection]:
    async with contextlib.AsyncExitStack() as stack:
        for lessor in lessors:
            await stack.enter_async_context(lessor.run())
        targets = ",".join(lessor.target for lessor in lessors)
        yield await stack.enter_async_context(Connection(parse_endpoints(targets), timeout_s=10))


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  what is waited for has no event
            await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_the_lease_is_kept_alive_and_at_the_end_revoked() -> None:
    lessor = FakeLessor()
    async with connected(lessor) as connection:
        async with Session(connection, TTL_S) as session:
            assert session.lease == LEASE
            await until(lambda: lessor.kept_alive >= 3)
            assert not session.lost.is_set()
        assert lessor.revoked == [LEASE]


@pytest.mark.asyncio
async def test_the_lease_is_revoked_when_the_body_fails() -> None:
    lessor = FakeLessor()
    async with connected(lessor) as connection:
        with contextlib.suppress(LookupError):
            async with Session(connection, TTL_S):
                await until(lambda: lessor.kept_alive)
                raise LookupError
        assert lessor.revoked == [LEASE]


@pytest.mark.asyncio
async def test_when_its_member_goes_another_keeps_alive() -> None:
    first, second = FakeLessor(keep_alives_max=2), FakeLessor()
    async with connected(first, second) as connection, Session(connection, TTL_S) as session:
        await until(lambda: second.kept_alive >= 2)
        assert first.kept_alive == 2
        assert not session.lost.is_set()


@pytest.mark.asyncio
async def test_a_lease_that_is_gone_is_told_and_not_revoked() -> None:
    lessor = FakeLessor()
    async with connected(lessor) as connection:
        async with Session(connection, TTL_S) as session:
            lessor.ttl_s = 0
            async with asyncio.timeout(30):
                await session.lost.wait()
        assert lessor.revoked == []


@pytest.mark.asyncio
async def test_a_fault_in_the_keeping_alive_is_raised_at_the_end(monkeypatch) -> None:
    async def broken(*_):
        raise LookupError("injected")
        yield

    monkeypatch.setattr(sessions, "keep_alives", broken)
    async with connected(FakeLessor()) as connection:
        with pytest.raises(LookupError, match="injected"):
            async with Session(connection, TTL_S) as session:
                await session.lost.wait()

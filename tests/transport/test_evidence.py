"""What the end of a probe says on the stack of kvstore.http2: the rules of fast failover, case by case.

Dead means that a kernel said so. What a process says in HTTP/2 shows that it lives, unless it then leaves.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

from kvstore.http2.engine import (
    CANCEL,
    ENHANCE_YOUR_CALM,
    REFUSED_STREAM,
    Engine,
    EngineBounds,
    RequestReceived,
    server_engine,
)
from raft.transport.transport_protocol import Liveness

pytestmark = pytest.mark.asyncio

Harness = Any  # the fixture's class; conftest modules cannot be imported by name

Act = Callable[[Engine, int], None]
"""What the server does with a request, by its engine and the stream's id."""


class Server(asyncio.Protocol):
    """Does one thing with each request, and then closes the connection or leaves it open."""

    transport: asyncio.Transport

    def __init__(self, act: Act, *, closes: bool) -> None:
        self.engine = server_engine(EngineBounds(streams=16))
        self.act = act
        self.closes = closes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.transport.write(self.engine.data_to_send())

    def data_received(self, data: bytes) -> None:
        self.engine.receive_data(data)
        for event in self.engine.events():
            if isinstance(event, RequestReceived):
                self.act(self.engine, event.stream_id)
                self.transport.write(self.engine.data_to_send())
                if self.closes:
                    self.transport.close()


def goaway(code: int) -> Act:
    return lambda engine, stream_id: engine.send_goaway(code)


def reset(code: int) -> Act:
    return lambda engine, stream_id: engine.reset_stream(stream_id, code)


def status(code: int) -> Act:
    headers = [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"%d" % code)]
    return lambda engine, stream_id: engine.send_response(stream_id, headers, end_stream=True)


def nothing(engine: Engine, stream_id: int) -> None:
    """The reply never comes."""


@pytest.mark.parametrize(
    ("act", "closes", "verdict"),
    [
        pytest.param(nothing, True, Liveness.DEAD, id="closed"),
        pytest.param(nothing, False, Liveness.UNREACHABLE, id="silent"),
        pytest.param(goaway(0), True, Liveness.DEAD, id="drained and closed"),
        pytest.param(goaway(ENHANCE_YOUR_CALM), True, Liveness.UNREACHABLE, id="refused by a limit"),
        pytest.param(reset(REFUSED_STREAM), True, Liveness.UNREACHABLE, id="stream refused by a limit"),
        pytest.param(reset(CANCEL), True, Liveness.DEAD, id="cancelled and closed"),
        pytest.param(reset(CANCEL), False, Liveness.UNREACHABLE, id="cancelled"),
        pytest.param(status(14), True, Liveness.DEAD, id="unavailable and closed"),
        pytest.param(status(14), False, Liveness.UNREACHABLE, id="unavailable"),
        pytest.param(status(8), True, Liveness.UNREACHABLE, id="refused with a status"),
    ],
)
async def test_the_end_of_a_probe(http2_harness: Harness, act: Act, closes: bool, verdict: Liveness) -> None:
    transport, _ = await http2_harness.member(1, 10)
    loop = asyncio.get_running_loop()
    async with await loop.create_server(lambda: Server(act, closes=closes), "127.0.0.1", 0) as server:
        transport.set_peer(2, (f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",))
        assert await transport.probe(2) is verdict


async def test_a_server_that_speaks_no_http2_is_no_evidence(http2_harness: Harness) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    transport, _ = await http2_harness.member(1, 10)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        transport.set_peer(2, (f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",))
        assert await transport.probe(2) is Liveness.UNREACHABLE


@pytest.mark.parametrize(
    ("hosts", "verdict"),
    [
        (["127.0.0.1", "127.0.0.2"], Liveness.DEAD),
        (["127.0.0.1", "255.255.255.255"], Liveness.UNREACHABLE),  # the system refuses to connect there
        (["255.255.255.255", "127.0.0.1"], Liveness.UNREACHABLE),
    ],
)
async def test_a_name_is_dead_only_if_all_its_addresses_refuse(
    http2_harness: Harness, monkeypatch: pytest.MonkeyPatch, hosts: list[str], verdict: Liveness
) -> None:
    async def resolve(host: str, port: int, **_: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (found, port)) for found in hosts]

    transport, _ = await http2_harness.member(1, 10)
    with socket.create_server(("127.0.0.1", 0)) as vacant:
        port = vacant.getsockname()[1]
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    transport.set_peer(2, (f"http://somewhere:{port}",))
    assert await transport.probe(2) is verdict


async def test_a_name_that_does_not_resolve_is_no_evidence(
    http2_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(host: str, port: int, **_: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    transport, _ = await http2_harness.member(1, 10)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    transport.set_peer(2, ("http://somewhere:1",))
    assert await transport.probe(2) is Liveness.UNREACHABLE

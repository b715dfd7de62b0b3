"""How a server takes connections, and what of them it leaves behind when it stops: nothing."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import warnings
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from kvstore.http2 import acceptor
from kvstore.http2.limits import ServerLimits
from kvstore.http2.server import Http2Server
from kvstore.http2.server_connection import ServerConnection


@pytest.mark.parametrize("iterations", range(5))
def test_a_connection_accepted_as_the_server_stops_is_closed(iterations: int) -> None:
    """It was made so many loop iterations before: the kernel, a task and the server each hold it once."""

    async def run() -> None:
        server = Http2Server({}, ServerLimits(message_bytes=1000), asyncio.get_running_loop())
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        with socket.create_connection(("127.0.0.1", port)):
            for _ in range(iterations):
                await asyncio.sleep(0)
            await server.stop(None)
            assert server.connections == 0

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        asyncio.run(run())
        gc.collect()
    assert [str(one.message) for one in caught] == []


@pytest_asyncio.fixture
async def listening(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Http2Server, int]]:
    monkeypatch.setattr(acceptor, "ACCEPT_PAUSE_S", 0.0)
    server = Http2Server({}, ServerLimits(message_bytes=1000), asyncio.get_running_loop())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield server, port
    await server.stop(None)


@pytest.mark.asyncio
async def test_small_replies_do_not_wait_for_acknowledgements(listening: tuple[Http2Server, int]) -> None:
    server, port = listening
    with socket.create_connection(("127.0.0.1", port)):
        accepted = await first_of(server)
        sock = accepted.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.asyncio
async def test_accepting_goes_on_once_there_are_descriptors_again(
    listening: tuple[Http2Server, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, port = listening
    accept, failures = socket.socket.accept, [errno.EMFILE, errno.ENFILE]

    def scarce(sock: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise OSError(failures.pop(), "too many open files")
        return accept(sock)

    monkeypatch.setattr(socket.socket, "accept", scarce)
    with socket.create_connection(("127.0.0.1", port)):
        await first_of(server)
    assert failures == []


async def first_of(server: Http2Server) -> ServerConnection:
    while not server.connections:  # noqa: ASYNC110  it has no event
        await asyncio.sleep(0)
    return next(iter(server._connections))

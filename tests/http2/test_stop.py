"""What a server leaves behind when it stops: nothing."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings

import pytest

from kvstore.http2.limits import ServerLimits
from kvstore.http2.server import Http2Server


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

"""Stopping a server: calls in progress end well, new ones go elsewhere, nothing stays behind."""

from __future__ import annotations

import asyncio

import pytest

from kvstore.http2.status import CANCELLED
from tests.http2.raw import eventually, framed, headers, serving


@pytest.mark.asyncio
async def test_calls_in_progress_end_well_and_the_connection_after_them() -> None:
    async with serving() as served:
        idle, busy = await served.connect(), await served.connect()
        await idle.all_seen()
        streams = [busy.open(headers(b"/t.T/Wait"), framed(b"x")) for _ in range(3)]
        await eventually(lambda: len(served.receivers) == 3)
        stopping = asyncio.ensure_future(served.server.stop(60))
        await idle.until(lambda: idle.lost)
        await busy.until(lambda: len(busy.goaways) == 2)
        assert [goaway.error_code for goaway in busy.goaways] == [0, 0]
        assert busy.goaways[0].last_stream_id == 2**31 - 1
        assert busy.goaways[1].last_stream_id == streams[-1]
        for receiver in served.receivers:
            assert receiver.ended_with is None
            receiver.stream.respond(b"done")
        for stream in streams:
            answer = await busy.answer(stream)
            assert (answer.messages, answer.status) == ([b"done"], 0)
        await busy.until(lambda: busy.lost)
        async with asyncio.timeout(20):
            await stopping
        assert served.server.connections == 0


@pytest.mark.asyncio
async def test_calls_that_outlast_the_grace_are_ended() -> None:
    async with serving() as served:
        peer = await served.connect()
        peer.open(headers(b"/t.T/Both"), framed(b"x"), end=False)
        await eventually(lambda: served.receivers)
        await served.server.stop(0.05)
        assert served.receivers[0].ended_with == CANCELLED
        await peer.until(lambda: peer.lost)
        assert served.server.connections == 0


@pytest.mark.asyncio
async def test_no_client_connects_to_a_stopped_server_and_its_port_is_free() -> None:
    async with serving() as served:
        await served.connect()
        await served.server.stop(0)
        with pytest.raises(OSError, match="Connect"):
            await served.connect()
        async with serving() as other:
            assert other.server.add_insecure_port(f"127.0.0.1:{served.port}") == served.port


@pytest.mark.asyncio
async def test_a_server_that_never_started_stops() -> None:
    async with serving() as served, serving() as other:
        port = other.server.add_insecure_port("127.0.0.1:0")
        await other.server.stop(0)
        assert served.server.add_insecure_port(f"127.0.0.1:{port}") == port


@pytest.mark.asyncio
async def test_a_peer_that_answers_no_ping_does_not_outlast_the_grace() -> None:
    async with serving() as served:
        peer = await served.connect()
        await peer.all_seen()
        peer.data_received = lambda _data: None
        async with asyncio.timeout(20):
            await served.server.stop(0.05)
        await peer.until(lambda: peer.lost)

"""Each bound of a server, reached by harmless input; and connections that say or hear nothing."""

from __future__ import annotations

import asyncio
import socket

import pytest

from kvstore.http2 import acceptor
from kvstore.http2.engine import EngineBounds, EngineError
from kvstore.http2.limits import ServerLimits
from tests.http2.raw import MESSAGE_BYTES_MAX, eventually, framed, headers, serving


@pytest.mark.asyncio
async def test_connections_are_bounded_and_one_that_ends_makes_way(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(connections=3) as served:
        peers = [await served.connect() for _ in range(3)]
        for peer in peers:
            assert (await peer.call(headers(), framed(b"x"))).status == 0
        for _ in range(2):
            refused = await served.connect()
            await refused.until(lambda refused=refused: refused.lost)
        assert caplog.text.count("refusing connections: 3 are open, which is the limit") == 1
        peers[0].transport.abort()
        await eventually(lambda: served.server.connections == 2)
        late = await served.connect()
        assert (await late.call(headers(), framed(b"x"))).status == 0
        assert (await peers[1].call(headers(), framed(b"x"))).status == 0


def test_as_many_connections_as_descriptors_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    for allowed, wanted in ((1024, 874), (100, 1), (resource.RLIM_INFINITY, acceptor.CONNECTIONS_DEFAULT)):
        monkeypatch.setattr(resource, "getrlimit", lambda _what, allowed=allowed: (allowed, allowed))
        assert ServerLimits(message_bytes=1).connections == wanted


@pytest.mark.asyncio
async def test_streams_of_a_connection_are_bounded_and_others_wait_their_time() -> None:
    async with serving(engine=EngineBounds(streams=5)) as served:
        peer = await served.connect()
        await peer.until(lambda: peer.settings)
        assert peer.settings[3] == 5  # MAX_CONCURRENT_STREAMS
        waiting = [peer.open(headers(b"/t.T/Wait"), framed(b"x")) for _ in range(7)]
        await peer.all_seen()
        assert len(served.receivers) == 5
        for position in range(7):
            await eventually(lambda position=position: len(served.receivers) > position)
            served.receivers[position].stream.respond(b"done")
        for stream in waiting:
            assert (await peer.answer(stream)).messages == [b"done"]


@pytest.mark.asyncio
async def test_the_default_bounds_fit_the_protocol() -> None:
    bounds = EngineBounds()
    assert bounds.connection_window < 2**31
    async with serving() as served:
        peer = await served.connect()
        await peer.until(lambda: peer.settings)
        assert peer.settings[3] == 16_384
        assert peer.settings[6] == 65_536  # MAX_HEADER_LIST_SIZE
        await eventually(lambda: served.connections)
        assert served.connections[0].engine.local_window_size == bounds.connection_window


@pytest.mark.parametrize(
    "fields", [[(b"x-%d" % number, b"y") for number in range(300)], [(b"x", b"y" * 30_000)]]
)
@pytest.mark.asyncio
async def test_headers_are_bounded(fields: list[tuple[bytes, bytes]]) -> None:
    async with serving(engine=EngineBounds(header_list_bytes=25_000)) as served:
        other, peer = await served.connect(), await served.connect()
        peer.open(headers(b"/t.T/Unary", *fields), framed(b"x"))
        await peer.until(lambda: peer.lost)
        assert not served.receivers
        assert (await other.call(headers(), framed(b"x"))).status == 0


@pytest.mark.asyncio
async def test_many_and_large_headers_within_the_bounds_are_served() -> None:
    async with serving() as served:
        peer = await served.connect()
        fields = [(b"x-%d" % number, b"y" * 100) for number in range(240)] + [(b"x", b"y" * 20_000)]
        assert (await peer.call(headers(b"/t.T/Unary", *fields), framed(b"x"))).status == 0


@pytest.mark.parametrize("size", [MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX + 1])
@pytest.mark.asyncio
async def test_messages_are_bounded_to_the_byte(size: int) -> None:
    async with serving() as served:
        peer = await served.connect()
        answer = await peer.call(headers(), framed(bytes(size)), end=False)
        if size > MESSAGE_BYTES_MAX:
            wanted = f"grpc: received message larger than max ({size} vs. {MESSAGE_BYTES_MAX})"
            assert (answer.status, answer.text) == (8, wanted)
        else:
            assert answer.messages == [bytes(size)]


@pytest.mark.asyncio
async def test_a_client_that_opens_and_resets_without_end_is_ended() -> None:
    async with serving(engine=EngineBounds(resets_burst=100, resets_per_second=1)) as served:
        peer, other = await served.connect(), await served.connect()
        while not (peer.lost or peer.goaways):
            stream = peer.open(headers(b"/t.T/Wait"), framed(b"x"))
            try:
                peer.reset(stream)
                await peer.all_seen()
            except (EngineError, TimeoutError):
                break
        assert 100 <= len(served.receivers) <= 110
        await peer.until(lambda: peer.lost)
        assert all(receiver.ended_with is not None for receiver in served.receivers)
        assert (await other.call(headers(), framed(b"x"))).status == 0


@pytest.mark.parametrize("said", [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
@pytest.mark.asyncio
async def test_a_connection_that_does_not_begin_is_closed(said: bytes) -> None:
    async with serving(handshake_s=0.1) as served:
        peer = await served.connect()
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(said)
        async with asyncio.timeout(20):
            await reader.read()  # to the end
        writer.close()
        assert (await peer.call(headers(), framed(b"x"))).status == 0  # the other began in time


@pytest.mark.asyncio
async def test_a_silent_peer_is_pinged_and_closed_and_an_answering_one_stays() -> None:
    async with serving(keepalive_interval_s=0.05, keepalive_timeout_s=0.1) as served:
        dead, alive = await served.connect(), await served.connect()
        alive.open(headers(b"/t.T/Wait"), framed(b"x"))
        dead.open(headers(b"/t.T/Wait"), framed(b"x"))
        await eventually(lambda: len(served.receivers) == 2)
        dead.data_received = lambda _data: None  # it neither acknowledges nor answers
        await dead.until(lambda: dead.lost)
        ended = [receiver.ended_with for receiver in served.receivers]
        assert sorted(ended, key=str) == [1, None]
        assert alive.pings > 0
        assert not alive.lost
        assert (await alive.call(headers(), framed(b"x"))).status == 0


@pytest.mark.asyncio
async def test_clients_may_ping_as_often_as_they_like() -> None:
    async with serving() as served:
        peer = await served.connect()
        for _ in range(500):
            await peer.all_seen()
        assert not peer.goaways
        assert (await peer.call(headers(), framed(b"x"))).status == 0


@pytest.mark.asyncio
async def test_two_servers_never_share_a_port() -> None:
    async with serving() as served, serving() as other:
        with pytest.raises(OSError, match="in use"):
            other.server.add_insecure_port(f"127.0.0.1:{served.port}")


@pytest.mark.skipif(not socket.has_ipv6, reason="the machine has no IPv6")
@pytest.mark.asyncio
async def test_it_listens_on_ipv6() -> None:
    async with serving() as served:
        try:
            port = served.server.add_insecure_port("[::1]:0")
        except OSError as error:
            pytest.skip(f"no IPv6 on the loopback: {error}")
        assert port > 0

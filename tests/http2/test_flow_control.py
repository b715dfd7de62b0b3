"""Back-pressure both ways: what is credited and when, and what a caller that does not read costs."""

from __future__ import annotations

import asyncio

import pytest

from kvstore.http2.engine import EngineBounds, StreamClosed
from kvstore.http2.limits import PIECE_BYTES
from kvstore.http2.status import RESOURCE_EXHAUSTED
from tests.http2.raw import Peer, Served, eventually, framed, headers, serving

SMALL = EngineBounds(streams=64, stream_window=1024)
NARROW = EngineBounds(streams=100, stream_window=1024)
"""Of a client: replies of a kilobyte stop its streams. Its connection's window is the protocol's."""


@pytest.mark.parametrize("stream_window", [1, 1024, 65_535])
@pytest.mark.asyncio
async def test_a_large_message_fits_through_the_smallest_window(stream_window: int) -> None:
    size = 1_572_864 if stream_window > 1 else 300
    async with serving(engine=EngineBounds(streams=4, stream_window=stream_window)) as served:
        peer = await served.connect()
        await peer.until(lambda: peer.settings)
        message = bytes(range(256)) * (size // 256) + bytes(size % 256)
        answer = await peer.call(headers(), framed(message))
        assert answer.messages == [message]


@pytest.mark.asyncio
async def test_a_held_stream_stops_its_caller_and_delivers_in_order_when_resumed() -> None:
    async with serving(engine=SMALL) as served:
        peer = await served.connect()
        await peer.until(lambda: peer.settings)
        stream = peer.open(headers(b"/t.T/Hold"), end=False)
        messages = [b"%03d" % number * 30 for number in range(100)]
        peer.send(stream, b"".join(map(framed, messages)), end=True)
        await peer.all_seen()
        (receiver,) = served.receivers
        assert receiver.messages == messages[:1]
        assert not receiver.half
        assert peer.engine.queued_body_size(stream) >= 95 * 100 - 1024  # nothing came beyond one window
        seen = 1
        while len(receiver.messages) < len(messages):
            receiver.stream.resume()  # delivers one, which holds again
            await peer.all_seen()
            assert len(receiver.messages) == seen + 1
            seen += 1
        assert receiver.messages == messages
        assert not receiver.half
        receiver.stream.resume()
        assert receiver.half
        assert served.connections[0].unfinished_bytes == 0


@pytest.mark.asyncio
async def test_keep_alives_pass_on_a_connection_whose_other_streams_are_all_held() -> None:
    async with serving(engine=SMALL) as served:
        peer = await served.connect()
        await peer.until(lambda: peer.settings)
        alive = peer.open(headers(b"/t.T/Both"), end=False)
        held = [peer.open(headers(b"/t.T/Hold"), end=False) for _ in range(SMALL.streams - 2)]
        for stream in held:
            peer.send(stream, framed(b"x" * 95) * 100)
        await peer.all_seen()
        assert all(len(receiver.messages) == 1 for receiver in served.receivers[1:])
        for number in range(1, 200):
            peer.send(alive, framed(b"keep alive"))
            await peer.until(lambda number=number: len(peer.answers[alive].messages) == number)
        assert (await peer.call(headers(), framed(bytes(100_000)))).messages == [bytes(100_000)]


@pytest.mark.parametrize("how", ["incomplete", "held", "waiting", "ended here"])
@pytest.mark.asyncio
async def test_ten_thousand_resets_with_unread_data_leave_the_window_whole(how: str) -> None:
    """In the state in which each may leave data behind; the window is seen by the client."""
    bounds = EngineBounds(streams=100, stream_window=10_000, resets_burst=30_000)
    method = {"incomplete": b"Both", "held": b"Hold", "waiting": b"Wait", "ended here": b"Unary"}[how]
    body = framed(b"y" * 2000)[:-1] if how == "incomplete" else framed(b"x" * 500) * 4
    async with serving(engine=bounds) as served:
        peer = await served.connect()
        await peer.until(lambda: peer.settings)
        for _ in range(100):
            streams = [peer.open(headers(b"/t.T/" + method), body, end=False) for _ in range(100)]
            await peer.all_seen()
            for stream in streams:
                peer.engine.reset_stream(stream)
            await peer.all_seen()
            peer.answers.clear()
        assert len(served.receivers) == 10_000
        (connection,) = served.connections
        assert connection.unfinished_bytes == 0
        assert not connection._streams
        whole = bounds.connection_window
        assert connection.engine.local_window_size > whole // 2  # credited in halves
        answer = await peer.call(headers(), framed(b"z" * 300_000))
        assert answer.messages == [b"z" * 300_000]


@pytest.mark.asyncio
async def test_unfinished_requests_of_one_connection_are_bounded() -> None:
    async with serving(unfinished_bytes=350_000) as served:
        peer = await served.connect()
        part = framed(bytes(200_000))[:120_000]
        first, second = (peer.open(headers(), part, end=False) for _ in range(2))
        await eventually(lambda: len(served.receivers) == 2)
        (connection,) = served.connections
        await eventually(lambda: connection.unfinished_bytes == 240_000)
        third = await peer.call(headers(), part, end=False)
        assert third.status == RESOURCE_EXHAUSTED
        assert third.text == "kvstore: too many unfinished requests on one connection"
        for stream in (first, second):
            peer.send(stream, framed(bytes(200_000))[120_000:], end=True)
            assert (await peer.answer(stream)).messages == [bytes(200_000)]
        assert connection.unfinished_bytes == 0


@pytest.mark.asyncio
async def test_a_call_that_ends_while_held_keeps_nothing_of_what_follows() -> None:
    async with serving() as served:
        peer = await served.connect()

        def act(receiver, _data) -> None:
            receiver.stream.hold()
            receiver.stream.fail(9, "enough")

        served.acts["Hold"] = act
        for body in (framed(b"x") * 3, framed(b"x") * 2 + framed(bytes(100))[:50]):
            answer = await peer.call(headers(b"/t.T/Hold"), body, end=False)
            assert (answer.status, answer.text) == (9, "enough")
        assert [len(receiver.messages) for receiver in served.receivers] == [1, 1]
        assert served.connections[0].unfinished_bytes == 0


async def unread(served: Served, count: int) -> tuple[Peer, int]:
    """A connection that reads nothing, and a stream of so many replies of 1,000 bytes."""
    peer = await served.connect(NARROW)
    peer.reads = False
    stream = peer.open(headers(b"/t.T/Both"), end=False)
    await eventually(lambda: served.receivers)
    receiver = served.receivers[-1]
    for number in range(count):
        receiver.stream.send(b"%04d" % number * 250)
    return peer, stream


@pytest.mark.asyncio
async def test_replies_that_are_not_read_wait_outside_the_engine() -> None:
    async with serving() as served:
        peer, stream = await unread(served, 1000)
        await peer.all_seen()
        receiver = served.receivers[0]
        (connection,) = served.connections
        assert connection.engine.queued_body_size() <= PIECE_BYTES
        assert receiver.stream.unsent_messages > 900
        assert receiver.stream.unsent_bytes == connection.sender.nbytes
        drains = receiver.drains
        assert drains == 1  # when the stream began
        peer.read()
        await peer.until(lambda: len(peer.answers[stream].data) == 1000 * 1005)
        assert peer.answers[stream].messages == [b"%04d" % number * 250 for number in range(1000)]
        await eventually(lambda: receiver.drains > drains)
        assert (receiver.stream.unsent_messages, receiver.stream.unsent_bytes) == (0, 0)
        receiver.stream.finish()
        peer.send(stream, b"", end=True)
        assert (await peer.answer(stream)).status == 0
        assert connection.sender.nbytes == 0


@pytest.mark.asyncio
async def test_a_reader_that_leaves_frees_what_it_did_not_read() -> None:
    async with serving() as served:
        peer, stream = await unread(served, 1000)
        await peer.all_seen()
        (connection,) = served.connections
        assert connection.sender.nbytes > 900_000
        peer.reset(stream)
        await peer.all_seen()
        assert connection.sender.nbytes == 0
        assert connection.engine.queued_body_size() == 0
        assert (await peer.call(headers(), framed(b"next"))).headers


@pytest.mark.asyncio
async def test_a_stream_that_is_not_read_does_not_stop_its_siblings() -> None:
    async with serving() as served:
        peer, _ = await unread(served, 1000)
        await peer.all_seen()
        for number in range(100):
            stream = peer.open(headers(), framed(b"%d" % number))
            await peer.until(lambda stream=stream: peer.answers[stream].messages)
            assert peer.answers[stream].messages == [b"%d" % number]
            peer.engine.acknowledge_received_data(*peer.unread.pop()[::-1])
            peer.flush()


@pytest.mark.asyncio
async def test_a_small_reply_is_not_behind_a_large_one() -> None:
    async with serving() as served:
        peer = await served.connect(EngineBounds(streams=100, stream_window=1 << 20))
        arrived: list[int] = []
        see = peer._see

        def noting(event) -> None:
            see(event)
            if isinstance(event, StreamClosed):
                arrived.append(event.stream_id)

        peer._see = noting
        await peer.all_seen()
        large = peer.open(headers(b"/t.T/Wait"), framed(b"large"))
        small = peer.open(headers(b"/t.T/Wait"), framed(b"small"))
        await eventually(lambda: len(served.receivers) == 2)
        served.receivers[0].stream.respond(bytes(1 << 20))
        served.receivers[1].stream.respond(b"small")
        assert (await peer.answer(large)).messages == [bytes(1 << 20)]
        assert peer.answers[small].messages == [b"small"]
        assert arrived[0] == small


@pytest.mark.asyncio
async def test_requests_wait_while_their_connection_does_not_read_replies() -> None:
    async with serving(replies_bytes=100_000) as served:
        peer = await served.connect(NARROW)
        peer.reads = False
        stuck = [peer.open(headers(b"/t.T/Unary"), framed(bytes(40_000))) for _ in range(4)]
        await peer.all_seen()
        await eventually(lambda: served.connections[0].is_congested)
        waiting = peer.open(headers(b"/t.T/Unary"), framed(b"later"))
        both = peer.open(headers(b"/t.T/Both"), framed(b"stream"), end=False)
        await peer.all_seen()
        assert [bool(receiver.messages) for receiver in served.receivers[-2:]] == [False, True]
        peer.read()
        for stream in stuck:
            assert (await peer.answer(stream)).messages == [bytes(40_000)]
        assert (await peer.answer(waiting)).messages == [b"later"]
        assert peer.answers[both].messages == [b"stream"]
        assert not served.connections[0].is_congested


@pytest.mark.asyncio
async def test_a_peer_that_reads_nothing_from_its_socket_costs_a_bounded_amount() -> None:
    async with serving() as served:
        peer = await served.connect(EngineBounds(streams=4, stream_window=1 << 24))
        await peer.all_seen()
        peer.transport.pause_reading()
        stream = peer.open(headers(b"/t.T/Both"), end=False)
        await eventually(lambda: served.receivers)
        receiver = served.receivers[0]
        (connection,) = served.connections
        sent = 0
        while not connection.is_paused:
            receiver.stream.send(bytes(100_000))
            sent += 1
            await asyncio.sleep(0)
        receiver.stream.send(bytes(1_000_000))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert receiver.stream.unsent_bytes >= 900_000
        assert connection.transport.get_write_buffer_size() < 1_000_000
        peer.transport.resume_reading()
        await peer.until(lambda: len(peer.answers[stream].data) == sent * 100_005 + 1_000_005)
        assert receiver.stream.unsent_bytes == 0

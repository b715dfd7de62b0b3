"""What the rest of the package takes for granted of the engine, each seen here: a new release may differ."""

from __future__ import annotations

import pytest

from kvstore.http2 import engine
from kvstore.http2.engine import (
    DataReceived,
    Engine,
    EngineBounds,
    EngineError,
    RequestReceived,
    StreamClosed,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
    client_engine,
    server_engine,
)
from tests.http2.raw import headers

RESPONSE = ((b":status", b"200"),)


def move(source: Engine, target: Engine) -> int:
    """What one side has to send, to the other; returns how much that was."""
    data = source.data_to_send()
    if data:
        target.receive_data(data)
    return len(data)


def exchange(client: Engine, server: Engine) -> None:
    while move(client, server) + move(server, client):
        pass


def pair(client_window: int = 65_535, **bounds: int) -> tuple[Engine, Engine]:
    client = client_engine(EngineBounds(streams=100, stream_window=client_window))
    server = server_engine(EngineBounds(**bounds))
    exchange(client, server)
    client.events()
    server.events()
    return client, server


def kinds(side: Engine) -> list[type]:
    return [type(event) for event in side.events()]


def request(client: Engine, server: Engine, body: bytes = b"", *, end: bool = False) -> int:
    stream = client.send_request(headers(), end_stream=end and not body)
    if body:
        client.send_data(stream, body, end_stream=end)
    move(client, server)
    return stream


def test_nothing_is_credited_by_itself_and_then_in_halves() -> None:
    client, server = pair(streams=4, stream_window=1000)
    stream = request(client, server, b"x" * 5000)
    received = [event for event in server.events() if isinstance(event, DataReceived)]
    assert sum(len(event.data) for event in received) == 1000
    assert move(server, client) == 0
    server.acknowledge_received_data(499, stream)
    assert move(server, client) == 0
    server.acknowledge_received_data(1, stream)
    assert move(server, client) > 0
    move(client, server)
    (more,) = server.events()
    assert isinstance(more, DataReceived)
    assert len(more.data) == 500


def test_no_more_can_be_credited_than_a_stream_received_also_after_its_end() -> None:
    client, server = pair()
    stream = request(client, server, b"x" * 100, end=True)
    server.events()
    with pytest.raises(ValueError, match="exceeds"):
        server.acknowledge_received_data(101, stream)
    server.send_response(stream, RESPONSE, end_stream=True)
    exchange(client, server)
    assert StreamClosed in kinds(server)
    server.acknowledge_received_data(100, stream)
    with pytest.raises(ValueError, match="exceeds"):
        server.acknowledge_received_data(1, stream)


def test_what_arrives_after_our_reset_is_credited_by_the_engine() -> None:
    client, server = pair(streams=4, stream_window=20_000)
    whole = server.local_window_size
    for _ in range(50):
        stream = request(client, server)
        client.send_data(stream, b"x" * 20_000)
        server.reset_stream(stream)
        refusal = server.data_to_send()
        move(client, server)
        client.receive_data(refusal)
        exchange(client, server)
        assert not [event for event in server.events() if isinstance(event, DataReceived)]
    assert server.local_window_size >= whole // 2


def test_a_reset_goes_out_before_what_waits_for_its_stream() -> None:
    client, server = pair()
    for flush in (False, True):
        stream = request(client, server)
        server.events()
        server.send_response(stream, RESPONSE)
        server.send_data(stream, b"data")
        server.send_trailers(stream, ((b"grpc-status", b"0"),))
        if flush:
            move(server, client)
        server.reset_stream(stream, engine.NO_ERROR)
        exchange(client, server)
        seen = kinds(client)
        assert (TrailersReceived in seen) == flush
        assert seen[-2:] == [StreamReset, StreamClosed]


def test_the_peers_reset_is_seen_twice_and_our_own_once_when_it_leaves() -> None:
    client, server = pair()
    stream = request(client, server)
    client.reset_stream(stream)
    move(client, server)
    assert kinds(server) == [RequestReceived, StreamReset, StreamClosed]
    stream = request(client, server)
    server.reset_stream(stream)
    assert kinds(server) == [RequestReceived]
    move(server, client)
    assert kinds(server) == [StreamClosed]


def test_a_stream_that_is_gone_raises() -> None:
    client, server = pair()
    stream = request(client, server, b"x")
    client.reset_stream(stream)
    move(client, server)
    for act in (
        lambda: server.send_response(stream, RESPONSE),
        lambda: server.send_data(stream, b"x"),
        lambda: server.send_trailers(stream, ((b"a", b"b"),)),
    ):
        with pytest.raises(EngineError):
            act()
    server.reset_stream(stream)  # harmless
    assert server.queued_body_size(stream) == 0


def test_data_waits_for_the_window_and_trailers_behind_it() -> None:
    client, server = pair(client_window=10)
    stream = request(client, server, end=True)
    server.events()
    server.send_response(stream, RESPONSE)
    server.send_data(stream, b"x" * 30)
    server.send_trailers(stream, ((b"grpc-status", b"0"),))
    move(server, client)
    assert server.queued_body_size(stream) == server.queued_body_size() == 20
    assert TrailersReceived not in kinds(client)
    for left in (10, 0):
        client.acknowledge_received_data(10, stream)
        move(client, server)
        assert [event.stream_id for event in server.events() if isinstance(event, WindowUpdated)] == [stream]
        move(server, client)
        assert server.queued_body_size(stream) == left
    assert kinds(client)[-2:] == [TrailersReceived, StreamClosed]


def test_the_data_of_one_stream_goes_out_whole() -> None:
    client, server = pair()
    first, second = (request(client, server, end=True) for _ in range(2))
    server.events()
    for stream in (first, second):
        server.send_response(stream, RESPONSE)
    server.send_data(first, b"x" * 20_000, end_stream=True)
    server.send_data(second, b"y", end_stream=True)
    move(server, client)
    order = [event.stream_id for event in client.events() if isinstance(event, DataReceived)]
    assert order == sorted(order)


def test_after_an_error_of_the_peer_the_engine_says_goodbye_and_wants_nothing() -> None:
    client, server = pair()
    server.receive_data(b"\0\0\1\x77" * 100)
    assert server.want_write
    client.receive_data(server.data_to_send())
    assert engine.GoAwayReceived in kinds(client)
    assert not server.want_read
    assert not server.want_write
    assert engine.ConnectionClosed in kinds(server)
    with pytest.raises(EngineError):
        server.ping()


def test_what_does_not_begin_as_http2_raises() -> None:
    server = server_engine(EngineBounds())
    with pytest.raises(EngineError):
        server.receive_data(b"GET / HTTP/1.1\r\n\r\n")


def test_padding_is_credited_by_the_engine() -> None:
    client, server = pair(streams=4, stream_window=20_000)
    whole = server.local_window_size
    stream = request(client, server)
    frame = bytes([255]) + b"x" + bytes(255)  # one byte of data, 256 of padding
    head = len(frame).to_bytes(3, "big") + b"\0\x08" + stream.to_bytes(4, "big")
    for _ in range(700):
        server.receive_data(head + frame)
        for event in server.events():
            if isinstance(event, DataReceived):
                assert event.data == b"x"
                server.acknowledge_received_data(1, stream)
        server.data_to_send()
    assert server.local_window_size >= whole // 2


def test_bounds_that_do_not_fit_the_protocol_are_refused() -> None:
    with pytest.raises(AssertionError):
        EngineBounds(streams=40_000)
    with pytest.raises(AssertionError):
        EngineBounds(stream_window=0)

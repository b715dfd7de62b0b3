"""The server over a socket: the four kinds of calls, what it refuses, deadlines, and callers that leave."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from kvstore.http2.engine import CANCEL, NO_ERROR
from kvstore.http2.status import CANCELLED, DEADLINE_EXCEEDED
from tests.http2.raw import MESSAGE_BYTES_MAX, eventually, framed, headers, serving

GZIP = (b"grpc-encoding", b"gzip")


@pytest.mark.asyncio
async def test_the_four_kinds_of_calls() -> None:
    async with serving() as served:
        peer = await served.connect()
        unary = await peer.call(headers(b"/t.T/Unary"), framed(b"words"))
        assert (unary.headers, unary.trailers) == (
            {b":status": b"200", b"content-type": b"application/grpc"},
            {b"grpc-status": b"0"},
        )
        assert unary.messages == [b"words"]
        replies = await peer.call(headers(b"/t.T/Stream"), framed(b"3"))
        assert (replies.messages, replies.status) == ([b"0", b"1", b"2"], 0)
        requests = await peer.call(headers(b"/t.T/Gather"), framed(b"a") + framed(b"b"))
        assert (requests.messages, requests.status) == ([b"a+b"], 0)
        both = peer.open(headers(b"/t.T/Both"), end=False)
        for number in range(3):
            peer.send(both, framed(b"%d" % number))
            await peer.until(lambda number=number: len(peer.answers[both].messages) > number)
        peer.send(both, b"", end=True)
        answer = await peer.answer(both)
        assert (answer.messages, answer.status) == ([b"0", b"1", b"2"], 0)
        assert served.receivers[-1].is_closed


@pytest.mark.asyncio
async def test_many_calls_at_once_are_answered_each() -> None:
    async with serving() as served:
        peer = await served.connect()
        streams = [peer.open(headers(), framed(b"%d" % number)) for number in range(2000)]
        answers = [await peer.answer(stream) for stream in streams]
        assert [answer.messages for answer in answers] == [[b"%d" % number] for number in range(2000)]
        (connection,) = served.connections
        assert not connection._streams
        assert not connection.sender._outboxes
        assert not connection.sender._to_reset


REFUSALS = {
    "unknown method": (headers(b"/t.T/Nope"), "200", 12, "unknown method Nope for service t.T"),
    "unknown service": (headers(b"/x.Y/Unary"), "200", 12, "unknown service x.Y"),
    "malformed path": (headers(b"/nope"), "200", 8, 'malformed method name: "/nope"'),
    "no content-type": (headers(content_type=None), "415", 3, 'invalid gRPC request content-type ""'),
    "HTML": (headers(content_type=b"text/html"), "415", 3, 'invalid gRPC request content-type "text/html"'),
    "gRPC for browsers": (
        headers(content_type=b"application/grpc-web"),
        "415",
        3,
        'invalid gRPC request content-type "application/grpc-web"',
    ),
    "GET": (
        headers(method=b"GET"),
        "405",
        13,
        'Received a HEADERS frame with :method "GET" which should be POST',
    ),
    "unsupported compression": (
        headers(b"/t.T/Unary", (b"grpc-encoding", b"snappy")),
        "200",
        12,
        'grpc: Decompressor is not installed for grpc-encoding "snappy"',
    ),
    "timeout without unit": (
        headers(b"/t.T/Unary", (b"grpc-timeout", b"1000")),
        "400",
        13,
        'malformed grpc-timeout: transport: timeout unit is not recognized: "1000"',
    ),
    "timeout of nine digits": (
        headers(b"/t.T/Unary", (b"grpc-timeout", b"123456789S")),
        "400",
        13,
        'malformed grpc-timeout: transport: timeout string is too long: "123456789S"',
    ),
    "empty timeout": (
        headers(b"/t.T/Unary", (b"grpc-timeout", b"")),
        "400",
        13,
        'malformed grpc-timeout: transport: timeout string is too short: ""',
    ),
    "timeout of letters": (
        headers(b"/t.T/Unary", (b"grpc-timeout", b"abS")),
        "400",
        13,
        'malformed grpc-timeout: strconv.ParseInt: parsing "ab": invalid syntax',
    ),
    "no time at all": (
        headers(b"/t.T/Unary", (b"grpc-timeout", b"0n")),
        "200",
        4,
        "context deadline exceeded",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.asyncio
async def test_requests_are_refused_by_their_headers(name: str) -> None:
    fields, http_status, code, text = REFUSALS[name]
    async with serving() as served:
        peer = await served.connect()
        answer = await peer.call(fields, framed(b"x"))
        assert answer.headers[b":status"].decode() == http_status
        assert (answer.status, answer.text) == (code, text)
        assert (b"grpc-accept-encoding" in answer.headers) == (code == 12)
        assert not served.receivers
        assert (await peer.call(headers(), framed(b"next"))).messages == [b"next"]


BODIES = {
    "too large": (headers(), b"\0" + (MESSAGE_BYTES_MAX + 1).to_bytes(4, "big"), 8,
                  "grpc: received message larger than max (2097153 vs. 2097152)"),
    "unknown flag": (headers(), framed(b"x", 2), 13, "grpc: received unexpected payload format 2"),
    "compressed without encoding": (headers(), framed(b"x", 1), 13,
                                    "grpc: compressed flag set with identity or empty encoding"),
    "no gzip": (headers(b"/t.T/Unary", GZIP), framed(b"not compressed", 1), 13,
                "grpc: failed to decompress the received message gzip: invalid header"),
    "truncated gzip": (headers(b"/t.T/Unary", GZIP), framed(gzip.compress(b"x" * 99)[:-12] + bytes(4), 1), 13,
                       "grpc: failed to decompress the received message unexpected EOF"),
    "nothing compressed": (headers(b"/t.T/Unary", GZIP), framed(b"", 1), 13,
                           "grpc: failed to decompress the received message EOF"),
    "decompressed too large": (headers(b"/t.T/Unary", GZIP), framed(gzip.compress(bytes(5_000_000)), 1), 8,
                               "grpc: received message larger than max (5000000 vs. 2097152)"),
    "no message": (headers(), b"", 13, "unexpected EOF"),
    "part of a prefix": (headers(), b"\0\0", 2, "unexpected EOF"),
    "part of a message": (headers(), framed(b"words")[:-1], 2, "unexpected EOF"),
    "part of a message of a stream": (headers(b"/t.T/Both"), framed(b"words")[:-1], 13, "unexpected EOF"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.asyncio
async def test_requests_are_refused_by_their_bodies(name: str) -> None:
    fields, body, code, text = BODIES[name]
    async with serving() as served:
        peer = await served.connect()
        answer = await peer.call(fields, body)
        assert (answer.status, answer.text) == (code, text)
        (receiver,) = served.receivers
        assert (receiver.messages, receiver.ended_with) == ([], code)
        assert (await peer.call(headers(), framed(b"next"))).messages == [b"next"]


@pytest.mark.asyncio
async def test_compressed_messages_are_understood() -> None:
    async with serving() as served:
        peer = await served.connect()
        body = framed(gzip.compress(b"one") + gzip.compress(b"two"), 1)
        assert (await peer.call(headers(b"/t.T/Unary", GZIP), body)).messages == [b"onetwo"]
        assert (await peer.call(headers(b"/t.T/Unary", GZIP), framed(b"plain"))).messages == [b"plain"]


@pytest.mark.asyncio
async def test_of_a_unary_call_only_the_first_request_counts() -> None:
    async with serving() as served:
        peer = await served.connect()
        answer = await peer.call(headers(), framed(b"one") + framed(b"two"))
        assert (answer.messages, answer.status) == ([b"one"], 0)
        answer = await peer.call(headers(), framed(b"one") + b"\0\0")
        assert (answer.messages, answer.status) == ([b"one"], 0)


@pytest.mark.asyncio
async def test_a_call_that_ends_before_its_requests_is_reset_once_everything_has_left() -> None:
    async with serving() as served:
        peer = await served.connect()
        for fields in (headers(), headers(b"/t.T/Nope")):
            stream = peer.open(fields, framed(b"early"), end=False)
            answer = await peer.answer(stream)
            assert answer.status is not None
            assert answer.reset == NO_ERROR
            peer.engine.reset_stream(stream)
            peer.flush()
        assert (await peer.call(headers(), framed(b"next"))).messages == [b"next"]


@pytest.mark.asyncio
async def test_a_deadline_ends_the_call_and_reaches_the_handler() -> None:
    async with serving() as served:
        peer = await served.connect()
        answer = await peer.call(headers(b"/t.T/Wait", (b"grpc-timeout", b"30m")), framed(b"x"))
        assert (answer.status, answer.text) == (DEADLINE_EXCEEDED, "context deadline exceeded")
        (receiver,) = served.receivers
        assert receiver.ended_with == DEADLINE_EXCEEDED
        receiver.stream.respond(b"too late")
        answer = await peer.call(headers(b"/t.T/Both", (b"grpc-timeout", b"30m")), framed(b"x"), end=False)
        assert (answer.messages, answer.status) == ([b"x"], DEADLINE_EXCEEDED)


@pytest.mark.asyncio
async def test_time_remaining_counts_down_and_a_call_in_time_has_no_timer() -> None:
    async with serving() as served:
        peer = await served.connect()
        peer.open(headers(b"/t.T/Wait", (b"grpc-timeout", b"1M")), framed(b"x"))
        await eventually(lambda: served.receivers)
        receiver = served.receivers[0]
        assert 50 < receiver.stream.time_remaining() <= 60
        wheel = served.server._runtime.wheel
        held = sum(map(len, wheel._slots.values()))
        receiver.stream.respond(b"done")
        assert sum(map(len, wheel._slots.values())) == held - 1
        peer.open(headers(b"/t.T/Wait"), framed(b"x"))
        await eventually(lambda: len(served.receivers) == 2)
        assert served.receivers[1].stream.time_remaining() is None


@pytest.mark.asyncio
async def test_callers_that_leave_are_detected() -> None:
    async with serving() as served:
        peer = await served.connect()
        unary = peer.open(headers(b"/t.T/Wait"), framed(b"x"))
        both = peer.open(headers(b"/t.T/Both"), framed(b"x"), end=False)
        lost = peer.open(headers(b"/t.T/Wait"), framed(b"x"))
        await eventually(lambda: len(served.receivers) == 3)
        peer.reset(unary)
        peer.reset(both)
        await eventually(lambda: served.receivers[1].ended_with is not None)
        assert [receiver.ended_with for receiver in served.receivers] == [CANCELLED, CANCELLED, None]
        peer.transport.abort()
        await eventually(lambda: served.receivers[2].ended_with is not None)
        assert served.receivers[2].ended_with == CANCELLED
        for receiver in served.receivers:
            receiver.stream.respond(b"too late")
        assert lost
        await eventually(lambda: not served.connections)


@pytest.mark.asyncio
async def test_a_request_and_its_reset_in_one_packet() -> None:
    async with serving() as served:
        peer = await served.connect()
        await peer.all_seen()
        stream = peer.engine.send_request(headers())
        peer.engine.send_data(stream, framed(b"x"))
        first = peer.engine.data_to_send()
        peer.engine.reset_stream(stream, CANCEL)
        peer.transport.write(first + peer.engine.data_to_send())
        assert (await peer.call(headers(), framed(b"next"))).messages == [b"next"]
        assert not served.connections[0]._streams


@pytest.mark.asyncio
async def test_metadata_of_text_and_of_bytes_both_ways() -> None:
    async with serving() as served:
        peer = await served.connect()

        def act(receiver, _data):
            receiver.stream.fail(9, "50 % höher\n", (("x-text", "a"), ("x-bytes-bin", b"\x00\xff\x01")))

        served.acts["Wait"] = act
        fields = headers(
            b"/t.T/Wait",
            (b"x-text", b"one"),
            (b"x-text", b"two"),
            (b"x-bytes-bin", b"AP8B"),
            (b"x-padded-bin", b"AP8="),
            (b"x-joined-bin", b"AA,AQ"),
            (b"x-bad-bin", b"***"),
        )
        answer = await peer.call(fields, framed(b"x"))
        (receiver,) = served.receivers
        assert list(receiver.stream.metadata()) == [
            ("x-text", "one"),
            ("x-text", "two"),
            ("x-bytes-bin", b"\x00\xff\x01"),
            ("x-padded-bin", b"\x00\xff"),
            ("x-joined-bin", b"\x00"),
            ("x-joined-bin", b"\x01"),
        ]
        assert answer.status == 9
        assert answer.text == "50 %25 h%C3%B6her%0A"
        assert answer.headers[b"x-text"] == b"a"
        assert answer.headers[b"x-bytes-bin"] == b"AP8B"
        assert receiver.stream.peer.startswith("ipv4:127.0.0.1:")


@pytest.mark.asyncio
async def test_replies_of_one_iteration_leave_in_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as served:
        peer = await served.connect()
        streams = [peer.open(headers(b"/t.T/Wait"), framed(b"x")) for _ in range(50)]
        await eventually(lambda: len(served.receivers) == 50)
        (connection,) = served.connections
        writes: list[int] = []
        write = connection.transport.write

        class Counting:
            def __getattr__(self, name):
                return getattr(transport, name)

            def write(self, data):
                writes.append(len(data))
                write(data)

        transport, connection.transport = connection.transport, Counting()
        for receiver in served.receivers:
            receiver.stream.respond(b"now")
        assert not writes
        for stream in streams:
            assert (await peer.answer(stream)).messages == [b"now"]
        assert len(writes) == 1


@pytest.mark.asyncio
async def test_what_is_no_http2_ends_its_connection_alone() -> None:
    async with serving() as served:
        first, second = await served.connect(), await served.connect()
        stream = second.open(headers(b"/t.T/Both"), framed(b"x"), end=False)
        await second.until(lambda: second.answers[stream].messages)
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert b"HTTP" not in await reader.read()  # to its end
        first.transport.write(b"\0\0\1\x77" * 100)
        await first.until(lambda: first.lost)
        second.send(stream, framed(b"y"))
        await second.until(lambda: len(second.answers[stream].messages) == 2)
        writer.close()

"""The HTTP listener: what it answers, and what it does with what is no HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from http import HTTPStatus

import pytest
import pytest_asyncio

from kvstore.http import HttpListener, Response
from kvstore.http import listener as listener_module

HUGE_BYTES = 64 << 20
"""Far more than the sockets of a connection hold."""


async def handshake(request) -> Response:
    return Response(HTTPStatus.OK, json.dumps(dict(request.query)).encode(), "application/json")


async def broken(_request) -> Response:
    raise RuntimeError("a fault of ours")


async def endless(_request) -> Response:
    await asyncio.Event().wait()
    raise AssertionError


async def huge(_request) -> Response:
    return Response(HTTPStatus.OK, bytes(HUGE_BYTES), "application/octet-stream")


class Caller:
    def __init__(self, port: int) -> None:
        self.port = port

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def raw(self, data: bytes) -> bytes:
        """Everything answered until the listener closes."""
        reader, writer = await self.open()
        writer.write(data)
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
        return answer

    async def get(self, target: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        answer = await self.raw(f"{method} {target} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return int(first.split(" ")[1]), headers, body


@pytest_asyncio.fixture
async def caller() -> AsyncIterator[Caller]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    listener = HttpListener({"/greeting": handshake, "/broken": broken, "/endless": endless, "/huge": huge})
    await listener.start(sock)
    yield Caller(sock.getsockname()[1])
    await listener.stop()


@pytest.mark.asyncio
async def test_get_with_a_query(caller: Caller) -> None:
    status, headers, body = await caller.get("/greeting?exclude=NOSPACE&exclude=x&serializable=true")
    assert status == 200
    assert json.loads(body) == {"exclude": ["NOSPACE", "x"], "serializable": ["true"]}
    assert headers["Content-Type"] == "application/json"
    assert int(headers["Content-Length"]) == len(body)


@pytest.mark.asyncio
async def test_head_has_no_body(caller: Caller) -> None:
    status, headers, body = await caller.get("/greeting", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "2", b"")


@pytest.mark.parametrize(
    ("target", "method", "expected"),
    [("/nothing", "GET", 404), ("/greeting", "POST", 405), ("/broken", "GET", 500)],
)
@pytest.mark.asyncio
async def test_errors_have_statuses(caller: Caller, target: str, method: str, expected: int) -> None:
    status, headers, body = await caller.get(target, method)
    assert status == expected
    assert body
    assert headers.get("Allow") == ("GET" if expected == 405 else None)


@pytest.mark.asyncio
async def test_several_requests_on_one_connection(caller: Caller) -> None:
    reader, writer = await caller.open()
    writer.write(b"GET /greeting HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
    async with asyncio.timeout(5):
        for _ in range(3):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK")
            assert await reader.readexactly(2) == b"{}"
    writer.close()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET /greeting HTTP/3.0\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
        (b"GET /greeting HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /greeting HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"GET http://[::1 HTTP/1.1\r\n\r\n", 400),
        (b"GET /greeting HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431),
        (b"GET /greeting HTTP/1.1\r\na: " + b"x" * 100_000 + b"\r\n\r\n", 431),
        (b"POST /greeting HTTP/1.1\r\nContent-Length: 5\r\n\r\n", 405),
        (b"GET /greeting?" + b"a=b&" * 500 + b" HTTP/1.1\r\n\r\n", 400),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else str(value),
)
@pytest.mark.asyncio
async def test_bad_input_ends_its_own_connection_only(caller: Caller, data: bytes, status: int) -> None:
    answer = await caller.raw(data)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"Connection: close" in answer
    assert (await caller.get("/greeting"))[0] == 200


@pytest.mark.asyncio
async def test_half_a_request_and_silence(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "HEAD_SECONDS_MAX", 0.1)
    assert await caller.raw(b"GET /hel") == b""


@pytest.mark.asyncio
async def test_an_answer_that_takes_too_long(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "ANSWER_SECONDS_MAX", 0.1)
    assert (await caller.get("/endless"))[0] == 504


@pytest.mark.asyncio
async def test_connections_are_bounded(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "CONNECTIONS_MAX", 1)
    _, first = await caller.open()
    first.write(b"GET /endless HTTP/1.1\r\n\r\n")
    await first.drain()
    assert await caller.raw(b"") == b""
    first.close()


@pytest.mark.asyncio
async def test_stopping_ends_waiting_conversations() -> None:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    begun = asyncio.Event()

    async def waiting(request) -> Response:
        begun.set()
        return await endless(request)

    listener = HttpListener({"/endless": waiting})
    await listener.start(sock)
    reader, writer = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])
    writer.write(b"GET /endless HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(5):
        await begun.wait()
        await listener.stop()
        assert await reader.read() == b""
    writer.close()


@pytest.mark.asyncio
async def test_a_caller_who_does_not_read_keeps_no_connection(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "HEAD_SECONDS_MAX", 0.3)
    with socket.create_connection(("127.0.0.1", caller.port)) as silent:
        silent.sendall(b"GET /huge HTTP/1.1\r\n\r\n")
        names = {task.get_name() for task in asyncio.all_tasks()}
        async with asyncio.timeout(10):
            while not {task.get_name() for task in asyncio.all_tasks()} - names:  # noqa: ASYNC110  # no event
                await asyncio.sleep(0.01)  # accepted
            while {task.get_name() for task in asyncio.all_tasks()} - names:  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.01)  # and given up

"""A small HTTP/1.1 listener for answers that fit in memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

logger = logging.getLogger("kvstore.http")

HEAD_BYTES_MAX = 16 * 1024
"""Request line and headers together; proxies send a few kilobytes at most."""
HEADERS_MAX = 100
"""Header lines of one request."""
HEAD_SECONDS_MAX = 30.0
"""For one request's head to arrive, and for an idle connection to be closed."""
ANSWER_SECONDS_MAX = 15.0
"""For one route: longer than the node's own timeout of a linearizable read."""
CONNECTIONS_MAX = 128
"""Scrapers and health checkers are few; more than this is a mistake or an attack."""


class Response(NamedTuple):
    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


class Request(NamedTuple):
    method: str
    path: str
    query: Mapping[str, list[str]]


Route = Callable[[Request], Awaitable[Response]]


class BadRequest(Exception):
    """A malformed request; the connection closes after the response."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


def plain(status: HTTPStatus, *headers: tuple[str, str]) -> Response:
    """The status as its own explanation, worded as Go's HTTP server does."""
    return Response(status, f"{status.phrase}\n".encode(), headers=headers)


def parse_head(head: bytes) -> tuple[Request, bool]:
    """The request and whether the connection may be kept. Raises BadRequest."""
    try:
        lines = head.decode("ascii").split("\r\n")
        method, target, version = lines[0].split(" ")
        url = urlsplit(target)
        query = parse_qs(url.query, max_num_fields=HEADERS_MAX)
    except ValueError:
        raise BadRequest(HTTPStatus.BAD_REQUEST) from None
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    headers: dict[str, str] = {}
    for line in lines[1:-2]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadRequest(HTTPStatus.BAD_REQUEST)
        headers[name.lower()] = value.strip()
    if len(lines) > HEADERS_MAX:
        raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    connection = headers.get("connection", "").lower()
    keep = version == "HTTP/1.1" and connection != "close" and not has_body
    return Request(method, url.path, query), keep


class HttpListener:
    """Serves a fixed set of paths on one address."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._routes = dict(routes)
        self._server: asyncio.Server | None = None
        self._conversations: set[asyncio.Task[None]] = set()
        """One per open connection. Invariant: at most CONNECTIONS_MAX."""
        self._stopped = False
        """Connections accepted just before are closed at once."""

    async def start(self, sock: socket.socket) -> None:
        """Listen on a bound socket, which now belongs to the listener."""
        assert self._server is None, "started once"
        self._server = await asyncio.start_server(self._converse, sock=sock, limit=HEAD_BYTES_MAX)

    async def stop(self) -> None:
        self._stopped = True
        if self._server is None:
            return
        self._server.close()
        conversations = list(self._conversations)
        for task in conversations:
            task.cancel()
        await asyncio.gather(*conversations, return_exceptions=True)
        await self._server.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._conversations) >= CONNECTIONS_MAX or self._stopped:
            writer.close()
            return
        self._conversations.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the caller left: nothing to answer
        except (TimeoutError, asyncio.CancelledError):
            # The caller timed out, or the listener stops (asyncio would report a cancelled conversation as an
            # error). Unread data would delay the close of the connection, and the stop, without bound.
            writer.transport.abort()
        finally:
            self._conversations.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its response; returns whether to keep the connection."""
        method, keep = "", False
        try:
            async with asyncio.timeout(HEAD_SECONDS_MAX):
                head = await reader.readuntil(b"\r\n\r\n")
            request, keep = parse_head(head)
            method = request.method
            response = await self._respond(request)
        except asyncio.LimitOverrunError:
            response = plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        except BadRequest as error:
            response = plain(error.status)
        async with asyncio.timeout(HEAD_SECONDS_MAX):
            writer.write(_encode(response, keep=keep, with_body=method != "HEAD"))
            await writer.drain()
        return keep

    async def _respond(self, request: Request) -> Response:
        route = self._routes.get(request.path)
        if route is None:
            return Response(HTTPStatus.NOT_FOUND, b"404 page not found\n")
        if request.method not in ("GET", "HEAD"):
            return plain(HTTPStatus.METHOD_NOT_ALLOWED, ("Allow", "GET"))
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                return await route(request)
        except TimeoutError:
            return plain(HTTPStatus.GATEWAY_TIMEOUT)
        except Exception:
            logger.exception("could not answer %s", request.path)
            return plain(HTTPStatus.INTERNAL_SERVER_ERROR)


def _encode(response: Response, *, keep: bool, with_body: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {response.status.value} {response.status.phrase}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        *(f"{name}: {value}" for name, value in response.headers),
        f"Connection: {'keep-alive' if keep else 'close'}",
    ]
    head = "\r\n".join(lines).encode("ascii") + b"\r\n\r\n"
    return head + response.body if with_body else head

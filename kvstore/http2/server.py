"""A gRPC server: listening sockets, and the connections that they accept."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping

from kvstore.http2.connection import Runtime
from kvstore.http2.limits import ServerLimits
from kvstore.http2.server_connection import Routes, ServerConnection
from kvstore.http2.server_stream import Route

logger = logging.getLogger("kvstore.http2")

BACKLOG = 1024
"""Connections that wait to be accepted: clients of a failed member arrive together."""


class Http2Server:
    """Serves routes on any number of addresses. Add them, `start`, and `stop` once."""

    def __init__(
        self, routes: Mapping[bytes, Route], limits: ServerLimits, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._routes = Routes(routes)
        self._limits = limits
        self._loop = loop
        self._runtime = Runtime(loop)
        self._sockets: list[socket.socket] = []
        self._listeners: list[asyncio.Server] = []
        self._connections: dict[ServerConnection, None] = {}
        self._all_closed: asyncio.Future[None] | None = None
        """While stopping: done without connections."""
        self._refused = 0
        """Connections above the limit since the last one within it."""

    @property
    def connections(self) -> int:
        """Open ones."""
        return len(self._connections)

    def add_insecure_port(self, address: str) -> int:
        """Bind `host:port`, where a port of 0 lets the system choose; returns the port. Raises OSError.

        The host is an IP address, in brackets for IPv6. Two servers never share a port.
        """
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, int(port)))
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        self._sockets.append(sock)
        return int(sock.getsockname()[1])

    async def start(self) -> None:
        """Accept connections."""
        for sock in self._sockets:
            listener = await self._loop.create_server(self._make_connection, sock=sock, backlog=BACKLOG)
            self._listeners.append(listener)

    async def stop(self, grace: float | None) -> None:
        """Accept no connection and no call; give the calls in progress `grace` seconds, then end them."""
        for listener in self._listeners:
            listener.close()
        for sock in self._sockets:  # of a server that was not started
            sock.close()
        for connection in list(self._connections):
            connection.drain()
        if self._connections and grace:
            self._all_closed = self._loop.create_future()
            await asyncio.wait([self._all_closed], timeout=grace)
        for connection in list(self._connections):
            connection.abort()
        self._runtime.wheel.close()

    def abort(self) -> None:
        """Stop at once, without a word to the peers; instead of `stop`."""
        for listener in self._listeners:
            listener.close()
        for sock in self._sockets:  # of a server that was not started
            sock.close()
        for connection in list(self._connections):
            connection.abort()
        self._runtime.wheel.close()

    def _make_connection(self) -> ServerConnection:
        return ServerConnection(self._runtime, self._routes, self._limits, self._connected, self._ended)

    def _connected(self, connection: ServerConnection) -> bool:
        if len(self._connections) >= self._limits.connections:
            self._refused += 1
            if self._refused == 1:
                logger.warning("refusing connections: %d are open, which is the limit", self.connections)
            return False
        self._refused = 0
        self._connections[connection] = None
        return True

    def _ended(self, connection: ServerConnection) -> None:
        self._connections.pop(connection, None)
        if not self._connections and self._all_closed is not None and not self._all_closed.done():
            self._all_closed.set_result(None)

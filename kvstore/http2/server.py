"""A gRPC server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from kvstore.http2.acceptor import Acceptor, ConnectionLimit
from kvstore.http2.connection import Runtime
from kvstore.http2.limits import ServerLimits
from kvstore.http2.server_connection import Routes, ServerConnection
from kvstore.http2.server_stream import Route


class Http2Server(Acceptor):
    """Serves routes on any number of addresses. Add them, `start`, and `stop` once."""

    def __init__(
        self, routes: Mapping[bytes, Route], limits: ServerLimits, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(ConnectionLimit(limits.connections), loop)
        self._routes = Routes(routes)
        self._limits = limits
        self._runtime = Runtime(loop, self.wheel)

    def _make_connection(self) -> asyncio.Protocol:
        return ServerConnection(self._runtime, self._routes, self._limits, self.connected, self.ended)

"""Listening sockets and the connections that they accept, whatever those speak."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Protocol

from kvstore.http2.timer_wheel import TimerWheel

logger = logging.getLogger("kvstore.http2")

BACKLOG = 1024
"""Connections that wait to be accepted: clients of a failed member arrive together."""

ACCEPT_PAUSE_S = 1.0
"""After an accept that failed: without descriptors it would fail again in every loop iteration."""

CONNECTIONS_RESERVED = 150
"""Descriptors that are not for clients: as many as etcd reserves."""

CONNECTIONS_DEFAULT = 10_000
"""Where the system states no limit of descriptors. An idle connection costs about 13 KiB."""


def connections_max() -> int:
    """As in etcd: as many connections as the process may open, less the reserved ones."""
    try:
        import resource
    except ImportError:  # Windows
        return CONNECTIONS_DEFAULT
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return CONNECTIONS_DEFAULT
    return max(allowed - CONNECTIONS_RESERVED, 1)


class ConnectionLimit:
    """How many connections may be open at once, in all servers that share it."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.open = 0
        self._refused = 0
        """Connections above the limit since the last one within it."""

    def enter(self) -> bool:
        """Whether one more may be open; every True has its `leave`."""
        if self.open >= self.most:
            self._refused += 1
            if self._refused == 1:
                logger.warning("refusing connections: %d are open, which is the limit", self.open)
            return False
        self._refused = 0
        self.open += 1
        return True

    def leave(self) -> None:
        self.open -= 1


class Accepted(Protocol):
    """What an acceptor knows of a connection."""

    def drain(self) -> None:
        """Take no more requests, and close once those in progress are answered."""

    def abort(self) -> None:
        """Close at once. Harmless once closed."""


class Acceptor:
    """Accepts connections on any number of addresses. Add them, `start`, and `stop` once."""

    def __init__(self, limit: ConnectionLimit, loop: asyncio.AbstractEventLoop) -> None:
        self._limit = limit
        self._loop = loop
        self.wheel = TimerWheel(loop)
        """For the deadlines of the connections."""
        self._sockets: list[socket.socket] = []
        self._accepting: set[asyncio.Task[None]] = set()
        """One for each socket that was accepted and has no connection yet."""
        self._connections: dict[Accepted, None] = {}
        self._all_closed: asyncio.Future[None] | None = None
        """While stopping: done without connections."""
        self._is_stopped = False

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
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio sets TCP_NODELAY only where the protocol is named, and accepted sockets inherit the name.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
            sock.setblocking(False)
            self._loop.add_reader(sock, self._accept, sock)

    def _accept(self, listener: socket.socket) -> None:
        """Take what has arrived. A server of asyncio drops sockets that it has just taken when it closes."""
        taken = 0
        while taken < BACKLOG and self._accept_one(listener):
            taken += 1

    def _accept_one(self, listener: socket.socket) -> bool:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:  # no descriptors are left, say
            logger.warning("accepting connections pauses: %s", error)
            self._loop.remove_reader(listener)
            self._loop.call_later(ACCEPT_PAUSE_S, self._resume, listener)
            return False
        task = self._loop.create_task(self._connect(sock))
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)
        return True

    def _resume(self, listener: socket.socket) -> None:
        if not self._is_stopped:
            self._loop.add_reader(listener, self._accept, listener)

    async def _connect(self, sock: socket.socket) -> None:
        try:
            sock.setblocking(False)
            await self._loop.connect_accepted_socket(self._make_connection, sock)
        except OSError as error:  # its peer has gone already
            sock.close()
            logger.info("an accepted connection is lost: %s", error)

    def _make_connection(self) -> asyncio.Protocol:
        """The protocol of an accepted socket; it calls `connected` and `ended`."""
        raise NotImplementedError

    def _stop_accepting(self) -> None:
        self._is_stopped = True
        for sock in self._sockets:
            if sock.fileno() >= 0:
                self._loop.remove_reader(sock)
                sock.close()

    async def stop(self, grace: float | None) -> None:
        """Accept no connection and no call; give the calls in progress `grace` seconds, then end them."""
        self._stop_accepting()
        for connection in list(self._connections):
            connection.drain()
        if self._connections and grace:
            self._all_closed = self._loop.create_future()
            await asyncio.wait([self._all_closed], timeout=grace)
        self.abort()
        await self.wait_closed()

    async def wait_closed(self) -> None:
        """After `abort`: wait until the sockets of all connections are closed, those just accepted too."""
        if self._accepting:
            await asyncio.wait(tuple(self._accepting))
        await asyncio.sleep(0)  # transports close their sockets in the iteration after

    def abort(self) -> None:
        """Stop at once, without a word to the peers; instead of `stop`."""
        self._stop_accepting()
        for connection in list(self._connections):
            connection.abort()
        self.wheel.close()

    # -- for connections -------------------------------------------------------------------------

    def connected(self, connection: Accepted) -> bool:
        """Whether a new connection may stay; if so it is stopped with the server, until it has `ended`."""
        if (
            self._is_stopped or not self._limit.enter()
        ):  # accepted in the iteration in which the server stopped
            return False
        self._connections[connection] = None
        return True

    def ended(self, connection: Accepted) -> None:
        """It is closed. Harmless for one that could not stay."""
        if connection not in self._connections:
            return
        del self._connections[connection]
        self._limit.leave()
        if not self._connections and self._all_closed is not None and not self._all_closed.done():
            self._all_closed.set_result(None)

"""One connection: an engine joined to a transport, for either side.

Output is written once per loop iteration: whatever has something to send calls `schedule_flush`, and one
callback then serves all connections of the process that have. A connection whose peer does not read passes
nothing on; what waits for it is bounded by its streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any, cast

from kvstore.http2.engine import Engine, EngineError, Event
from kvstore.http2.limits import WRITE_BUFFER_BYTES
from kvstore.http2.sending import Sender
from kvstore.http2.timer_wheel import TimerWheel

logger = logging.getLogger("kvstore.http2")

FLUSH_BYTES = 256 * 1024
"""Written by one connection in one loop iteration; what is left waits for the next one, so that a long reply
to a fast reader does not stop the others."""


class Flusher:
    """Writes what the connections of a loop iteration have to send, in one callback."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: list[Connection] = []

    def add(self, connection: Connection) -> None:
        if not self._due:
            self._loop.call_soon(self._run)
        self._due.append(connection)

    def _run(self) -> None:
        due, self._due = self._due, []
        for connection in due:
            try:
                connection.flush()
            except Exception:
                logger.exception("writing to %s failed", connection.peer)
                connection.abort()


class Runtime:
    """What the connections of one server or client share."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wheel: TimerWheel | None = None) -> None:
        self.loop = loop
        self.flusher = Flusher(loop)
        self.wheel = wheel or TimerWheel(loop)


class Keepalive:
    """Closes a connection that is dead or never began; pings one that is silent."""

    __slots__ = ("_connection", "_interval_s", "_pinged_at", "_timeout_s", "wheel_slot")

    def __init__(self, connection: Connection, interval_s: float, timeout_s: float) -> None:
        self._connection = connection
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._pinged_at: float | None = None
        """When a ping without a sign of life since was sent."""
        self.wheel_slot = 0

    def start(self, handshake_s: float) -> None:
        """Allow so much time for the peer's first SETTINGS."""
        self._plan(handshake_s)

    def stop(self) -> None:
        self._connection.runtime.wheel.remove(self)

    def on_time(self) -> None:
        connection = self._connection
        now = connection.runtime.loop.time()
        silent_s = now - connection.received_at
        if not connection.is_established:
            logger.info("closing %s: it did not begin HTTP/2 in time", connection.peer)
            connection.abort()
        elif self._pinged_at is not None and connection.received_at <= self._pinged_at:
            logger.info("closing %s: a ping was not answered", connection.peer)
            connection.abort()
        elif silent_s >= self._interval_s:
            self._pinged_at = now
            connection.ping()
            self._plan(self._timeout_s)
        else:
            self._pinged_at = None
            self._plan(self._interval_s - silent_s)

    def established(self) -> None:
        """The handshake is over."""
        self.stop()
        self._plan(self._interval_s)

    def _plan(self, delay_s: float) -> None:
        runtime = self._connection.runtime
        runtime.wheel.add(self, delay_s, runtime.loop.time())


class Connection(asyncio.Protocol):
    """Subclasses say what events mean; see `_on_event` and `_on_lost`."""

    transport: asyncio.Transport
    """Set once connected."""

    def __init__(self, runtime: Runtime, engine: Engine) -> None:
        self.runtime = runtime
        self.engine = engine
        self.sender = Sender(engine)
        self.peer = ""
        """The peer's address, for logs; empty until connected."""
        self.received_at = 0.0
        """The loop's time when the last bytes came."""
        self.is_established = False
        """The peer's SETTINGS have come. Kept by the subclass."""
        self.is_lost = False
        """No transport: nothing is received or sent any more."""
        self.is_paused = False
        """The transport's buffer is full: the peer does not read."""
        self._flush_due = False

    # -- asyncio ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self.received_at = self.runtime.loop.time()
        self.peer = peer_of(transport)
        self.schedule_flush()

    def data_received(self, data: bytes) -> None:
        self.received_at = self.runtime.loop.time()
        try:
            self.engine.receive_data(data)
            on_event = self._on_event
            for event in self.engine.events():
                on_event(event)
        except EngineError as error:
            self._end_with(error)
        else:
            self.schedule_flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_lost:
            self.is_lost = True
            self._on_lost()

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self.flush()

    # -- for subclasses and streams --------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        raise NotImplementedError

    def _on_lost(self) -> None:
        """The connection has ended, once."""
        raise NotImplementedError

    def _on_flushed(self) -> None:
        """Everything that may leave now has left, or the transport is full."""

    def schedule_flush(self) -> None:
        """Send what there is, with the rest of this loop iteration."""
        if not self._flush_due:
            self._flush_due = True
            self.runtime.flusher.add(self)

    def ping(self) -> None:
        self.engine.ping()
        self.schedule_flush()

    def abort(self) -> None:
        """End the connection at once."""
        if not self.is_lost:
            self.transport.abort()
            self.connection_lost(None)

    def flush(self) -> None:
        """Pass on what streams have, in pieces, and write what the engine makes of it."""
        self._flush_due = False
        sender, engine = self.sender, self.engine
        written = 0
        try:
            while not (self.is_paused or self.is_lost):
                if written >= FLUSH_BYTES:
                    self.schedule_flush()
                    break
                sender.pass_on()
                data = engine.data_to_send()
                if data:
                    written += len(data)
                    self.transport.write(data)
                if not sender.taken():
                    break
        except EngineError as error:
            self._end_with(error)
            return
        if not self.is_lost:
            self._on_flushed()
            if not (engine.want_read or engine.want_write):
                self._close("the connection is over")

    def _end_with(self, error: EngineError) -> None:
        """The peer broke the protocol, or a bound of the engine: say goodbye and close."""
        with contextlib.suppress(EngineError):  # it has nothing to say
            self.transport.write(self.engine.data_to_send())
        self._close(str(error))

    def _close(self, why: str) -> None:
        logger.info("closing %s: %s", self.peer, why)
        self.transport.close()  # once everything written has left
        self.connection_lost(None)


def peer_of(transport: asyncio.BaseTransport) -> str:
    """The address of the other side as gRPC spells it: `ipv4:127.0.0.1:1234`."""
    address: Any = transport.get_extra_info("peername")
    if not isinstance(address, tuple):
        return "unknown"
    host, port = address[:2]
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_INET6:
        return f"ipv6:[{host}]:{port}"
    return f"ipv4:{host}:{port}"

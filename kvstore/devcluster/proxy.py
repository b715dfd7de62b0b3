"""A TCP proxy before one member's peer port, which can fall silent between two members.

Theory of operation. `Partition` says which pairs of members hear one another; every proxy of a
cluster shares it. A connection belongs to the pair (who dialled, whose port this is). While its
pair is partitioned, a connection is held: nothing is read from either side, so that bytes and ends
alike stay in the kernel, neither side is notified, and the senders' buffers fill as they do when a
cable is pulled. A new connection is accepted and then held, before anything is dialled. Healing
lets everything flow again, ends included. A pair may also be partitioned in one direction only: then what the
one says is held back and what the other says still arrives, on whichever connection it is said.

A slow link delivers every byte, in order, a fixed time later; one too far behind is no longer read.

Outside a partition the proxy is transparent: an orderly end is passed on after the bytes before
it, a reset as a reset, and a member that refuses connections resets those that dial it.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from kvstore.devcluster.plan import HOST

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_ACCEPT_BACKLOG = 128
"""Peers dial a handful of connections; this only has to outlast a pause of the supervisor."""

_LATE_BYTES_MAX = 1 << 20
"""Bytes a slow link holds in one direction; a real one has bounded buffers, too."""

WhoDials = Callable[[int, int], int | None]
"""From (its port, our port) of an accepted connection to the number of the dialling member."""


class Affected(Protocol):
    """Whatever carries a partition out."""

    def partition_changed(self) -> None:
        """Do to connections what the partition says now."""


class Partition:
    """Which members cannot hear one another, and who wants to know when that changes."""

    def __init__(self) -> None:
        self._blocked: frozenset[tuple[int, int]] = frozenset()
        """Ordered pairs: what the first says does not reach the second."""
        self._delays_s: dict[tuple[int, int], float] = {}
        """Ordered pairs whose words take this much longer."""
        self._affected: list[Affected] = []

    @property
    def active(self) -> bool:
        return bool(self._blocked)

    @property
    def blocked_links(self) -> frozenset[tuple[int, int]]:
        """Ordered pairs: what the first says does not reach the second."""
        return self._blocked

    def blocked(self, one: int | None, other: int) -> bool:
        """Whether this pair is partitioned in any direction; an unrecognised dialler is, in any partition."""
        if one is None:
            return self.active
        return (one, other) in self._blocked or (other, one) in self._blocked

    def silenced(self, speaker: int | None, hearer: int | None) -> bool:
        """Whether what the speaker says is held back from the hearer."""
        if speaker is None or hearer is None:
            return self.active
        return (speaker, hearer) in self._blocked

    def delay_s(self, speaker: int | None, hearer: int | None) -> float:
        """How much longer the speaker's words take to the hearer, in seconds."""
        if speaker is None or hearer is None:
            return 0.0
        return self._delays_s.get((speaker, hearer), 0.0)

    def set_groups(self, groups: Iterable[Iterable[int]]) -> None:
        """Partition every pair of members of different groups, and no other."""
        sides = [tuple(group) for group in groups]
        self.set_links(
            pair
            for position, side in enumerate(sides)
            for others in sides[position + 1 :]
            for one in side
            for other in others
            for pair in ((one, other), (other, one))
        )

    def set_links(self, blocked: Iterable[tuple[int, int]]) -> None:
        """Hold back what the first says to the second, for these ordered pairs and no other."""
        self._blocked = frozenset(blocked)
        self._changed()

    def set_delays(self, delays_s: Mapping[tuple[int, int], float]) -> None:
        """Make these ordered pairs slow by so many seconds, and no other."""
        self._delays_s = dict(delays_s)
        self._changed()

    def heal(self) -> None:
        self._delays_s = {}
        self.set_links(())

    def unreachable_from(self, number: int) -> list[int]:
        """Return the members with which this one cannot talk both ways, sorted."""
        return sorted(
            {other for pair in self._blocked if number in pair for other in pair if other != number}
        )

    def _changed(self) -> None:
        for one in self._affected:
            one.partition_changed()

    def register(self, affected: Affected) -> None:
        self._affected.append(affected)


class PeerProxy:
    """Listens where a member says it can be reached, and forwards to where it really listens."""

    def __init__(
        self, *, number: int, listen_port: int, target_port: int, partition: Partition, who_dials: WhoDials
    ) -> None:
        self.number = number
        self.listen_port = listen_port
        self.target_port = target_port
        self.partition = partition
        self.who_dials = who_dials
        self._server: asyncio.Server | None = None
        self._connections: dict[_Connection, None] = {}
        """Every connection accepted and not ended, oldest first."""
        partition.register(self)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self).dialler, HOST, self.listen_port, backlog=_ACCEPT_BACKLOG
        )
        self.listen_port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.reset()
        if self._server is not None:
            await self._server.wait_closed()
        for connection in list(self._connections):
            await connection.wait_dialled()

    def partition_changed(self) -> None:
        for connection in list(self._connections):
            connection.partition_changed()

    @property
    def connections(self) -> tuple[_Connection, ...]:
        """Those accepted and not ended, oldest first."""
        return tuple(self._connections)

    def add(self, connection: _Connection) -> None:
        self._connections[connection] = None

    def remove(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)


class _Connection:
    def __init__(self, proxy: PeerProxy) -> None:
        self._proxy = proxy
        self.dialler = _Side(self)
        self.target = _Side(self)
        self._source: int | None = None
        """Number of the dialling member; None when it is no member we know."""
        self._dialling: asyncio.Task[None] | None = None
        """Connects to the target; None until the connection was first let through."""
        self._ended = False

    def accepted(self) -> None:
        assert self.dialler.transport is not None
        port = self.dialler.transport.get_extra_info("peername")[1]
        self._source = self._proxy.who_dials(port, self._proxy.listen_port)
        self._proxy.add(self)
        self.dialler.transport.pause_reading()
        self.partition_changed()

    def partition_changed(self) -> None:
        partition, source, number = self._proxy.partition, self._source, self._proxy.number
        self.dialler.silenced = partition.silenced(source, number)
        self.target.silenced = partition.silenced(number, source)
        self.dialler.delay_s = partition.delay_s(source, number)
        self.target.delay_s = partition.delay_s(number, source)
        self.pass_ends_on()
        if self._ended:
            return
        if not self.held and self._dialling is None:
            self._dialling = asyncio.get_running_loop().create_task(self._dial())
        self.dialler.adjust_reading()
        self.target.adjust_reading()

    async def _dial(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self.target, HOST, self._proxy.target_port)
        except OSError:
            self.reset()
        else:
            if self._ended:
                self.target.reset()
            self.dialler.adjust_reading()

    async def wait_dialled(self) -> None:
        if self._dialling is not None:
            await asyncio.wait([self._dialling])

    @property
    def held(self) -> bool:
        """Whether the pair is partitioned in a direction, so that no connection can be made."""
        return self.dialler.silenced or self.target.silenced

    @property
    def held_bytes(self) -> bool:
        """Whether a partition holds back bytes that one side has sent."""
        return any(side.silenced and side.has_unread() for side in (self.dialler, self.target))

    def opposite(self, side: _Side) -> _Side:
        return self.target if side is self.dialler else self.dialler

    def pass_ends_on(self) -> None:
        """Where one side is gone, end the other likewise, unless a partition forbids it now."""
        for side in (self.dialler, self.target):
            if side.gone and not side.silenced and not side.is_late:
                other = self.opposite(side)
                if side.error is None:
                    other.close()
                else:
                    other.reset()
        if self.dialler.gone and (self.target.gone or self.target.transport is None):
            self._ended = True
            self._proxy.remove(self)

    def reset(self) -> None:
        """End both sides at once, as a process that dies does."""
        self._ended = True
        self.dialler.reset()
        self.target.reset()
        self._proxy.remove(self)


class _Side(asyncio.Protocol):
    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self.transport: asyncio.Transport | None = None
        self._choked = False
        """Its send buffer is full, so the opposite side must not be read."""
        self._reading = True
        self.silenced = False
        """Whether what this side says is held back: it is not read, and its end is not passed on."""
        self.delay_s = 0.0
        """How much later than at once its words are passed on."""
        self._late: deque[tuple[float, bytes]] = deque()
        """What it said and the other was not told yet, with the moment when that is due."""
        self._late_bytes = 0
        """Size of that; above _LATE_BYTES_MAX the side is not read."""
        self.gone = False
        self.error: Exception | None = None
        """Why it is gone; None while it is not, or when it ended in good order."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        # One iteration later, when the transport has begun to read: early 3.11 forgets a pause set in here.
        asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        if self._connection.dialler is self:
            self._reading = False
            self._connection.accepted()
        else:
            self.adjust_reading()

    def data_received(self, data: bytes) -> None:
        other = self._connection.opposite(self).transport
        assert other is not None, "a side is read only while the other one is there"
        if not self.delay_s and not self._late:
            other.write(data)
            return
        loop = asyncio.get_running_loop()
        self._late.append((loop.time() + self.delay_s, data))
        self._late_bytes += len(data)
        if len(self._late) == 1:
            loop.call_later(self.delay_s, self._deliver)
        if self._late_bytes > _LATE_BYTES_MAX:
            self.adjust_reading()

    @property
    def is_late(self) -> bool:
        return bool(self._late)

    def has_unread(self) -> bool:
        """Whether bytes of this side wait in the kernel."""
        raw = None if self.transport is None or self.gone else self.transport.get_extra_info("socket")
        if raw is None or raw.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(raw.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        other = self._connection.opposite(self)
        while self._late and self._late[0][0] <= loop.time():
            _, data = self._late.popleft()
            self._late_bytes -= len(data)
            if other.transport is not None and not other.gone:
                other.transport.write(data)
        if self._late:
            loop.call_at(self._late[0][0], self._deliver)
        self._connection.pass_ends_on()
        self.adjust_reading()

    def eof_received(self) -> bool:
        return False  # closes this side, and connection_lost passes the end on

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        self.error = error
        self._connection.pass_ends_on()

    def pause_writing(self) -> None:
        self._choked = True
        self._connection.opposite(self).adjust_reading()

    def resume_writing(self) -> None:
        self._choked = False
        self._connection.opposite(self).adjust_reading()

    def adjust_reading(self) -> None:
        """Read exactly while the pair may talk and the opposite side is there and can take more."""
        if self.transport is None or self.gone or self.transport.is_closing():
            return
        other = self._connection.opposite(self)
        crowded = other._choked or self._late_bytes > _LATE_BYTES_MAX
        wanted = not self.silenced and other.transport is not None and not crowded
        if wanted and not self._reading:
            self.transport.resume_reading()
        elif not wanted and self._reading:
            self.transport.pause_reading()
        self._reading = wanted

    def close(self) -> None:
        """End after what was written has left."""
        if self.transport is not None and not self.gone:
            self.transport.close()

    def reset(self) -> None:
        """End at once; the kernel resets the connection, so that the far end sees no orderly end."""
        if self.transport is None or self.gone:
            return
        raw: socket.socket | None = self.transport.get_extra_info("socket")
        if raw is not None and raw.fileno() >= 0:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

"""TCP proxies before the members' peer ports: a connection can be reset, a member cut off by silence.

All proxies live in one thread with a loop of its own; the methods may be called from any other thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.clusters import Cluster, free_ports

CHUNK_BYTES = 256 * 1024
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: close sends a reset
CALL_SECONDS_MAX = 10.0


def owner_of(port: int, cluster: Cluster) -> int | None:
    """Which member holds the loopback connection with this local port; None if none does."""
    inode = ""
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rsplit(":", 1)[1], 16) == port and fields[9] != "0":
                inode = f"socket:[{fields[9]}]"
    for index, member in enumerate(cluster.members):
        if member.process is None:
            continue
        for descriptor in Path(f"/proc/{member.pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                if str(descriptor.readlink()) == inode:
                    return index
    return None


class Link:
    """One connection through a proxy: two streams and two pumps."""

    def __init__(self, source: int | None, target: int, streams: list[Stream]) -> None:
        self.source, self.target, self.streams = source, target, streams

    def reset(self) -> None:
        for _, writer in self.streams:
            sock: socket.socket | None = writer.get_extra_info("socket")
            if sock is not None:
                with contextlib.suppress(OSError):  # gone already
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()


class Proxies:
    """One proxy per member of a cluster; enter it before the cluster, which then advertises the proxies."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.ports = free_ports(cluster.size)
        cluster.proxy_ports = dict(enumerate(self.ports))
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="proxies", daemon=True)
        self.links: list[Link] = []
        """Open connections, oldest first."""
        self.cut_off: int | None = None
        """The member that no byte reaches and that reaches nobody; None while the network is whole."""
        self.whole = asyncio.Event()
        """Set while nobody is cut off."""
        self.whole.set()
        self.servers: list[asyncio.Server] = []
        self.handlers: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self.thread.start()
        self._do(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(CALL_SECONDS_MAX)
        self.loop.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(CALL_SECONDS_MAX)

    async def _listen(self) -> None:
        for index, port in enumerate(self.ports):

            async def accept(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, index: int = index
            ) -> None:
                await self._serve(index, reader, writer)

            self.servers.append(await asyncio.start_server(accept, "127.0.0.1", port))

    async def _close(self) -> None:
        for server in self.servers:
            server.close()
        self.cut_off = None
        self.whole.set()
        for link in self.links:
            link.reset()
        if self.handlers:
            await asyncio.wait(self.handlers)

    async def _serve(self, index: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.handlers.add(task)
        try:
            port = self.cluster.members[index].peer_port
            try:
                other = await asyncio.open_connection("127.0.0.1", port)
            except OSError:  # the member is down: pass it on
                Link(None, index, [(reader, writer)]).reset()
                return
            source = owner_of(writer.get_extra_info("peername")[1], self.cluster)
            link = Link(source, index, [(reader, writer), other])
            self.links.append(link)
            pumps = [
                asyncio.ensure_future(self._pump(link, reader, other[1])),
                asyncio.ensure_future(self._pump(link, other[0], writer)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            link.reset()
            self.links.remove(link)
            await asyncio.wait(pumps)
        finally:
            self.handlers.discard(task)

    async def _pump(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward until either side ends or is reset; the caller then resets both."""
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                while self.cut_off is not None and self.cut_off in (link.source, link.target):
                    await self.whole.wait()
                writer.write(data)
                await writer.drain()

    # --- faults ---

    def connections(self, index: int) -> int:
        """Open connections towards a member."""
        return sum(link.target == index for link in list(self.links))

    def reset_one(self, index: int, place: int) -> bool:
        """Reset one connection towards a member; False if there is none now."""

        async def reset() -> bool:
            links = [link for link in self.links if link.target == index]
            if links:
                links[place % len(links)].reset()
            return bool(links)

        return bool(self._do(reset()))

    def cut(self, index: int) -> None:
        """Silence between one member and all others: connections stand, and carry nothing."""

        async def cut() -> None:
            self.cut_off = index
            self.whole.clear()

        self._do(cut())

    def heal(self) -> None:
        """Deliver what was held back, and everything from now on."""

        async def heal() -> None:
            self.cut_off = None
            self.whole.set()

        self._do(heal())

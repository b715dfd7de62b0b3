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
from types import TracebackType
from typing import Any, Self

from bench.clusters import Cluster, free_ports

CHUNK_BYTES = 256 * 1024
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: close sends a reset
CALL_SECONDS_MAX = 10.0


class Link:
    """One connection through a proxy: two streams and two pumps."""

    def __init__(self, index: int, streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
        self.index, self.streams = index, streams

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
                Link(index, [(reader, writer)]).reset()
                return
            link = Link(index, [(reader, writer), other])
            self.links.append(link)
            try:
                await asyncio.gather(self._pump(reader, other[1]), self._pump(other[0], writer))
            except OSError:  # one side was reset: so is the other
                pass
            finally:
                link.reset()
                self.links.remove(link)
        finally:
            self.handlers.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward until the end; a plain end or a reset of one side becomes a reset of the other."""
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    # --- faults ---

    def connections(self, index: int) -> int:
        """Open connections towards a member."""
        return sum(link.index == index for link in list(self.links))

    def reset_one(self, index: int, place: int) -> bool:
        """Reset one connection towards a member; False if there is none now."""

        async def reset() -> bool:
            links = [link for link in self.links if link.index == index]
            if links:
                links[place % len(links)].reset()
            return bool(links)

        return bool(self._do(reset()))

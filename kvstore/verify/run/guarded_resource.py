"""The resource that locks protect: a number that clients read and write back. It knows nothing of leases.

A request with a fencing token registers it, and one with a lower token than any seen before is refused.
Without tokens everything is accepted, and a write based on an old read loses an update.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

LINE_BYTES_MAX = 4096


class GuardedResource:
    """A server on a port of its own; one number per name."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._versions: dict[str, int] = {}
        self._tokens: dict[str, int] = {}
        """Highest token seen, by name; never goes back."""

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=LINE_BYTES_MAX)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            if line:
                writer.write(json.dumps(self.answer(json.loads(line))).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError):
            return  # the client was killed in the middle of a request
        finally:
            writer.close()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        name, token = request["name"], request["token"]
        version = self._versions.get(name, 0)
        if token is not None:
            if token < self._tokens.get(name, 0):
                return {"version": version, "before": version, "accepted": False}
            self._tokens[name] = token
        if request["op"] == "write":
            self._versions[name] = version + 1
            return {"version": version + 1, "before": version, "accepted": True}
        return {"version": version, "before": version, "accepted": True}

"""What locks protect: a number that clients read, think about, and write back. It knows nothing of leases.

With a token, a question registers it, and a write with a lower token than any seen before is refused: that
is all a fence is. Without, everything is accepted, and a write upon an old reading loses an update.
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
        """Listen; the port."""
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
            return  # the client was killed in the middle of a question; it will not miss the answer
        finally:
            writer.close()

    def answer(self, leader_request: dict[str, Any]) -> dict[str, Any]:
        """Answer `read` or `write` of a name, perhaps with a token."""
        name, token = leader_request["name"], leader_request["token"]
        version = self._versions.get(name, 0)
        if token is not None:
            if token < self._tokens.get(name, 0):
                return {"version": version, "before": version, "accepted": False}
            self._tokens[name] = token
        if leader_request["op"] == "write":
            self._versions[name] = version + 1
            return {"version": version + 1, "before": version, "accepted": True}
        return {"version": version, "before": version, "accepted": True}

"""Steering a running supervisor from another process: one JSON line each way on a loopback port.

A request is `{"secret": ..., "verb": ..., "arguments": [...]}`; the answer `{"value": ...}` or
`{"error": "one line"}`. The secret is in the plan file, which only its user can read.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from kvstore.devcluster.cluster_status import NodeStatus
from kvstore.devcluster.plan import HOST, ClusterError, Running
from kvstore.devcluster.supervisor import Supervisor

REQUEST_BYTES_MAX = 64 << 10
"""Requests name a few nodes; the bound only keeps strangers from filling memory."""

ANSWER_TIMEOUT_S = 30.0
"""The slowest verb, restart, waits for a member's stop (5 s) and start."""


REFUSAL = "wrong secret"
"""What a supervisor answers to a request meant for another one."""


class ControlServer:
    """Answers requests until closed; `stop_asked` is set when one asks for the end of the cluster."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.secret = secrets.token_hex(16)
        self.port = 0
        self.stop_asked = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._plain: dict[str, Callable[[], Awaitable[Any]]] = {
            "status": self._status,
            "heal": self._heal,
            "down": self._down,
        }
        self._aimed: dict[str, Callable[[str], Awaitable[str]]] = {
            "kill": self._kill,
            "pause": self._pause,
            "resume": self._resume,
            "restart": self._restart,
            "isolate": self._isolate,
            "partition": self._partition,
        }

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, 0, limit=REQUEST_BYTES_MAX)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Take no further requests."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, asyncio.TimeoutError):
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                answer = await self._answer(await reader.readline())
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if not hmac.compare_digest(str(request["secret"]), self.secret):
                return {"error": REFUSAL}
            verb, arguments = str(request["verb"]), [str(argument) for argument in request["arguments"]]
        except (ValueError, KeyError, TypeError):
            return {"error": "not a request"}
        try:
            if verb in self._plain and not arguments:
                return {"value": await self._plain[verb]()}
            if verb in self._aimed and len(arguments) == 1:
                return {"value": await self._aimed[verb](arguments[0])}
        except ClusterError as error:
            return {"error": str(error)}
        return {"error": f"no such request: {verb} with {len(arguments)} arguments"}

    async def _status(self) -> list[dict[str, Any]]:
        return [asdict(status) for status in await self._supervisor.statuses()]

    async def _kill(self, who: str) -> str:
        number = await self._supervisor.resolve(who)
        await self._supervisor.kill(number)
        return f"node{number} killed"

    async def _pause(self, who: str) -> str:
        number = await self._supervisor.resolve(who)
        self._supervisor.pause(number)
        return f"node{number} paused"

    async def _resume(self, who: str) -> str:
        number = await self._supervisor.resolve(who)
        self._supervisor.resume(number)
        return f"node{number} resumed"

    async def _restart(self, who: str) -> str:
        number = await self._supervisor.resolve(who)
        await self._supervisor.restart(number)
        return f"node{number} started"

    async def _isolate(self, who: str) -> str:
        number = await self._supervisor.resolve(who)
        self._supervisor.isolate(number)
        return f"node{number} is partitioned from all others"

    async def _partition(self, text: str) -> str:
        groups = []
        for group in text.split("|"):
            names = [name.strip() for name in group.split(",") if name.strip()]
            groups.append([await self._supervisor.resolve(name) for name in names])
        self._supervisor.partition(groups)
        return "the network is split"

    async def _heal(self) -> str:
        self._supervisor.heal()
        return "the network is whole again"

    async def _down(self) -> str:
        self.stop_asked.set()
        return "stopping"


async def ask(running: Running, verb: str, *arguments: str) -> Any:
    """Send one request; raises ClusterError with the supervisor's words, ConnectionError when none runs.

    A process that took over the port of a killed supervisor is none, not even another supervisor.
    """
    reader, writer = await asyncio.open_connection(HOST, running.control_port, limit=1 << 20)
    try:
        request = {"secret": running.control_secret, "verb": verb, "arguments": arguments}
        writer.write(json.dumps(request).encode() + b"\n")
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            answer = json.loads(await reader.readline())
    except TimeoutError:
        raise ClusterError(f"the cluster did not answer within {ANSWER_TIMEOUT_S:.0f} s") from None
    except ValueError:
        raise ConnectionResetError("what answers is no supervisor, or it hung up") from None
    finally:
        writer.close()
    match answer:
        case {"value": value}:
            return value
        case {"error": str(text)} if text != REFUSAL:
            raise ClusterError(text)
        case _:
            raise ConnectionResetError("what answers is not the supervisor of this cluster")


def status_from(row: dict[str, Any]) -> NodeStatus:
    row = dict(row)
    row["unreachable_from"] = tuple(row["unreachable_from"])
    row["errors"] = tuple(row["errors"])
    return NodeStatus(**row)

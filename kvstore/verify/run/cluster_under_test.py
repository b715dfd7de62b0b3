"""The members under test: the local cluster's supervisor, with a say in how each member is started."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc.aio

from kvstore.devcluster.plan import ClusterError, ClusterPlan, NodePlan
from kvstore.devcluster.supervisor import Supervisor
from kvstore.wire import rpc_pb2

CALL_TIMEOUT_S = 5.0
POLL_S = 0.1


class Wrapping:
    """How one member is started, where that differs from the usual."""

    def __init__(
        self,
        *,
        before: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        flags: Mapping[str, str] | None = None,
    ) -> None:
        self.before = before
        """A program and its arguments that starts the member (a tracer)."""
        self.environment = dict(environment or {})
        self.flags = dict(flags or {})
        """Flags by name, instead of the plan's."""


class ClusterUnderTest(Supervisor):
    held_called = "connections held"
    """What `held_links` counts."""

    def __init__(self, plan: ClusterPlan) -> None:
        super().__init__(plan)
        self.wrappings: dict[int, Wrapping] = {}
        """By member; in effect from its next start on."""
        self.before_start: list[Callable[[int], None]] = []
        """Called with a member's number before each start of it."""
        self.after_stop: list[Callable[[], object]] = []
        """Called when every process has ended."""
        self.may_end: dict[int, bool] = {}
        """Members whose processes may end by themselves now, because a fault asks for it."""
        self.unexpected: list[str] = []
        """Members that ended by themselves, without a fault that explains it."""
        self._channels: dict[int, grpc.aio.Channel] = {}

    def launch(self, node: NodePlan) -> tuple[list[str], dict[str, str]]:
        for prepare in self.before_start:
            prepare(node.number)
        command, environment = super().launch(node)
        wrapping = self.wrappings.get(node.number)
        if wrapping is None:
            return command, environment
        kept = [one for one in command if one.partition("=")[0].removeprefix("--") not in wrapping.flags]
        flags = [f"--{name}={value}" for name, value in wrapping.flags.items()]
        return [*wrapping.before, *kept, *flags], {**environment, **wrapping.environment}

    @property
    def numbers(self) -> list[int]:
        return [node.number for node in self.plan.nodes]

    @property
    def alive(self) -> list[int]:
        return [number for number, child in self._children.items() if child.alive]

    def state(self, number: int) -> str:
        """running, paused, killed, stopped or exited (code)."""
        child = self._children.get(number)
        return "stopped" if child is None else child.state

    def last_pid(self, number: int) -> int:
        """The process id of a member's newest process, ended or not; 0 before the first."""
        child = self._children.get(number)
        return 0 if child is None else child.process.pid

    def note_ends(self) -> None:
        """Record members that ended by themselves; to be called before one is started again."""
        for number, child in self._children.items():
            if not child.alive and not child.asked and not self.may_end.get(number):
                line = f"node{number} {child.state} by itself: {self.last_words(number)}"
                if line not in self.unexpected:
                    self.unexpected.append(line)

    def held_links(self) -> int:
        return sum(connection.held for proxy in self._proxies.values() for connection in proxy.connections)

    def open_links(self) -> int:
        return sum(len(proxy.connections) for proxy in self._proxies.values())

    def reset_links(self) -> int:
        connections = [one for proxy in self._proxies.values() for one in proxy.connections]
        for connection in connections:
            connection.reset()
        return len(connections)

    async def call(
        self,
        number: int,
        method: str,
        request: Any,
        *,
        package: str = "etcdserverpb",
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Any:
        """One call to one member, `method` as in "KV/Range". Raises grpc.aio.AioRpcError."""
        channel = self._channels.get(number)
        if channel is None:
            address = self.plan.node(number).client_address
            options = [("grpc.max_receive_message_length", -1), ("grpc.max_reconnect_backoff_ms", 200)]
            channel = self._channels[number] = grpc.aio.insecure_channel(address, options=options)
        name = type(request).__name__.removesuffix("Request") + "Response"
        reply = getattr(rpc_pb2, name)
        call: Any = channel.unary_unary(
            f"/{package}.{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        return await call(request, timeout=timeout_s)

    async def leader(self) -> int:
        statuses = [status for status in await self.statuses() if status.role == "leader"]
        return max(statuses, key=lambda status: status.term).number if statuses else 0

    async def wait_healthy(self, timeout_s: float) -> None:
        """Wait until every member of the plan answers a linearizable read. Raises ClusterError."""
        deadline = time.monotonic() + timeout_s
        for number in self.numbers:
            while True:
                try:
                    await self.call(number, "KV/Range", rpc_pb2.RangeRequest(key=b"\0"), timeout_s=2.0)
                    break
                except grpc.aio.AioRpcError as error:
                    if time.monotonic() > deadline:
                        raise ClusterError(
                            f"node{number} ({self.state(number)}) serves no read after {timeout_s:g} s: "
                            f"{error.details()}; {self.last_words(number)}"
                        ) from None
                    await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
        await super().stop()
        for tidy in self.after_stop:
            tidy()

    def log_of(self, number: int) -> Path:
        return self.plan.log_file(self.plan.node(number))

    def data_of(self, number: int) -> Path:
        return self.plan.data_directory(self.plan.node(number))

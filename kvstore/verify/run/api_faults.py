"""Faults asked for over the API: compaction under everybody's feet, and leadership handed around."""

from __future__ import annotations

import asyncio
import time

import grpc
import grpc.aio

from kvstore.verify.run.faults import FaultMissedError, Field
from kvstore.wire import rpc_pb2

COMPACT_EVERY_S = 0.2
"""As often as the robustness tests of etcd do it."""

COMPACT_BEHIND_MAX = 50
"""Revisions left when compacting: some watchers and readers are always caught."""

TRANSFER_TIMEOUT_S = 5.0


class Compaction:
    """The history is compacted a few revisions behind the present, several times a second."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.nodes: tuple[int, ...] = ()
        self._done = 0
        self._task: asyncio.Task[None] | None = None

    def prepare(self) -> None:
        """Nothing to prepare."""

    async def begin(self) -> str:
        self._done = 0
        self._task = asyncio.get_running_loop().create_task(self._compact())
        return f"compaction every {COMPACT_EVERY_S:g} s"

    async def _compact(self) -> None:
        cluster, rng = self.field.cluster, self.field.rng
        while True:
            number = rng.choice(cluster.numbers)
            try:
                status = await cluster.call(
                    number, "Maintenance/Status", rpc_pb2.StatusRequest(), timeout_s=1.0
                )
                revision = max(1, status.header.revision - rng.randrange(COMPACT_BEHIND_MAX))
                await cluster.call(
                    number, "KV/Compact", rpc_pb2.CompactionRequest(revision=revision), timeout_s=2.0
                )
                self._done += 1
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    return
            await asyncio.sleep(COMPACT_EVERY_S)

    async def end(self) -> str:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if not self._done:
            raise FaultMissedError("no compaction was accepted")
        return f"{self._done} compactions"


class Transfer:
    """Leadership is handed to another member, again and again."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.nodes: tuple[int, ...] = ()
        self._moved = 0

    def prepare(self) -> None:
        """Nothing to prepare."""

    async def begin(self) -> str:
        cluster, rng = self.field.cluster, self.field.rng
        statuses = {status.number: status for status in await cluster.statuses() if status.answered}
        leader = await cluster.leader()
        others = [number for number in statuses if number != leader]
        if not leader or not others:
            raise FaultMissedError("nobody leads, or there is nobody to hand over to")
        target = rng.choice(others)
        self.nodes = (leader, target)
        request = rpc_pb2.MoveLeaderRequest(targetID=statuses[target].member_id)
        await cluster.call(leader, "Maintenance/MoveLeader", request, timeout_s=TRANSFER_TIMEOUT_S)
        self._moved = 0
        deadline = time.monotonic() + TRANSFER_TIMEOUT_S
        while time.monotonic() < deadline and not self._moved:
            now = await cluster.leader()
            self._moved = now if now and now != leader else 0
        return f"leadership from node{leader} to node{target}"

    async def end(self) -> str:
        moved, self._moved = self._moved, 0
        if not moved:
            raise FaultMissedError("the leader did not change")
        return f"node{moved} leads"

"""Faults through the API: compaction, leadership transfer, and members that need a snapshot."""

from __future__ import annotations

import asyncio
import re
import time

import grpc
import grpc.aio

from kvstore.verify.run.cluster_under_test import Wrapping
from kvstore.verify.run.nemesis_runner import FaultMissedError, Field
from kvstore.wire import rpc_pb2

COMPACT_EVERY_S = 0.2
"""As often as the robustness tests of etcd do it."""

COMPACT_BEHIND_MAX = 50
"""Revisions left when compacting: some watchers and readers are always caught."""

SNAPSHOT_ENTRIES = 100
CATCHUP_ENTRIES = 20
AWAY_ENTRIES = 4 * SNAPSHOT_ENTRIES
"""By which the log grows while a member is away: it is compacted in steps, behind the backend."""

AWAY_TIMEOUT_S = 15.0
INSTALL_TIMEOUT_S = 10.0
METRICS_BYTES_MAX = 1 << 20

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
                self.field.compacted_through = max(self.field.compacted_through, revision)
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


class Snapshots:
    """Logs keep a hundred entries only, and a member is partitioned until it needs a snapshot."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.nodes: tuple[int, ...] = ()
        self._before = 0.0

    def prepare(self) -> None:
        flags = {"snapshot-count": str(SNAPSHOT_ENTRIES), "snapshot-catchup-entries": str(CATCHUP_ENTRIES)}
        for number in self.field.cluster.numbers:
            self.field.cluster.wrappings.setdefault(number, Wrapping()).flags |= flags

    async def begin(self) -> str:
        cluster, rng = self.field.cluster, self.field.rng
        leader = await cluster.leader()
        number = rng.choice([one for one in cluster.alive if one != leader] or cluster.alive)
        self.nodes = (number,)
        self._before = await self._installed(number)
        others = [one for one in cluster.numbers if one != number]
        cluster.partition_state.set_links(
            pair for other in others for pair in ((number, other), (other, number))
        )
        await self._wait_entries(AWAY_ENTRIES, time.monotonic() + AWAY_TIMEOUT_S)
        return f"node{number} away while the log is compacted every {SNAPSHOT_ENTRIES} entries"

    async def _wait_entries(self, count: int, deadline: float) -> None:
        """Wait until the log has grown by so many entries."""
        first = max(status.raft_index for status in await self.field.cluster.statuses())
        while time.monotonic() < deadline:
            now = max(status.raft_index for status in await self.field.cluster.statuses())
            if now >= first + count:
                return
            await asyncio.sleep(0.3)

    async def end(self) -> str:
        cluster = self.field.cluster
        cluster.heal()
        (number,) = self.nodes or (0,)
        deadline = time.monotonic() + INSTALL_TIMEOUT_S
        while number and time.monotonic() < deadline:
            count = await self._installed(number) - self._before
            if count > 0:
                return f"node{number} installed {count:.0f} snapshots"
            await asyncio.sleep(0.2)
        raise FaultMissedError("no snapshot was installed")

    async def _installed(self, number: int) -> float:
        """How many snapshots the member has installed since its start, from its metrics."""
        node = self.field.cluster.plan.node(number)
        try:
            reader, writer = await asyncio.open_connection(node.host, node.metrics_port)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            text = await asyncio.wait_for(reader.read(METRICS_BYTES_MAX), 5)
            while more := await asyncio.wait_for(reader.read(METRICS_BYTES_MAX), 5):
                text += more
            writer.close()
        except (OSError, TimeoutError):
            return self._before
        found = re.search(rb"^etcd_network_snapshot_receive_success\S* (\S+)", text, re.MULTILINE)
        return float(found.group(1)) if found else 0.0


class Transfer:
    """Leadership is transferred to another member, again and again."""

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
            raise FaultMissedError("there is no leader, or no other member")
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

"""Two clusters of equal size that see the same requests."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc.aio

from bench import clusters, rpc
from tests.differential import judge
from tests.differential.context import CALL_SECONDS_MAX, Abandoned
from tests.differential.programs import Compaction, Delete, Put, Range, Request, Txn

MakeCluster = Callable[[Path, int], clusters.Cluster]


class Side:
    """One cluster and a connection to each of its members."""

    def __init__(self, cluster: clusters.Cluster) -> None:
        self.stores = [rpc.Store(endpoint) for endpoint in cluster.endpoints]
        self.calls = [
            {Range: one.range, Put: one.put, Delete: one.delete, Txn: one.txn, Compaction: one.compact}
            for one in self.stores
        ]

    async def call(self, member: int, request: Request) -> judge.Reply | judge.Refusal:
        try:
            return await self.calls[member][type(request)](request, timeout=CALL_SECONDS_MAX)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise Abandoned(f"{self.stores[member].endpoint}: {error.details()}") from error
            return judge.Refusal(error.code().value[0], error.details() or "")

    async def close(self) -> None:
        for store in self.stores:
            await store.close()


class Pair:
    """Two fresh clusters of equal size that see the same requests."""

    def __init__(self, left: MakeCluster, right: MakeCluster, folder: Path, size: int) -> None:
        self.make = (left, right)
        self.folder, self.size = folder, size
        self.generation = itertools.count()
        self.programs = 0
        """Run so far, on these clusters or earlier ones."""
        self.compacted = 0
        """Newest revision that both sides' history was compacted at."""
        self.clusters: list[clusters.Cluster] = []
        self.sides: list[Side] = []

    async def __aenter__(self) -> Self:
        await self.restart()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        for side in self.sides:
            await side.close()
        for cluster in self.clusters:
            cluster.kill()
        self.sides, self.clusters = [], []

    async def restart(self) -> None:
        """Throw both clusters away and begin with empty ones."""
        await self.stop()
        self.compacted = 0
        folder = self.folder / f"generation-{next(self.generation)}"
        for name, make in zip(("left", "right"), self.make, strict=True):
            cluster = make(folder / name, self.size)
            await asyncio.to_thread(cluster.__enter__)
            self.clusters.append(cluster)
            self.sides.append(Side(cluster))

    async def restart_member(self, number: int) -> None:
        """Kill one member of each cluster and start it again; returns when all name one leader."""
        for cluster in self.clusters:
            member = cluster.members[number]
            await asyncio.to_thread(member.kill)
            member.start()
        await asyncio.gather(*(asyncio.to_thread(cluster.wait_ready) for cluster in self.clusters))

    def obituary(self) -> str | None:
        """The last words of a process that ended by itself: nothing a client sends may do that."""
        for cluster in self.clusters:
            for member in cluster.running():
                if member.process is not None and member.process.poll() is not None:
                    return f"{member.name} ended with {member.process.returncode}:\n{member.tail()}"
        return None

    async def both(self, member: int, request: Request) -> list[judge.Reply | judge.Refusal]:
        return list(await asyncio.gather(*(side.call(member, request) for side in self.sides)))

"""The local cluster's proxies before the members of a `Cluster`: reset a connection, isolate a member.

All proxies live in one thread with a loop of its own; the methods may be called from any other thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from bench.clusters import Cluster
from kvstore.devcluster.dialers import process_of
from kvstore.devcluster.plan import free_ports
from kvstore.devcluster.proxy import Partition, PeerProxy

CALL_SECONDS_MAX = 10.0

Result = TypeVar("Result")


class Proxies:
    """One proxy per member of a cluster; enter it before the cluster, which then advertises the proxies."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.ports = free_ports(cluster.size)
        cluster.proxy_ports = dict(enumerate(self.ports))
        cluster.prepare()
        self.partition = Partition()
        self.proxies = [
            PeerProxy(
                number=index,
                listen_port=port,
                target_port=cluster.members[index].peer_port,
                partition=self.partition,
                who_dials=self._who_dials,
            )
            for index, port in enumerate(self.ports)
        ]
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="proxies", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        for proxy in self.proxies:
            self._do(proxy.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for proxy in self.proxies:
            self._do(proxy.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(CALL_SECONDS_MAX)
        self.loop.close()

    def _do(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(CALL_SECONDS_MAX)

    def _who_dials(self, port: int, our_port: int) -> int | None:
        members = {member.pid: index for index, member in enumerate(self.cluster.members) if member.process}
        pid = process_of(port, our_port, members)
        return None if pid is None else members[pid]

    # --- faults ---

    def connections(self, index: int) -> int:
        """Open connections towards a member."""
        return len(self.proxies[index].connections)

    def reset_one(self, index: int, position: int) -> bool:
        """Reset one connection towards a member; False if there is none now."""

        async def reset() -> bool:
            connections = self.proxies[index].connections
            if connections:
                connections[position % len(connections)].reset()
            return bool(connections)

        return self._do(reset())

    def isolate(self, index: int) -> None:
        """Partition one member from all others: connections stay open, and carry nothing."""
        others = [other for other in range(self.cluster.size) if other != index]

        async def isolate() -> None:
            self.partition.set_groups(((index,), others))

        self._do(isolate())

    def heal(self) -> None:
        """Deliver what was held back, and everything from now on."""

        async def heal() -> None:
            self.partition.heal()

        self._do(heal())

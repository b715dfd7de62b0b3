"""This member as its services see it: its replica with leases, locks, watches and loss of the leader."""

from __future__ import annotations

from kvstore.engine import Engine
from kvstore.lease.lessor import Lessor
from kvstore.lease.lock_queue import LockQueues
from kvstore.replica.replica import Limits, NodeView, Replica
from kvstore.server.leader_loss import LeaderLoss
from kvstore.watch.watch_hub import WatchHub


class LocalMember(Replica):
    """One member; the program that has its engine apply entries calls `watches.applied` afterwards."""

    def __init__(
        self,
        *,
        node: NodeView,
        engine: Engine,
        cluster_id: int,
        member_id: int,
        limits: Limits,
        quota_bytes: int | None,
    ) -> None:
        super().__init__(
            node=node,
            engine=engine,
            cluster_id=cluster_id,
            member_id=member_id,
            limits=limits,
            quota_bytes=quota_bytes,
        )
        self.watches = WatchHub(engine)
        self.lessor = Lessor(self)
        self.lock_queues = LockQueues(self, self.lessor, self.watches)
        self.leader_loss = LeaderLoss(limits.leaderless_s)

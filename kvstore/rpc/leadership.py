"""etcdserverpb.Maintenance, the part that moves leadership."""

from __future__ import annotations

from functools import partial

from kvstore.rpc.call import Call, Method, reply_unless, unary
from kvstore.rpc.maintenance import SERVICE
from kvstore.server.cluster_changes import ClusterChanges
from kvstore.wire import rpc_pb2 as pb


class LeadershipService:
    """MoveLeader; only the leader takes it."""

    def __init__(self, changes: ClusterChanges) -> None:
        self._changes = changes

    def methods(self) -> tuple[Method, ...]:
        """The rows of this service."""
        return unary(SERVICE, ("MoveLeader", pb.MoveLeaderRequest, self.move_leader))

    def move_leader(self, request: pb.MoveLeaderRequest, call: Call) -> None:
        """Hand leadership to another voter. The reply has no header, as in etcd."""
        on_result = partial(reply_unless, call, pb.MoveLeaderResponse)
        self._changes.move_leader(request.targetID, on_result)

"""etcdserverpb.Maintenance, the part that moves leadership."""

from __future__ import annotations

from functools import partial

from kvstore.errors import KVError
from kvstore.rpc.call import Call, Method, reply_with
from kvstore.server.cluster_changes import ClusterChanges
from kvstore.wire import rpc_pb2 as pb


class LeadershipService:
    """MoveLeader; only the leader takes it."""

    def __init__(self, changes: ClusterChanges) -> None:
        self._changes = changes

    def methods(self) -> tuple[Method, ...]:
        """The rows of this service."""
        return (
            Method(
                service="etcdserverpb.Maintenance",
                name="MoveLeader",
                request_type=pb.MoveLeaderRequest,
                handler=self.move_leader,
            ),
        )

    def move_leader(self, request: pb.MoveLeaderRequest, call: Call) -> None:
        """Hand leadership to another voter. The reply has no header, as in etcd."""
        self._changes.move_leader(request.targetID, partial(self._moved, call))

    def _moved(self, call: Call, error: KVError | None) -> None:
        if error is not None:
            call.fail(error)
        else:
            reply_with(call, pb.MoveLeaderResponse)

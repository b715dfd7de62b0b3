"""etcdserverpb.Cluster: the members, as this one knows them or as the cluster agrees."""

from __future__ import annotations

from functools import partial

from google.protobuf.message import Message

from kvstore.errors import KVError
from kvstore.rpc import convert
from kvstore.rpc.call import Call, Method, reply_with
from kvstore.rpc.headers import Headers
from kvstore.server.local_member import LocalMember
from kvstore.wire import rpc_pb2 as pb

SERVICE = "etcdserverpb.Cluster"


class ClusterService:
    """Membership."""

    def __init__(self, member: LocalMember, headers: Headers) -> None:
        self._member = member
        self._headers = headers

    def methods(self) -> tuple[Method, ...]:
        """The rows of this service."""
        return (
            Method(
                service=SERVICE,
                name="MemberList",
                request_type=pb.MemberListRequest,
                handler=self.member_list,
                needs_leader=self._member.has_leader,
            ),
        )

    def member_list(self, request: pb.MemberListRequest, call: Call) -> Message | None:
        """All members; `linearizable` asks for proof that the list is current."""
        if not request.linearizable:
            return self._list()
        self._member.barrier(partial(self._proven, call))
        return None

    def _proven(self, call: Call, error: KVError | None) -> None:
        if error is not None:
            call.fail(error)
        else:
            reply_with(call, self._list)

    def _list(self) -> Message:
        members = [convert.member(member) for member in self._member.engine.members()]
        return pb.MemberListResponse(header=self._headers.without_revision(), members=members)

"""etcdserverpb.Cluster: the members, as applied here or linearizable, and their changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from google.protobuf.message import Message

from kvstore.engine import Member, MembersResult
from kvstore.replica.outcome import OnResult
from kvstore.rpc import convert
from kvstore.rpc.call import Call, Method, reply_to_outcome, reply_unless, unary
from kvstore.rpc.convert import Headers
from kvstore.server.local_member import LocalMember
from kvstore.server.membership_changes import MembershipChanges
from kvstore.wire import rpc_pb2 as pb

SERVICE = "etcdserverpb.Cluster"

MakeReply = Callable[[list[pb.Member]], Message]
"""From all members to a reply."""


class ClusterService:
    def __init__(self, member: LocalMember, changes: MembershipChanges, headers: Headers) -> None:
        self._member = member
        self._changes = changes
        self._headers = headers

    def methods(self) -> tuple[Method, ...]:
        return unary(
            SERVICE,
            ("MemberAdd", pb.MemberAddRequest, self.member_add),
            ("MemberRemove", pb.MemberRemoveRequest, self.member_remove),
            ("MemberUpdate", pb.MemberUpdateRequest, self.member_update),
            ("MemberList", pb.MemberListRequest, self.member_list),
            ("MemberPromote", pb.MemberPromoteRequest, self.member_promote),
        )

    def member_list(self, request: pb.MemberListRequest, call: Call) -> Message | None:
        """All members; a `linearizable` list waits for a read round."""
        if not request.linearizable:
            return self._list()
        self._member.barrier(partial(reply_unless, call, self._list))
        return None

    def _list(self) -> Message:
        members = _members(self._member.engine.members())
        return pb.MemberListResponse(header=self._headers.without_revision(), members=members)

    def member_add(self, request: pb.MemberAddRequest, call: Call) -> None:
        """Add a voter or a learner; it has no name before it starts."""
        member_id = self._changes.new_member_id()

        def make(members: list[pb.Member]) -> Message:
            (member,) = [one for one in members if member_id == one.ID]
            header = self._headers.without_revision()
            return pb.MemberAddResponse(header=header, member=member, members=members)

        on_result = self._changed(call, make)
        self._changes.add(member_id, request.peerURLs, is_learner=request.isLearner, on_result=on_result)

    def member_remove(self, request: pb.MemberRemoveRequest, call: Call) -> None:
        make = partial(self._reply, pb.MemberRemoveResponse)
        self._changes.remove(request.ID, self._changed(call, make))

    def member_update(self, request: pb.MemberUpdateRequest, call: Call) -> None:
        make = partial(self._reply, pb.MemberUpdateResponse)
        self._changes.update(request.ID, request.peerURLs, self._changed(call, make))

    def member_promote(self, request: pb.MemberPromoteRequest, call: Call) -> None:
        make = partial(self._reply, pb.MemberPromoteResponse)
        self._changes.promote(request.ID, self._changed(call, make))

    def _reply(self, kind: Callable[..., Message], members: list[pb.Member]) -> Message:
        return kind(header=self._headers.without_revision(), members=members)

    def _changed(self, call: Call, make: MakeReply) -> OnResult[MembersResult]:
        return reply_to_outcome(call, lambda result: make(_members(result.members)))


def _members(members: Iterable[Member]) -> list[pb.Member]:
    return [convert.member(member) for member in members]

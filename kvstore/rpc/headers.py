"""The header of every answer: which cluster, which member, its term, and the store's revision."""

from __future__ import annotations

from kvstore.server.local_member import LocalMember
from kvstore.wire import rpc_pb2 as pb


class Headers:
    """Makes headers for one member."""

    def __init__(self, member: LocalMember) -> None:
        self._member = member

    def at(self, revision: int) -> pb.ResponseHeader:
        """A header that names a revision of the store."""
        member = self._member
        return pb.ResponseHeader(
            cluster_id=member.cluster_id,
            member_id=member.member_id,
            revision=revision,
            raft_term=member.node.term,
        )

    def current(self) -> pb.ResponseHeader:
        """A header with the revision this member has applied."""
        return self.at(self._member.engine.revision)

    def without_revision(self) -> pb.ResponseHeader:
        """For calls that do not touch the store."""
        return self.at(0)

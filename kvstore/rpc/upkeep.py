"""etcdserverpb.Maintenance, the rest of it: checksums, and what only etcd's own storage needs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from functools import partial

from google.protobuf.message import Message

from kvstore.errors import InvalidDowngradeTarget, KVError, NoDowngrade, WrongVersionFormat
from kvstore.rpc.call import Call, Method, reply_with, unary
from kvstore.rpc.headers import Headers
from kvstore.rpc.maintenance import SERVICE
from kvstore.server.local_member import LocalMember
from kvstore.wire import rpc_pb2 as pb

_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)(\.(0|[1-9]\d*))?", re.ASCII)
"""A target of a downgrade: `3.4`, or `3.4.0`."""


class UpkeepService:
    """Hash, HashKV, Defragment and Downgrade."""

    def __init__(self, member: LocalMember, headers: Headers) -> None:
        self._member = member
        self._headers = headers

    def methods(self) -> tuple[Method, ...]:
        """The rows of this service."""
        return unary(
            SERVICE,
            ("Hash", pb.HashRequest, self.hash),
            ("HashKV", pb.HashKVRequest, self.hash_kv),
            ("Defragment", pb.DefragmentRequest, self.defragment),
            ("Downgrade", pb.DowngradeRequest, self.downgrade),
        )

    def hash(self, _request: pb.HashRequest, call: Call) -> None:
        """A checksum of all that is stored, as of now; equal on members that applied the same."""
        _, slices = self._member.engine.hash_slices()
        _finish(call, slices, lambda found: pb.HashResponse(header=self._headers.current(), hash=found))

    def hash_kv(self, request: pb.HashKVRequest, call: Call) -> None:
        """The checksum of the history retained up to a revision."""
        engine = self._member.engine
        revision, slices = engine.hash_slices(request.revision)

        def answer(found: int) -> Message:
            return pb.HashKVResponse(
                header=self._headers.current(),
                hash=found,
                compact_revision=engine.compact_revision,
                hash_revision=revision,
            )

        _finish(call, slices, answer)

    def defragment(self, _request: pb.DefragmentRequest, _call: Call) -> Message:
        """Succeeds and does nothing: what compaction frees is used again at once, and the quota counts
        stored bytes, not the size of a file."""
        return pb.DefragmentResponse()

    def downgrade(self, request: pb.DowngradeRequest, _call: Call) -> Message:
        """There is no earlier version to go back to: every target is refused, in etcd's words."""
        if request.action == pb.DowngradeRequest.CANCEL:
            raise NoDowngrade
        if not _VERSION.fullmatch(request.version):
            raise WrongVersionFormat
        raise InvalidDowngradeTarget


def _finish(call: Call, slices: Iterator[int | None], make: Callable[[int], Message]) -> None:
    """Do one slice in each turn of the loop, then answer; give up when the caller has gone."""
    if call.gone:
        return
    try:
        found = next(slices)
    except KVError as error:
        call.fail(error)
        return
    if found is None:
        asyncio.get_running_loop().call_soon(_finish, call, slices, make)
    else:
        reply_with(call, partial(make, found))

"""etcdserverpb.Maintenance: status, alarms, checksums, snapshots and leadership
(`api/v3rpc/maintenance.go`)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from google.protobuf.message import Message

from kvstore.engine import Alarm, AlarmAction, AlarmMember, AlarmResult, AlarmType
from kvstore.errors import InvalidDowngradeTarget, KVError, NoDowngrade, NoLeader, WrongVersionFormat
from kvstore.rpc.call import Call, Method, reply_to_outcome, reply_unless, reply_with, unary
from kvstore.rpc.convert import Headers
from kvstore.server.backup_stream import Backups
from kvstore.server.local_member import LocalMember
from kvstore.server.membership_changes import MembershipChanges
from kvstore.version import ETCD_VERSION
from kvstore.wire import rpc_pb2 as pb

SERVICE = "etcdserverpb.Maintenance"

_WIRE_KINDS = {
    int(AlarmType.NONE): pb.NONE,
    int(AlarmType.NOSPACE): pb.NOSPACE,
    int(AlarmType.CORRUPT): pb.CORRUPT,
}
_CHANGES = frozenset((int(AlarmAction.ACTIVATE), int(AlarmAction.DEACTIVATE)))
"""Both enums are open on the wire: other numbers change nothing."""

_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)(\.(0|[1-9]\d*))?", re.ASCII)
"""A target of a downgrade: `3.4` or `3.4.0`."""


class MaintenanceService:
    def __init__(
        self, member: LocalMember, changes: MembershipChanges, backups: Backups, headers: Headers
    ) -> None:
        self._member = member
        self._changes = changes
        self._backups = backups
        self._headers = headers

    def methods(self) -> tuple[Method, ...]:
        rows = unary(
            SERVICE,
            ("Status", pb.StatusRequest, self.status),
            ("Alarm", pb.AlarmRequest, self.alarm),
            ("MoveLeader", pb.MoveLeaderRequest, self.move_leader),
            ("Hash", pb.HashRequest, self.hash),
            ("HashKV", pb.HashKVRequest, self.hash_kv),
            ("Defragment", pb.DefragmentRequest, self.defragment),
            ("Downgrade", pb.DowngradeRequest, self.downgrade),
        )
        snapshot = Method(
            service=SERVICE,
            name="Snapshot",
            request_type=pb.SnapshotRequest,
            handler=self.snapshot,
            streaming=True,
        )
        return (*rows, snapshot)

    def status(self, _request: pb.StatusRequest, _call: Call) -> Message:
        """Of this member alone, without a request to the others."""
        member = self._member
        engine = member.engine
        node = member.node.status()
        errors = [] if node.leader else [NoLeader.text]
        errors += [
            f"memberID:{alarm.member_id} alarm:{AlarmType(alarm.alarm).name} " for alarm in engine.alarms()
        ]
        return pb.StatusResponse(
            header=self._headers.current(),
            version=ETCD_VERSION,
            dbSize=max(node.backend_bytes, engine.logical_bytes),  # includes what is not written yet
            dbSizeInUse=engine.logical_bytes_in_use,
            leader=node.leader,
            raftIndex=node.commit,
            raftTerm=node.term,
            raftAppliedIndex=node.applied,
            errors=errors,
            isLearner=member.is_learner(),
        )

    def alarm(self, request: pb.AlarmRequest, call: Call) -> Message | None:
        """List, raise or clear alarms. Clearing an inactive alarm, or raising NONE, changes nothing."""
        if request.action == pb.AlarmRequest.GET:
            self._member.barrier(partial(reply_unless, call, partial(self._list, request.alarm)))
            return None
        if request.alarm not in _WIRE_KINDS or request.action not in _CHANGES:
            return pb.AlarmResponse(header=self._headers.current())
        command = Alarm(action=request.action, member_id=request.memberID, alarm=request.alarm)
        self._member.propose(command, reply_to_outcome(call, self._changed))
        return None

    def _list(self, kind: int) -> Message:
        standing = self._member.engine.alarms()
        return self._response([alarm for alarm in standing if kind in (pb.NONE, alarm.alarm)])

    def _changed(self, outcome: AlarmResult) -> Message:
        return self._response(outcome.alarms)

    def _response(self, alarms: Sequence[AlarmMember]) -> Message:
        answered = pb.AlarmResponse(header=self._headers.current())
        for alarm in alarms:
            answered.alarms.add(memberID=alarm.member_id, alarm=_WIRE_KINDS[alarm.alarm])
        return answered

    def move_leader(self, request: pb.MoveLeaderRequest, call: Call) -> None:
        """Transfer leadership to another voter. The reply has no header, as in etcd."""
        self._changes.move_leader(request.targetID, partial(reply_unless, call, pb.MoveLeaderResponse))

    def snapshot(self, _request: pb.SnapshotRequest, call: Call) -> None:
        """Stream a snapshot of the state applied here now.

        As in etcd the chunks come in order, `remaining_bytes` counts down, and the SHA-256 comes last. Their
        content is our own format (`raft.storage.backup`).
        """
        call.on_gone(self._backups.begin(_BackupCall(call)))

    def hash(self, _request: pb.HashRequest, call: Call) -> None:
        """A checksum of the whole store; equal on members that applied the same entries."""
        _, slices = self._member.engine.hash_slices()
        _finish(call, slices, lambda found: pb.HashResponse(header=self._headers.current(), hash=found))

    def hash_kv(self, request: pb.HashKVRequest, call: Call) -> None:
        """The checksum of the retained history up to a revision."""
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
        """Succeeds and does nothing: the backend reuses what compaction frees, and the quota counts stored
        bytes, not the size of a file."""
        return pb.DefragmentResponse()

    def downgrade(self, request: pb.DowngradeRequest, _call: Call) -> Message:
        """Refuse every target, in etcd's words: there is no earlier version."""
        if request.action == pb.DowngradeRequest.CANCEL:
            raise NoDowngrade
        if not _VERSION.fullmatch(request.version):
            raise WrongVersionFormat
        raise InvalidDowngradeTarget


class _BackupCall:
    """Implements `backup_stream.BackupCall` over a call."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._drained = asyncio.Event()
        call.on_drained(self._drained.set)

    def send_piece(self, data: bytes, remaining_bytes: int) -> None:
        self._call.send(pb.SnapshotResponse(remaining_bytes=remaining_bytes, blob=data))

    async def wait_for_space(self) -> None:
        while not self._call.has_room:
            self._drained.clear()
            await self._drained.wait()

    def finish(self) -> None:
        self._call.finish()

    def fail(self, error: KVError) -> None:
        self._call.fail(error)


def _finish(call: Call, slices: Iterator[int | None], make: Callable[[int], Message]) -> None:
    """Run one slice per loop iteration, then reply; stop when the caller is gone."""
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

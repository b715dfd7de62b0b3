"""etcdserverpb.Maintenance: what this member is like, and the alarms of the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from google.protobuf.message import Message

from kvstore.engine import Alarm, AlarmAction, AlarmMember, AlarmType
from kvstore.errors import KVError, NoLeader
from kvstore.rpc.call import Call, Method, reply_with
from kvstore.rpc.headers import Headers
from kvstore.server.local_member import LocalMember
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


class MaintenanceService:
    """Status and alarms."""

    def __init__(self, member: LocalMember, headers: Headers) -> None:
        self._member = member
        self._headers = headers

    def methods(self) -> tuple[Method, ...]:
        """The rows of this service."""
        return (
            Method(
                service=SERVICE,
                name="Status",
                request_type=pb.StatusRequest,
                handler=self.status,
                needs_leader=self._member.has_leader,
            ),
            Method(
                service=SERVICE,
                name="Alarm",
                request_type=pb.AlarmRequest,
                handler=self.alarm,
                needs_leader=self._member.has_leader,
            ),
        )

    def status(self, _request: pb.StatusRequest, _call: Call) -> Message:
        """This member alone, without asking the others."""
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
            dbSize=max(node.state_file_bytes, engine.logical_bytes),  # what is not written yet counts too
            dbSizeInUse=engine.logical_bytes_in_use,
            leader=node.leader,
            raftIndex=node.commit,
            raftTerm=node.term,
            raftAppliedIndex=node.applied,
            errors=errors,
            isLearner=member.is_learner(),
        )

    def alarm(self, request: pb.AlarmRequest, call: Call) -> Message | None:
        """List, raise or clear alarms. Clearing what does not stand, or raising NONE, changes nothing."""
        if request.action == pb.AlarmRequest.GET:
            self._member.barrier(partial(self._listed, call, request.alarm))
            return None
        if request.alarm not in _WIRE_KINDS or request.action not in _CHANGES:
            return pb.AlarmResponse(header=self._headers.current())
        command = Alarm(action=request.action, member_id=request.memberID, alarm=request.alarm)
        self._member.propose(command, partial(self._changed, call))
        return None

    def _listed(self, call: Call, kind: int, error: KVError | None) -> None:
        if error is not None:
            call.fail(error)
            return
        standing = self._member.engine.alarms()
        reply_with(call, lambda: self._response([a for a in standing if kind in (pb.NONE, a.alarm)]))

    def _changed(self, call: Call, outcome: Any) -> None:
        if isinstance(outcome, KVError):
            call.fail(outcome)
        else:
            reply_with(call, lambda: self._response(outcome.alarms))

    def _response(self, alarms: Sequence[AlarmMember]) -> Message:
        answered = pb.AlarmResponse(header=self._headers.current())
        for alarm in alarms:
            answered.alarms.add(memberID=alarm.member_id, alarm=_WIRE_KINDS[alarm.alarm])
        return answered

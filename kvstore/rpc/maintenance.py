"""etcdserverpb.Maintenance: what this member is like, and the alarms of the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from google.protobuf.message import Message

from kvstore.engine import Alarm, AlarmAction, AlarmMember, AlarmResult, AlarmType
from kvstore.errors import NoLeader
from kvstore.rpc.call import Call, Method, reply_to_outcome, reply_unless, unary
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
        rows = (("Status", pb.StatusRequest, self.status), ("Alarm", pb.AlarmRequest, self.alarm))
        return unary(SERVICE, *rows)

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
            dbSize=max(node.backend_bytes, engine.logical_bytes),  # what is not written yet counts too
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
            self._member.barrier(partial(reply_unless, call, partial(self._list, request.alarm)))
            return None
        if request.alarm not in _WIRE_KINDS or request.action not in _CHANGES:
            return pb.AlarmResponse(header=self._headers.current())
        command = Alarm(action=request.action, member_id=request.memberID, alarm=request.alarm)
        self._member.propose(command, partial(reply_to_outcome, call, self._changed))
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

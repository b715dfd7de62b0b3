"""MemberList, Status, Alarm and health."""

from __future__ import annotations

import pytest

from kvstore import errors
from kvstore.engine import SetMemberAttributes
from kvstore.rpc.health_service import UnknownService
from kvstore.wire import health_pb2
from kvstore.wire import rpc_pb2 as pb
from raft.node import node_errors

MEMBER_LIST = "/etcdserverpb.Cluster/MemberList"
STATUS = "/etcdserverpb.Maintenance/Status"
ALARM = "/etcdserverpb.Maintenance/Alarm"


def test_member_list_carries_no_revision(bench) -> None:
    outcomes: list[object] = []
    urls = ("http://127.0.0.1:2379",)
    bench.member.propose(SetMemberAttributes(bench.member.member_id, "a", urls), outcomes.append)
    answered = bench.call(MEMBER_LIST, pb.MemberListRequest())
    (member,) = answered.members
    assert (member.ID, member.name, list(member.clientURLs)) == (bench.member.member_id, "a", list(urls))
    assert list(member.peerURLs) == ["http://localhost:2380"]
    assert answered.header.revision == 0
    assert answered.header.raft_term == 3


def test_member_list_confirms_itself_only_when_asked(bench) -> None:
    bench.node.error = node_errors.ReadTimedOut()
    assert len(bench.call(MEMBER_LIST, pb.MemberListRequest()).members) == 1
    with pytest.raises(errors.ReadTimedOut):
        bench.call(MEMBER_LIST, pb.MemberListRequest(linearizable=True))


def test_status(bench) -> None:
    bench.call("/etcdserverpb.KV/Put", pb.PutRequest(key=b"k", value=b"v" * 100))
    status = bench.call(STATUS, pb.StatusRequest())
    assert status.version == "3.5.21"
    assert status.leader == bench.member.member_id
    assert (status.raftTerm, status.raftIndex, status.raftAppliedIndex) == (3, 1, 1)
    assert status.header.revision == 2
    assert status.dbSize >= status.dbSizeInUse > 100
    assert list(status.errors) == []


def test_status_reports_alarms_and_of_a_missing_leader(bench) -> None:
    request = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=123, alarm=pb.NOSPACE)
    bench.call(ALARM, request)
    bench.node.leader = 0
    errors_told = list(bench.call(STATUS, pb.StatusRequest()).errors)
    assert errors_told == ["etcdserver: no leader", "memberID:123 alarm:NOSPACE "]


def test_alarms_come_and_go(bench) -> None:
    def alarm(action: int, kind: int, member_id: int = 0):
        request = pb.AlarmRequest(action=action, memberID=member_id, alarm=kind)
        return [(a.memberID, a.alarm) for a in bench.call(ALARM, request).alarms]

    get, activate, deactivate = range(3)
    assert alarm(activate, pb.NONE) == []
    assert alarm(activate, pb.NOSPACE) == [(0, pb.NOSPACE)]
    assert alarm(activate, pb.CORRUPT, 7) == [(7, pb.CORRUPT)]
    assert alarm(get, pb.NONE) == [(0, pb.NOSPACE), (7, pb.CORRUPT)]
    assert alarm(get, pb.CORRUPT, 99) == [(7, pb.CORRUPT)]
    assert alarm(deactivate, pb.CORRUPT, 7) == [(7, pb.CORRUPT)]
    assert alarm(deactivate, pb.CORRUPT, 7) == []
    assert alarm(get, pb.NONE) == [(0, pb.NOSPACE)]
    assert alarm(activate, 77) == []


def test_health(bench) -> None:
    check = "/grpc.health.v1.Health/Check"
    status = bench.call(check, health_pb2.HealthCheckRequest()).status
    assert status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(UnknownService):
        bench.call(check, health_pb2.HealthCheckRequest(service="unknown"))
    watch = "/grpc.health.v1.Health/Watch"
    call = bench.begin(watch, health_pb2.HealthCheckRequest(service="unknown"))
    assert [m.status for m in call.sent] == [health_pb2.HealthCheckResponse.SERVICE_UNKNOWN]

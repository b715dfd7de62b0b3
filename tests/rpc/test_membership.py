"""The Cluster service's changes: what is checked before anything is proposed, and how it is answered."""

from __future__ import annotations

from kvstore.engine.member_commands import MemberAdd, encode_member_command
from kvstore.errors import Code, KVError
from kvstore.wire import rpc_pb2 as pb
from raft.core.confchange import ConfStepKind
from raft.node import ChangeRefused, LearnerNotReady, TransferFailed

ADD = "/etcdserverpb.Cluster/MemberAdd"
REMOVE = "/etcdserverpb.Cluster/MemberRemove"
UPDATE = "/etcdserverpb.Cluster/MemberUpdate"
PROMOTE = "/etcdserverpb.Cluster/MemberPromote"
MOVE = "/etcdserverpb.Maintenance/MoveLeader"
RANGE = "/etcdserverpb.KV/Range"


def text(call) -> str:
    assert isinstance(call.result, KVError)
    return call.result.text


def added(bench, url: str, *, learner: bool = False) -> int:
    call = bench.begin(ADD, pb.MemberAddRequest(peerURLs=[url], isLearner=learner))
    assert isinstance(call.result, pb.MemberAddResponse), call.result
    return call.result.member.ID


def test_a_member_alone_may_grow_and_then_waits_for_the_second(bench) -> None:
    second = added(bench, "http://b:1")
    assert [step.kind for change in bench.node.membership.made for step in change.steps] == [
        ConfStepKind.ADD_VOTER
    ]
    again = pb.MemberAddRequest(peerURLs=["http://c:1"])
    assert text(bench.begin(ADD, again)) == (
        "etcdserver: re-configuration failed due to not enough started members"
    )
    removed = bench.begin(REMOVE, pb.MemberRemoveRequest(ID=second)).result
    assert [member.ID for member in removed.members] == [bench.member.member_id]
    assert removed.header.revision == 0
    assert text(bench.begin(REMOVE, pb.MemberRemoveRequest(ID=second))) == "etcdserver: member not found"
    assert text(bench.begin(UPDATE, pb.MemberUpdateRequest(ID=second, peerURLs=["http://b:1"]))) == (
        "etcdserver: member not found"
    )


def test_the_last_voter_stays(bench) -> None:
    request = pb.MemberRemoveRequest(ID=bench.member.member_id)
    assert text(bench.begin(REMOVE, request)) == (
        "etcdserver: re-configuration failed due to not enough started members"
    )


def test_learners_are_few_and_promoted_when_the_leader_agrees(bench) -> None:
    learner = added(bench, "http://b:1", learner=True)
    more = pb.MemberAddRequest(peerURLs=["http://c:1"], isLearner=True)
    assert text(bench.begin(ADD, more)) == "etcdserver: too many learner members in cluster"
    taken = pb.MemberAddRequest(peerURLs=["http://b:1"])
    assert text(bench.begin(ADD, taken)) == "etcdserver: Peer URLs already exists"
    bench.node.error = LearnerNotReady("")
    promote = pb.MemberPromoteRequest(ID=learner)
    assert text(bench.begin(PROMOTE, promote)) == (
        "etcdserver: can only promote a learner member which is in sync with leader"
    )
    bench.node.error = None
    promoted = bench.begin(PROMOTE, promote).result
    assert [member.isLearner for member in promoted.members] == [False, False]
    assert text(bench.begin(PROMOTE, promote)) == "etcdserver: can only promote a learner member"


def test_a_change_the_configuration_cannot_make(bench) -> None:
    bench.node.error = ChangeRefused("")
    request = pb.MemberAddRequest(peerURLs=["http://b:1"])
    assert "not enough started members" in text(bench.begin(ADD, request))


def test_moving_the_leader(bench) -> None:
    learner = added(bench, "http://b:1", learner=True)
    for target in (learner, 4711):
        assert text(bench.begin(MOVE, pb.MoveLeaderRequest(targetID=target))) == (
            "etcdserver: bad leader transferee"
        )
    bench.begin(PROMOTE, pb.MemberPromoteRequest(ID=learner))
    bench.node.error = TransferFailed("")
    move = pb.MoveLeaderRequest(targetID=learner)
    assert text(bench.begin(MOVE, move)) == "etcdserver: request timed out, leader transfer took too long"
    bench.node.error = None
    assert bench.begin(MOVE, move).result == pb.MoveLeaderResponse()
    assert text(bench.begin(MOVE, move)) == "etcdserver: not leader"


def test_a_learner_serves_its_status_and_serializable_reads_only(bench) -> None:
    table = bench.engine._tables
    own = table.member(bench.member.member_id)
    table.set_member(own._replace(is_learner=True))
    refused = "etcdserver: rpc not supported for learner"
    assert text(bench.begin(RANGE, pb.RangeRequest(key=b"k"))) == refused
    assert text(bench.begin("/etcdserverpb.KV/Put", pb.PutRequest(key=b"k"))) == refused
    assert text(bench.begin("/etcdserverpb.Cluster/MemberList", pb.MemberListRequest())) == refused
    served = bench.begin(RANGE, pb.RangeRequest(key=b"k", serializable=True)).result
    assert isinstance(served, pb.RangeResponse)
    status = bench.begin("/etcdserverpb.Maintenance/Status", pb.StatusRequest()).result
    assert status.isLearner


def test_an_id_in_use_is_refused(bench) -> None:
    command = MemberAdd(bench.member.member_id, ("http://b:1",), is_learner=False, learners_max=1)
    accepted, outcome = bench.engine.apply_change(1, 1, encode_member_command(command), True)
    assert not accepted
    assert (outcome.text, outcome.code) == ("etcdserver: member ID already exist", Code.FAILED_PRECONDITION)

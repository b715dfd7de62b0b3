"""The KV service over a member that applies at once: shapes, headers, read rounds, refusals."""

from __future__ import annotations

import pytest

from kvstore import errors
from kvstore.wire import health_pb2
from kvstore.wire import rpc_pb2 as pb
from raft.node import node_errors

KV = "/etcdserverpb.KV/"


def put(bench, key: bytes, value: bytes = b"v", **options):
    return bench.call(KV + "Put", pb.PutRequest(key=key, value=value, **options))


def get(bench, key: bytes, **options):
    return bench.call(KV + "Range", pb.RangeRequest(key=key, **options))


def test_put_then_get_with_complete_headers(bench) -> None:
    answered = put(bench, b"k")
    assert answered.header.cluster_id == bench.member.cluster_id
    assert answered.header.member_id == bench.member.member_id
    assert (answered.header.revision, answered.header.raft_term) == (2, 3)
    assert not answered.HasField("prev_kv")
    read = get(bench, b"k")
    assert read.header.revision == 2
    assert (read.count, read.more) == (1, False)
    pair = read.kvs[0]
    assert (pair.key, pair.value, pair.version) == (b"k", b"v", 1)
    assert (pair.create_revision, pair.mod_revision) == (2, 2)


def test_prev_kv_and_deletion(bench) -> None:
    put(bench, b"a", b"1")
    assert put(bench, b"a", b"2", prev_kv=True).prev_kv.value == b"1"
    request = pb.DeleteRangeRequest(key=b"a", range_end=b"b", prev_kv=True)
    deleted = bench.call(KV + "DeleteRange", request)
    assert deleted.deleted == 1
    assert deleted.prev_kvs[0].value == b"2"
    assert deleted.header.revision == 4
    assert get(bench, b"a").count == 0


def test_a_linearizable_read_asks_for_confirmation_and_a_serializable_one_does_not(bench) -> None:
    get(bench, b"k", serializable=True)
    assert bench.node.barriers == 0
    get(bench, b"k")
    assert bench.node.barriers == 1


def test_a_read_sees_what_was_applied_while_it_waited(bench) -> None:
    bench.node.held = []
    call = bench.begin(KV + "Range", pb.RangeRequest(key=b"k"))
    assert call.result is None
    (on_result,) = bench.node.held
    bench.node.held = None
    put(bench, b"k", b"late")
    on_result()
    assert call.result.kvs[0].value == b"late"


def test_nothing_is_said_to_a_caller_who_left(bench) -> None:
    bench.node.held = []
    call = bench.begin(KV + "Put", pb.PutRequest(key=b"k"))
    call.mark_gone()
    bench.node.held[0]()
    assert call.result is None
    assert bench.engine.revision == 2


def test_nested_transaction_headers_are_etcds(bench) -> None:
    inner = pb.TxnRequest(success=[pb.RequestOp(request_put=pb.PutRequest(key=b"b"))])
    request = pb.TxnRequest(
        compare=[pb.Compare(key=b"a", target=pb.Compare.VERSION, result=pb.Compare.EQUAL, version=0)],
        success=[
            pb.RequestOp(request_put=pb.PutRequest(key=b"a")),
            pb.RequestOp(request_range=pb.RangeRequest(key=b"a")),
            pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"zz")),
            pb.RequestOp(request_txn=inner),
        ],
    )
    answered = bench.call(KV + "Txn", request)
    assert answered.succeeded
    assert (answered.header.revision, answered.header.member_id) == (2, bench.member.member_id)
    first, second, third, fourth = answered.responses
    for header in (
        first.response_put.header,
        second.response_range.header,
        third.response_delete_range.header,
    ):
        assert (header.revision, header.cluster_id, header.member_id, header.raft_term) == (2, 0, 0, 0)
    assert second.response_range.kvs[0].key == b"a"
    nested = fourth.response_txn
    assert nested.HasField("header")
    assert nested.header == pb.ResponseHeader()
    assert nested.responses[0].response_put.header.revision == 2


@pytest.mark.parametrize(
    ("flags", "confirmations"), [([True, True], 0), ([True, False], 1), ([False], 1)], ids=str
)
def test_read_only_transactions_are_not_proposed(bench, flags, confirmations) -> None:
    put(bench, b"k")
    operations = [pb.RequestOp(request_range=pb.RangeRequest(key=b"k", serializable=flag)) for flag in flags]
    answered = bench.call(KV + "Txn", pb.TxnRequest(success=operations))
    assert answered.responses[0].response_range.count == 1
    assert (bench.node.index, bench.node.barriers) == (1, confirmations)


def test_compaction(bench) -> None:
    put(bench, b"k", b"1")
    put(bench, b"k", b"2")
    put(bench, b"k", b"3")
    assert bench.call(KV + "Compact", pb.CompactionRequest(revision=3)).header.revision == 4
    with pytest.raises(errors.Compacted):
        get(bench, b"k", revision=2)
    assert get(bench, b"k", revision=3).kvs[0].value == b"2"
    with pytest.raises(errors.FutureRevision):
        bench.call(KV + "Compact", pb.CompactionRequest(revision=99))


@pytest.mark.parametrize(
    ("name", "request_", "error"),
    [
        ("Range", pb.RangeRequest(), errors.EmptyKey),
        ("Range", pb.RangeRequest(key=b"k", revision=7), errors.FutureRevision),
        ("Put", pb.PutRequest(), errors.EmptyKey),
        ("Put", pb.PutRequest(key=b"k", value=b"v", ignore_value=True), errors.ValueProvided),
        ("Put", pb.PutRequest(key=b"k", lease=1, ignore_lease=True), errors.LeaseProvided),
        ("Put", pb.PutRequest(key=b"k", ignore_value=True), errors.KeyNotFound),
        ("Put", pb.PutRequest(key=b"k", lease=5), errors.LeaseNotFound),
        ("DeleteRange", pb.DeleteRangeRequest(), errors.EmptyKey),
        ("Txn", pb.TxnRequest(success=[pb.RequestOp()]), errors.KeyNotFound),
        (
            "Txn",
            pb.TxnRequest(success=[pb.RequestOp(request_put=pb.PutRequest(key=b"k"))] * 2),
            errors.DuplicateKey,
        ),
        (
            "Txn",
            pb.TxnRequest(success=[pb.RequestOp(request_range=pb.RangeRequest(key=b"k"))] * 129),
            errors.TooManyOps,
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_refusals(bench, name, request_, error) -> None:
    with pytest.raises(error):
        bench.call(KV + name, request_)
    assert bench.engine.revision == 1


def test_a_request_that_is_too_large_is_not_proposed(make_bench) -> None:
    bench = make_bench(request_bytes_max=1000)
    put(bench, b"k", b"x" * 900)
    with pytest.raises(errors.RequestTooLarge):
        put(bench, b"k", b"x" * 1000)
    assert bench.node.index == 1


@pytest.mark.parametrize(
    ("cause", "error", "text"),
    [
        (node_errors.NoLeader(), errors.NotAppliedInTime, "etcdserver: request timed out"),
        (node_errors.TooManyRequests(), errors.TooManyRequests, "etcdserver: too many requests"),
        (node_errors.NoSpace(), errors.NoSpace, "etcdserver: mvcc: database space exceeded"),
        (node_errors.NotApplied(), errors.NotAppliedInTime, "etcdserver: request timed out"),
        (node_errors.Stopped(), errors.ServerStopped, "etcdserver: server stopped"),
        (node_errors.RequestTimedOut(), errors.OutcomeUnknown, "etcdserver: request timed out"),
        (node_errors.OutcomeUnknown(), errors.OutcomeUnknown, "etcdserver: request timed out"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_the_nodes_errors_on_a_write(bench, cause, error, text) -> None:
    bench.node.error = cause
    with pytest.raises(error) as raised:
        put(bench, b"k")
    assert str(raised.value) == text
    assert isinstance(raised.value, errors.OutcomeUnknown) == isinstance(cause, node_errors.OutcomeUnknown)
    assert (bench.member.proposals_failed, bench.member.proposals_pending) == (1, 0)


def test_a_read_without_confirmation_fails_and_a_serializable_one_goes_on(bench) -> None:
    put(bench, b"k")
    bench.node.error = node_errors.ReadTimedOut()
    with pytest.raises(errors.ReadTimedOut):
        get(bench, b"k")
    assert get(bench, b"k", serializable=True).count == 1


def test_hasleader_is_refused_without_a_leader(bench) -> None:
    request = pb.RangeRequest(key=b"k", serializable=True)
    bench.node.leader = 0
    with pytest.raises(errors.NoLeader):
        bench.call(KV + "Range", request, {"hasleader": "true"})
    bench.call(KV + "Range", request)
    bench.node.leader = 5
    bench.call(KV + "Range", request, {"hasleader": "true"})


def test_every_method_can_be_asked_for_a_leader(bench) -> None:
    assert [path for path, row in bench.methods.items() if row.needs_leader is None] == []
    bench.node.leader = 0
    with pytest.raises(errors.NoLeader):
        bench.call("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(), {"hasleader": "true"})


def test_space_is_asked_for_before_anything_is_checked(make_bench) -> None:
    bench = make_bench(quota_bytes=100)
    with pytest.raises(errors.NoSpace):
        put(bench, b"")
    twice = [pb.RequestOp(request_put=pb.PutRequest(key=b"k"))] * 2
    with pytest.raises(errors.NoSpace):
        bench.call(KV + "Txn", pb.TxnRequest(success=twice))


def test_quota_raises_one_alarm_and_frees_after_disarming(make_bench) -> None:
    bench = make_bench(quota_bytes=4000)
    outcomes = [
        bench.begin(KV + "Put", pb.PutRequest(key=b"%d" % number, value=b"x" * 100)).result
        for number in range(100)
    ]
    assert 5 <= bench.engine.key_count <= 15
    assert sum(isinstance(outcome, errors.NoSpace) for outcome in outcomes) == 100 - bench.engine.key_count
    (alarm,) = bench.engine.alarms()
    assert alarm.member_id == bench.member.member_id
    with pytest.raises(errors.NoSpace):
        put(bench, b"k", b"")
    index = bench.node.index
    with pytest.raises(errors.NoSpace):
        put(bench, b"k", b"x" * 4000)
    assert bench.node.index == index, "a standing alarm is not raised again"
    bench.call(KV + "DeleteRange", pb.DeleteRangeRequest(key=b"0", range_end=b"\0"))
    bench.call(KV + "Compact", pb.CompactionRequest(revision=bench.engine.revision))
    with pytest.raises(errors.NoSpace):
        put(bench, b"k", b"")
    request = pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=alarm.member_id, alarm=pb.NOSPACE)
    bench.call("/etcdserverpb.Maintenance/Alarm", request)
    put(bench, b"k", b"")


def test_quota_counts_the_costlier_branch(make_bench) -> None:
    bench = make_bench(quota_bytes=1000)
    small = [pb.RequestOp(request_put=pb.PutRequest(key=b"a"))]
    large = [pb.RequestOp(request_put=pb.PutRequest(key=b"a", value=b"x" * 900))]
    with pytest.raises(errors.NoSpace):
        bench.call(KV + "Txn", pb.TxnRequest(success=small, failure=large))
    assert bench.engine.key_count == 0

"""Every form of every reply, as recorded from etcdctl 3.5."""

# ruff: noqa: E501  recorded lines are as long as they are

import pytest

from kvstore.cli.exit_codes import CommandError
from kvstore.cli.printers import EndpointHealth, EndpointStatus, printer
from kvstore.wire import kv_pb2, rpc_pb2

HEADER = rpc_pb2.ResponseHeader(
    cluster_id=12101053776118486841, member_id=15985099378392235387, revision=22, raft_term=2
)
INNER = rpc_pb2.ResponseHeader(revision=22)
BEFORE = kv_pb2.KeyValue(key=b"a", create_revision=11, mod_revision=21, version=10, value=b"5")
PAIR = kv_pb2.KeyValue(key=b"a", create_revision=11, mod_revision=22, version=11, value=b"5")
PUT = rpc_pb2.PutResponse(header=HEADER, prev_kv=BEFORE)
GET = rpc_pb2.RangeResponse(header=HEADER, kvs=[PAIR], more=True, count=3)
DELETE = rpc_pb2.DeleteRangeResponse(header=HEADER, deleted=1, prev_kvs=[BEFORE])
TXN = rpc_pb2.TxnResponse(
    header=HEADER,
    succeeded=True,
    responses=[
        rpc_pb2.ResponseOp(response_put=rpc_pb2.PutResponse(header=INNER)),
        rpc_pb2.ResponseOp(response_range=rpc_pb2.RangeResponse(header=INNER, kvs=[PAIR], count=1)),
        rpc_pb2.ResponseOp(response_delete_range=rpc_pb2.DeleteRangeResponse(header=INNER)),
    ],
)
ALARMS = rpc_pb2.AlarmResponse(
    header=HEADER, alarms=[rpc_pb2.AlarmMember(memberID=7, alarm=rpc_pb2.AlarmType.NOSPACE)]
)
MEMBERS = rpc_pb2.MemberListResponse(
    header=rpc_pb2.ResponseHeader(cluster_id=255, member_id=16, raft_term=17),
    members=[
        rpc_pb2.Member(
            ID=16, name="a", peerURLs=["http://127.0.0.1:1", "http://127.0.0.1:2"], clientURLs=["http://127.0.0.1:3"]
        ),
        rpc_pb2.Member(ID=17, peerURLs=["http://127.0.0.1:4"], isLearner=True),
    ],
)  # fmt: skip
STATUSES = [
    EndpointStatus(
        "127.0.0.1:12379",
        rpc_pb2.StatusResponse(
            header=HEADER,
            version="3.5.21",
            dbSize=24576,
            leader=HEADER.member_id,
            raftIndex=38,
            raftTerm=2,
            raftAppliedIndex=37,
            errors=["memberID:7 alarm:NOSPACE ", "another"],
            dbSizeInUse=20480,
        ),
    )
]
HEALTHS = [
    EndpointHealth("127.0.0.1:12379", True, "2.822788ms", ""),
    EndpointHealth("127.0.0.1:1", False, "301.540782ms", "context deadline exceeded"),
]

JSON_HEADER = '{"header":{"cluster_id":12101053776118486841,"member_id":15985099378392235387,"revision":22,"raft_term":2}'
FIELDS_HEADER = (
    '"ClusterID" : 12101053776118486841\n"MemberID" : 15985099378392235387\n"Revision" : 22\n"RaftTerm" : 2\n'
)
FIELDS_INNER = '"ClusterID" : 0\n"MemberID" : 0\n"Revision" : 22\n"RaftTerm" : 0\n'
FIELDS_PAIR = (
    '"Key" : "a"\n"CreateRevision" : 11\n"ModRevision" : 22\n"Version" : 11\n"Value" : "5"\n"Lease" : 0\n'
)
FIELDS_BEFORE = '"PrevKey" : "a"\n"PrevCreateRevision" : 11\n"PrevModRevision" : 21\n"PrevVersion" : 10\n"PrevValue" : "5"\n"PrevLease" : 0\n'

RECORDED = [
    ("simple", "put", PUT, "OK\na\n5\n"),
    ("json", "put", PUT, JSON_HEADER + ',"prev_kv":{"key":"YQ==","create_revision":11,"mod_revision":21,"version":10,"value":"NQ=="}}\n'),
    ("fields", "put", PUT, FIELDS_HEADER + FIELDS_BEFORE),
    ("simple", "get", GET, "a\n5\n"),
    ("json", "get", GET, JSON_HEADER + ',"kvs":[{"key":"YQ==","create_revision":11,"mod_revision":22,"version":11,"value":"NQ=="}],"more":true,"count":3}\n'),
    ("fields", "get", GET, FIELDS_HEADER + FIELDS_PAIR + '"More" : true\n"Count" : 3\n'),
    ("simple", "delete", DELETE, "1\na\n5\n"),
    ("json", "delete", DELETE, JSON_HEADER + ',"deleted":1,"prev_kvs":[{"key":"YQ==","create_revision":11,"mod_revision":21,"version":10,"value":"NQ=="}]}\n'),
    ("fields", "delete", DELETE, FIELDS_HEADER + '"Deleted" : 1\n' + FIELDS_BEFORE),
    ("simple", "txn", TXN, "SUCCESS\n\nOK\n\na\n5\n\n0\n"),
    ("json", "txn", TXN, JSON_HEADER + ',"succeeded":true,"responses":[{"Response":{"response_put":{"header":{"revision":22}}}},{"Response":{"response_range":{"header":{"revision":22},"kvs":[{"key":"YQ==","create_revision":11,"mod_revision":22,"version":11,"value":"NQ=="}],"count":1}}},{"Response":{"response_delete_range":{"header":{"revision":22}}}}]}\n'),
    ("fields", "txn", TXN, FIELDS_HEADER + '"Succeeded" : true\n' + FIELDS_INNER + FIELDS_INNER + FIELDS_PAIR + '"More" : false\n"Count" : 1\n' + FIELDS_INNER + '"Deleted" : 0\n'),
    ("simple", "alarms", ALARMS, "memberID:7 alarm:NOSPACE \n"),
    ("json", "alarms", ALARMS, JSON_HEADER + ',"alarms":[{"memberID":7,"alarm":1}]}\n'),
    ("fields", "alarms", ALARMS, FIELDS_HEADER + '"MemberID" : 7\n"AlarmType" : NOSPACE\n\n'),
    ("simple", "members", MEMBERS, "10, started, a, http://127.0.0.1:1,http://127.0.0.1:2, http://127.0.0.1:3, false\n11, unstarted, , http://127.0.0.1:4, , true\n"),
    ("json", "members", MEMBERS, '{"header":{"cluster_id":255,"member_id":16,"raft_term":17},"members":[{"ID":16,"name":"a","peerURLs":["http://127.0.0.1:1","http://127.0.0.1:2"],"clientURLs":["http://127.0.0.1:3"]},{"ID":17,"peerURLs":["http://127.0.0.1:4"],"isLearner":true}]}\n'),
    ("fields", "members", MEMBERS, '"ClusterID" : 255\n"MemberID" : 16\n"Revision" : 0\n"RaftTerm" : 17\n"ID" : 16\n"Name" : "a"\n"PeerURL" : "http://127.0.0.1:1"\n"PeerURL" : "http://127.0.0.1:2"\n"ClientURL" : "http://127.0.0.1:3"\n"IsLearner" : false\n\n"ID" : 17\n"Name" : ""\n"PeerURL" : "http://127.0.0.1:4"\n"IsLearner" : true\n\n'),
    ("table", "members", MEMBERS, """\
+----+-----------+------+---------------------------------------+--------------------+------------+
| ID |  STATUS   | NAME |              PEER ADDRS               |    CLIENT ADDRS    | IS LEARNER |
+----+-----------+------+---------------------------------------+--------------------+------------+
| 10 |   started |    a | http://127.0.0.1:1,http://127.0.0.1:2 | http://127.0.0.1:3 |      false |
| 11 | unstarted |      |                    http://127.0.0.1:4 |                    |       true |
+----+-----------+------+---------------------------------------+--------------------+------------+
"""),
    ("simple", "statuses", STATUSES, "127.0.0.1:12379, ddd67b312462fd7b, 3.5.21, 25 kB, true, false, 2, 38, 37, memberID:7 alarm:NOSPACE , another\n"),
    ("json", "statuses", STATUSES, '[{"Endpoint":"127.0.0.1:12379","Status":' + JSON_HEADER + ',"version":"3.5.21","dbSize":24576,"leader":15985099378392235387,"raftIndex":38,"raftTerm":2,"raftAppliedIndex":37,"errors":["memberID:7 alarm:NOSPACE ","another"],"dbSizeInUse":20480}}]\n'),
    ("fields", "statuses", STATUSES, FIELDS_HEADER + '"Version" : "3.5.21"\n"DBSize" : 24576\n"Leader" : 15985099378392235387\n"IsLearner" : false\n"RaftIndex" : 38\n"RaftTerm" : 2\n"RaftAppliedIndex" : 37\n"Errors" : [memberID:7 alarm:NOSPACE  another]\n"Endpoint" : "127.0.0.1:12379"\n\n'),
    ("table", "statuses", [], """\
+----------+----+---------+---------+-----------+------------+-----------+------------+--------------------+--------+
| ENDPOINT | ID | VERSION | DB SIZE | IS LEADER | IS LEARNER | RAFT TERM | RAFT INDEX | RAFT APPLIED INDEX | ERRORS |
+----------+----+---------+---------+-----------+------------+-----------+------------+--------------------+--------+
+----------+----+---------+---------+-----------+------------+-----------+------------+--------------------+--------+
"""),
    ("json", "statuses", [], "[]\n"),
    ("simple", "healths", HEALTHS, "127.0.0.1:12379 is healthy: successfully committed proposal: took = 2.822788ms\n"),
    ("json", "healths", HEALTHS, '[{"endpoint":"127.0.0.1:12379","health":true,"took":"2.822788ms"},{"endpoint":"127.0.0.1:1","health":false,"took":"301.540782ms","error":"context deadline exceeded"}]\n'),
    ("fields", "healths", HEALTHS[:1], '"Endpoint" : "127.0.0.1:12379"\n"Health" : true\n"Took" : 2.822788ms\n"Error" : \n\n'),
    ("table", "healths", HEALTHS, """\
+-----------------+--------+--------------+---------------------------+
|    ENDPOINT     | HEALTH |     TOOK     |           ERROR           |
+-----------------+--------+--------------+---------------------------+
| 127.0.0.1:12379 |   true |   2.822788ms |                           |
|     127.0.0.1:1 |  false | 301.540782ms | context deadline exceeded |
+-----------------+--------+--------------+---------------------------+
"""),
]  # fmt: skip


@pytest.mark.parametrize(("form", "what", "reply", "text"), RECORDED)
def test_a_reply_looks_as_recorded(form, what, reply, text, capsys):
    chosen = printer(form, in_hex=False)
    chosen.check(what)
    getattr(chosen, what)(reply)
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("what", ["put", "get", "delete", "txn", "alarms", "members"])
def test_protobuf_is_the_reply_itself(what, capsysbinary):
    reply = {"put": PUT, "get": GET, "delete": DELETE, "txn": TXN, "alarms": ALARMS, "members": MEMBERS}[what]
    getattr(printer("protobuf", in_hex=False), what)(reply)
    assert capsysbinary.readouterr().out == reply.SerializeToString()


@pytest.mark.parametrize(
    ("form", "what"), [("table", "put"), ("table", "txn"), ("table", "alarms"), ("protobuf", "healths")]
)
def test_a_form_that_cannot_show_a_reply_says_so(form, what):
    with pytest.raises(CommandError) as caught:
        printer(form, in_hex=False).check(what)
    assert (caught.value.code, caught.value.message) == (4, f"{form} not supported as output format")


def test_unhealthy_goes_to_the_error_stream(capsys):
    printer("simple", in_hex=False).healths(HEALTHS)
    assert capsys.readouterr().err == (
        "127.0.0.1:1 is unhealthy: failed to commit proposal: context deadline exceeded\n"
    )


def test_hexadecimal_is_for_simple_and_for_ids_of_members(capsys):
    printer("simple", in_hex=True).get(rpc_pb2.RangeResponse(kvs=[kv_pb2.KeyValue(key=b"a\xff", value=b"4")]))
    printer("json", in_hex=True).members(MEMBERS)
    assert capsys.readouterr().out == (
        "\\x61\\xff\n\\x34\n"
        '{"header":{"cluster_id":"ff","member_id":"10","raft_term":11},"members":['
        '{"ID":"10","name":"a","peerURLs":["http://127.0.0.1:1","http://127.0.0.1:2"],'
        '"clientURLS":["http://127.0.0.1:3"]},'
        '{"ID":"11","name":"","peerURLs":["http://127.0.0.1:4"],"clientURLS":null}]}\n'
    )


def test_json_escapes_as_go_does(capsys):
    printer("json", in_hex=False).members(
        rpc_pb2.MemberListResponse(members=[rpc_pb2.Member(name="<&>\u2028é\n")])
    )
    assert capsys.readouterr().out == ('{"members":[{"name":"\\u003c\\u0026\\u003e\\u2028é\\n"}]}\n')


def test_values_only(capsys):
    printer("simple", in_hex=False, values_only=True).get(GET)
    assert capsys.readouterr().out == "5\n"

"""RangeStream: its pieces put together are the answer of Range, and they are bounded."""

from __future__ import annotations

import pytest

from kvstore import errors
from kvstore.rpc.kv_service import CHUNK_BYTES
from kvstore.wire import rpc_pb2 as pb

KV = "/etcdserverpb.KV/"


def fill(bench, pairs: int, value_bytes: int) -> None:
    for number in range(pairs):
        request = pb.PutRequest(key=b"k%04d" % number, value=b"v" * value_bytes)
        bench.call(KV + "Put", request)


def stream(bench, **options):
    """What came over a call that ended well."""
    call = bench.begin(KV + "RangeStream", pb.RangeRequest(**options))
    assert call.result is None, call.result
    assert call.finished
    return [pb.RangeStreamResponse.FromString(piece) for piece in call.sent]


@pytest.mark.parametrize(
    "options",
    [
        {"key": b"k0001"},
        {"key": b"none"},
        {"key": b"\0", "range_end": b"\0"},
        {"key": b"\0", "range_end": b"\0", "limit": 7},
        {"key": b"\0", "range_end": b"\0", "revision": 5, "serializable": True},
        {"key": b"\0", "range_end": b"\0", "count_only": True},
        {"key": b"\0", "range_end": b"\0", "keys_only": True, "sort_order": 2, "limit": 3},
        {"key": b"\0", "range_end": b"\0", "min_mod_revision": 4, "sort_target": 3, "sort_order": 2},
    ],
    ids=str,
)
def test_the_pieces_make_the_answer_of_range(bench, options) -> None:
    fill(bench, 10, CHUNK_BYTES // 3)
    pieces = stream(bench, **options)
    merged = pb.RangeResponse()
    for piece in pieces:
        merged.MergeFrom(piece.range_response)
        assert piece.ByteSize() < 2 * CHUNK_BYTES
    assert merged == bench.call(KV + "Range", pb.RangeRequest(**options))
    assert all(piece.range_response.kvs for piece in pieces[:-1])
    assert not any(piece.range_response.HasField("header") for piece in pieces[:-1])


def test_large_answers_come_in_several_pieces_after_one_confirmation(bench) -> None:
    fill(bench, 10, CHUNK_BYTES // 3)
    assert [len(one.range_response.kvs) for one in stream(bench, key=b"\0", range_end=b"\0")] == [3, 3, 3, 1]
    assert bench.node.barriers == 1
    stream(bench, key=b"\0", range_end=b"\0", serializable=True)
    assert bench.node.barriers == 1


def test_refusals(bench) -> None:
    with pytest.raises(errors.EmptyKey):
        bench.call(KV + "RangeStream", pb.RangeRequest())
    with pytest.raises(errors.FutureRevision):
        bench.call(KV + "RangeStream", pb.RangeRequest(key=b"k", revision=9))


def test_a_caller_that_does_not_read_is_waited_for(bench) -> None:
    fill(bench, 10, CHUNK_BYTES // 3)
    bench.node.held = []
    call = bench.begin(KV + "RangeStream", pb.RangeRequest(key=b"\0", range_end=b"\0"))
    call.has_space = False
    bench.node.held[0]()
    assert (len(call.sent), call.finished) == (0, False)
    call.drain()
    assert (len(call.sent), call.finished) == (4, True)

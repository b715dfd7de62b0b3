"""Checksums, Defragment and Downgrade."""

from __future__ import annotations

import asyncio

import pytest

from kvstore import errors
from kvstore.engine.hashing import KEYS_PER_SLICE
from kvstore.wire import rpc_pb2 as pb

MAINTENANCE = "/etcdserverpb.Maintenance/"


def put(bench, key: bytes, value: bytes = b"v") -> None:
    bench.call("/etcdserverpb.KV/Put", pb.PutRequest(key=key, value=value))


async def late(bench, name: str, request):
    call = bench.begin(MAINTENANCE + name, request)
    async with asyncio.timeout(5):
        while call.result is None:  # noqa: ASYNC110  a call has no event
            await asyncio.sleep(0)
    if isinstance(call.result, errors.KVError):
        raise call.result
    return call.result


@pytest.mark.asyncio
async def test_hash_kv_names_its_revision_and_differs_with_the_data(bench) -> None:
    put(bench, b"a", b"1")
    first = await late(bench, "HashKV", pb.HashKVRequest())
    assert (first.header.revision, first.hash_revision, first.compact_revision) == (2, 2, -1)
    put(bench, b"a", b"2")
    second = await late(bench, "HashKV", pb.HashKVRequest())
    assert second.hash != first.hash
    past = await late(bench, "HashKV", pb.HashKVRequest(revision=2))
    assert (past.hash, past.hash_revision, past.header.revision) == (first.hash, 2, 3)
    assert (await late(bench, "Hash", pb.HashRequest())).hash == second.hash
    with pytest.raises(errors.FutureRevision):
        await late(bench, "HashKV", pb.HashKVRequest(revision=9))
    bench.call("/etcdserverpb.KV/Compact", pb.CompactionRequest(revision=3))
    with pytest.raises(errors.Compacted):
        await late(bench, "HashKV", pb.HashKVRequest(revision=2))
    compacted = await late(bench, "HashKV", pb.HashKVRequest())
    assert compacted.compact_revision == 3


@pytest.mark.asyncio
async def test_a_long_checksum_lets_writes_through_and_does_not_count_them(bench) -> None:
    for number in range(3 * KEYS_PER_SLICE):
        put(bench, b"%06d" % number)
    expected = bench.engine.hash_kv()
    call = bench.begin(MAINTENANCE + "HashKV", pb.HashKVRequest())
    writes = 0
    while call.result is None:
        put(bench, b"%06d" % writes, b"later")
        bench.call("/etcdserverpb.KV/DeleteRange", pb.DeleteRangeRequest(key=b"%06d" % (1000 - writes)))
        put(bench, b"000000%d" % writes)
        writes += 1
        await asyncio.sleep(0)
    assert writes >= 3
    assert call.result.hash == expected
    assert bench.engine.hash_kv() != expected


@pytest.mark.asyncio
async def test_a_checksum_that_compaction_passes(bench) -> None:
    for number in range(2 * KEYS_PER_SLICE):
        put(bench, b"%06d" % number)
    put(bench, b"000000")
    now, past = (
        bench.begin(MAINTENANCE + "HashKV", pb.HashKVRequest(revision=revision))
        for revision in (bench.engine.revision, 3)
    )
    assert (now.result, past.result) == (None, None)
    bench.call("/etcdserverpb.KV/Compact", pb.CompactionRequest(revision=bench.engine.revision))
    while now.result is None or past.result is None:  # noqa: ASYNC110  a call has no event
        await asyncio.sleep(0)
    assert now.result.hash == bench.engine.hash_kv()
    assert isinstance(past.result, errors.Compacted)


@pytest.mark.asyncio
async def test_a_checksum_stops_when_its_caller_leaves(bench) -> None:
    for number in range(2 * KEYS_PER_SLICE):
        put(bench, b"%06d" % number)
    call = bench.begin(MAINTENANCE + "HashKV", pb.HashKVRequest())
    call.mark_gone()
    for _ in range(10):
        await asyncio.sleep(0)
    assert call.result is None


def test_defragment_succeeds(bench) -> None:
    assert bench.call(MAINTENANCE + "Defragment", pb.DefragmentRequest()) == pb.DefragmentResponse()


@pytest.mark.parametrize(
    ("action", "version", "error"),
    [
        (pb.DowngradeRequest.VALIDATE, "3.4", errors.InvalidDowngradeTarget),
        (pb.DowngradeRequest.VALIDATE, "3.4.0", errors.InvalidDowngradeTarget),
        (pb.DowngradeRequest.ENABLE, "3.4", errors.InvalidDowngradeTarget),
        (pb.DowngradeRequest.VALIDATE, "x", errors.WrongVersionFormat),
        (pb.DowngradeRequest.ENABLE, "", errors.WrongVersionFormat),
        (pb.DowngradeRequest.CANCEL, "", errors.NoDowngrade),
    ],
)
def test_there_is_no_way_back(bench, action, version, error) -> None:
    with pytest.raises(error):
        bench.call(MAINTENANCE + "Downgrade", pb.DowngradeRequest(action=action, version=version))

"""Giving back what a compaction freed, step by step, beside everything else."""

from __future__ import annotations

import pytest

from kvstore.engine import engine as engine_module
from kvstore.wire import rpc_pb2 as pb


async def fill(member, records: int) -> int:
    """Overwrite some keys until so many records are history; the newest revision."""
    operation = pb.RequestOp(request_put=pb.PutRequest(value=b"v"))
    revision = 0
    for _ in range(records // 100):
        txn = pb.TxnRequest(success=[operation] * 100)
        for number, one in enumerate(txn.success):
            one.request_put.key = b"%d" % number
        revision = (await member.call("KV/Txn", txn)).header.revision
    return revision


@pytest.fixture
def small_steps(monkeypatch) -> None:
    monkeypatch.setattr(engine_module, "SWEEP_PER_STEP", 50)
    monkeypatch.setattr(engine_module, "SWEEP_PER_BATCH", 1)
    monkeypatch.setattr(engine_module, "SWEEP_PER_CHANGE", 0)


@pytest.mark.asyncio
async def test_a_physical_compaction_answers_when_all_is_dropped(members, small_steps) -> None:
    cluster = await members.start(3)
    revision = await fill(cluster[0], 1000)
    engines = [member.handle.node._machine for member in cluster]
    request = pb.CompactionRequest(revision=revision, physical=True)
    before = cluster[1].handle.status().applied
    await cluster[1].call("KV/Compact", request)
    engine = engines[1]
    assert engine.logical_bytes == engine.logical_bytes_in_use
    assert cluster[1].handle.status().applied - before >= 900 // 51


@pytest.mark.asyncio
async def test_without_being_asked_it_is_left_to_later_commands(members, small_steps, until) -> None:
    (only,) = await members.start(1)
    revision = await fill(only, 1000)
    engine = only.handle.node._machine
    await only.call("KV/Compact", pb.CompactionRequest(revision=revision))
    assert engine.logical_bytes > 2 * engine.logical_bytes_in_use
    alarm = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, alarm=pb.NOSPACE)
    await only.call("Maintenance/Alarm", alarm)
    await only.call("KV/DeleteRange", pb.DeleteRangeRequest(key=b"1"))
    await only.call("KV/Compact", pb.CompactionRequest(revision=revision + 1))  # no member may write now
    await until(lambda: engine.logical_bytes < 1.1 * engine.logical_bytes_in_use)

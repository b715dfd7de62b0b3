"""Locks and elections on three real members: contenders on each, a killed leader among them."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from kvstore.wire import rpc_pb2, v3election_pb2, v3lock_pb2


async def lease_of(member, ttl: int = 60) -> int:
    return (await member.call("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=ttl))).ID


async def lock(member, lease: int, **options):
    return await member.call_any(
        "v3lockpb.Lock/Lock",
        v3lock_pb2.LockRequest(name=b"l", lease=lease),
        v3lock_pb2.LockResponse,
        **options,
    )


async def unlock(member, key: bytes) -> None:
    await member.call_any(
        "v3lockpb.Lock/Unlock", v3lock_pb2.UnlockRequest(key=key), v3lock_pb2.UnlockResponse
    )


@pytest.mark.asyncio
async def test_sixteen_contenders_on_three_members_hold_one_at_a_time_and_in_order(members) -> None:
    cluster = await members.start(3)
    holders = 0
    order: list[int] = []

    async def contend(number: int) -> None:
        nonlocal holders
        member = cluster[number % 3]
        lease = await lease_of(member)
        for _ in range(4):
            held = await lock(member, lease, deadline=60)
            holders += 1
            assert holders == 1, "two hold the lock"
            read = await cluster[(number + 1) % 3].call("KV/Range", rpc_pb2.RangeRequest(key=held.key))
            order.append(read.kvs[0].create_revision)
            assert holders == 1
            holders -= 1
            await unlock(member, held.key)

    await asyncio.gather(*(contend(number) for number in range(16)))
    assert len(order) == 64
    assert order == sorted(order), "first come, first served"


@pytest.mark.asyncio
async def test_a_waiter_gets_the_lock_when_the_holders_lease_ends_and_survives_a_new_leader(members) -> None:
    cluster = await members.start(3)
    first = next(member for member in cluster if member.handle.node.is_leader)
    others = [member for member in cluster if member is not first]
    held = await lock(others[0], await lease_of(others[0], 1))
    lease = await lease_of(others[1])
    waiting = asyncio.create_task(lock(others[1], lease, deadline=60))
    async with asyncio.timeout(20):
        while await others[1].get(b"l/%x" % lease) is None:  # noqa: ASYNC110  polled like by a client
            await asyncio.sleep(0.01)
    await first.stop()
    got = await waiting
    assert got.key != held.key
    assert await others[0].get(held.key) is None


@pytest.mark.asyncio
async def test_a_deadline_takes_the_waiter_out_of_the_queue(members, until) -> None:
    (member,) = await members.start(1)
    held = await lock(member, await lease_of(member))
    lease = await lease_of(member)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await lock(member, lease, deadline=0.3)
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: member.handle.node.status().waiting_operations == 0)
    async with asyncio.timeout(10):
        while await member.get(b"l/%x" % lease) is not None:  # noqa: ASYNC110  polled like by a client
            await asyncio.sleep(0.01)
    assert await member.get(held.key) is not None


@pytest.mark.asyncio
async def test_an_election_is_observed_on_another_member(members) -> None:
    cluster = await members.start(3)
    observing = cluster[2].stream_any(
        "v3electionpb.Election/Observe",
        v3election_pb2.LeaderRequest(name=b"e"),
        v3election_pb2.LeaderResponse,
    )
    for number, member in enumerate(cluster):
        request = v3election_pb2.CampaignRequest(
            name=b"e", lease=await lease_of(member), value=b"%d" % number
        )
        won = await member.call_any(
            "v3electionpb.Election/Campaign", request, v3election_pb2.CampaignResponse
        )
        told = await observing.read()
        assert (told.kv.key, told.kv.value) == (won.leader.key, b"%d" % number)
        await member.call_any(
            "v3electionpb.Election/Resign",
            v3election_pb2.ResignRequest(leader=won.leader),
            v3election_pb2.ResignResponse,
        )
    observing.cancel()

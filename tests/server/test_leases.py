"""Leases on three real members: any of them is asked, the leader counts, a dead one prolongs."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from kvstore.wire import rpc_pb2 as pb


async def grant(member, ttl: int, lease: int = 0) -> int:
    reply = await member.call("Lease/LeaseGrant", pb.LeaseGrantRequest(TTL=ttl, ID=lease))
    return reply.ID


async def keep_alive(member, *leases: int) -> list[int]:
    """The TTLs in the answers to one keep-alive of each, on one stream."""
    call = member.both_ways("Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest)
    for lease in leases:
        await call.write(pb.LeaseKeepAliveRequest(ID=lease))
    await call.done_writing()
    return [reply.TTL async for reply in call]


async def time_left(member, lease: int, **options):
    return await member.call("Lease/LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=lease, **options))


async def gone(member, key: bytes, seconds: float) -> float:
    """When the key was seen to be gone, in seconds from now."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(seconds):
        while await member.get(key) is not None:  # noqa: ASYNC110  the member is polled like by a client
            await asyncio.sleep(0.05)
    return loop.time() - began


@pytest.mark.asyncio
async def test_every_member_grants_keeps_alive_looks_up_and_revokes(members) -> None:
    cluster = await members.start(3)
    for number, member in enumerate(cluster):
        key, other = b"k%d" % number, cluster[(number + 1) % 3]
        lease = await grant(member, 30)
        await other.put(key, lease=lease)
        assert await keep_alive(other, lease, lease + 1, lease) == [30, 0, 30]
        left = await time_left(member, lease, keys=True)
        assert (left.grantedTTL, list(left.keys)) == (30, [key])
        assert 20 <= left.TTL <= 30
        assert (await time_left(other, lease + 1)).TTL == -1
        await other.call("Lease/LeaseRevoke", pb.LeaseRevokeRequest(ID=lease))
        assert await member.get(key) is None
        assert await keep_alive(member, lease) == [0]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await member.put(b"x", lease=lease)
        assert refused.value.details() == "etcdserver: requested lease not found"
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.asyncio
async def test_a_lease_ends_by_itself_unless_it_is_kept_alive(members) -> None:
    cluster = await members.start(3)
    lease, kept_alive = await grant(cluster[0], 1), await grant(cluster[0], 1)
    await cluster[1].put(b"left", lease=lease)
    await cluster[1].put(b"kept", lease=kept_alive)

    async def keep_it_alive() -> None:
        while True:
            assert await keep_alive(cluster[2], kept_alive) == [1]
            await asyncio.sleep(0.3)

    keeping_alive = asyncio.create_task(keep_it_alive())
    assert await gone(cluster[2], b"left", 20) > 0.5
    assert await cluster[2].get(b"kept") is not None
    keeping_alive.cancel()
    await asyncio.wait([keeping_alive])
    assert keeping_alive.cancelled(), keeping_alive.exception()
    await gone(cluster[0], b"kept", 20)


@pytest.mark.asyncio
async def test_a_new_leader_gives_the_full_time_again(members) -> None:
    cluster = await members.start(3)
    first = next(member for member in cluster if member.handle.node.is_leader)
    others = [member for member in cluster if member is not first]
    lease = await grant(first, 3)
    await first.put(b"k", lease=lease)
    loop = asyncio.get_running_loop()
    await first.stop()
    async with asyncio.timeout(20):
        while not any(member.handle.node.is_leader for member in others):  # noqa: ASYNC110  no event
            await asyncio.sleep(0.01)
    elected = loop.time()
    await gone(others[0], b"k", 30)
    assert loop.time() - elected > 2.9

"""Watches of real members over real gRPC: callers that do not read, lost leaders, members that stop."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from dataclasses import replace

import grpc
import grpc.aio
import pytest

from kvstore.client import Connection, Watching, parse_endpoints
from kvstore.devcluster.plan import free_ports
from kvstore.watch.watch_hub import WATCHER_PENDING_BYTES_MAX
from kvstore.wire import rpc_pb2 as pb

VALUE = bytes(8192)
PUTS = 1500
TOGETHER = 50


async def watch(member, metadata=(), **fields):
    """A stream with one watcher, which stands."""
    stream = member.both_ways("Watch/Watch", pb.WatchRequest, deadline=120, metadata=metadata)
    await stream.write(pb.WatchRequest(create_request=pb.WatchCreateRequest(**fields)))
    assert (await stream.read()).created
    return stream


async def metric(member, name: str) -> int:
    def scrape() -> str:
        url = f"{member.handle.metrics_urls[0]}/metrics"
        with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310  loopback, chosen by us
            return reply.read().decode()

    found = re.search(rf"^{name} (\S+)$", await asyncio.to_thread(scrape), re.MULTILINE)
    assert found is not None
    return int(float(found.group(1)))


@pytest.mark.asyncio
async def test_one_who_never_reads_costs_its_bound_and_can_catch_up(members) -> None:
    # Timers so long that a slow disk is no reason to stop leading.
    (member,) = await members.start(1, heartbeat_interval=100, election_timeout=2000)
    stream = await watch(member, key=b"k", prev_kv=True)
    for _ in range(PUTS // TOGETHER):
        await asyncio.gather(*(member.put(b"k", VALUE) for _ in range(TOGETHER)))
        assert await metric(member, "kvstore_watch_pending_bytes") <= WATCHER_PENDING_BYTES_MAX
    slow = "etcd_debugging_mvcc_slow_watcher_total"
    assert await metric(member, slow) == 1, "it got everything: the test shows nothing"
    told: list[int] = []
    async with asyncio.timeout(60):
        while len(told) < PUTS:
            told += [event.kv.mod_revision for event in (await stream.read()).events]
    assert told == list(range(2, PUTS + 2))
    assert await metric(member, slow) == 0
    stream.cancel()


@pytest.mark.asyncio
async def test_progress_by_the_configured_interval(members) -> None:
    (member,) = await members.start(1, watch_progress_notify_interval="100ms")
    stream = await watch(member, key=b"k", progress_notify=True)
    await member.put(b"other")
    async with asyncio.timeout(10):
        while (await stream.read()).header.revision < 2:
            pass
    stream.cancel()


@pytest.mark.asyncio
async def test_a_watch_that_asked_for_a_leader_ends_without_one(members) -> None:
    three = await members.start(3)
    lonely, *others = three
    stream = await watch(lonely, (("hasleader", "true"),), key=b"k")
    patient = await watch(lonely, key=b"k")
    for other in others:
        await other.stop()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async with asyncio.timeout(15):
            await stream.read()
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert raised.value.details() == "etcdserver: no leader"
    await others[0].start()
    await others[0].ready()
    await lonely.put(b"k")
    async with asyncio.timeout(15):
        assert (await patient.read()).events[0].kv.key == b"k"
    patient.cancel()


@pytest.mark.asyncio
async def test_a_watch_goes_on_while_each_member_restarts(members) -> None:
    three = members.plan(3)
    for member, port in zip(three, free_ports(3), strict=True):  # found again after a restart
        member.config = replace(member.config, listen_client_urls=f"http://127.0.0.1:{port}")
    await asyncio.gather(*(member.start() for member in three))
    await asyncio.gather(*(member.ready() for member in three))
    endpoints = ",".join(member.handle.client_urls[0] for member in three)
    request = pb.WatchCreateRequest(key=b"k")
    told: list[int] = []

    async def follow() -> None:
        connection = Connection(parse_endpoints(endpoints), timeout_s=10)
        async with connection, Watching(connection, request) as watching:
            async for response in watching:
                told.extend(event.kv.mod_revision for event in response.events)

    following = asyncio.create_task(follow())
    written = 0
    try:
        for victim in (None, *three):
            if victim is not None:
                await victim.stop()
            for member in three:
                if member is not victim:
                    await member.put(b"k")
                    written += 1
            if victim is not None:
                await victim.start()
                await victim.ready()
        async with asyncio.timeout(30):
            while not told or told[-1] < written + 1:  # noqa: ASYNC110  what is waited for has no event
                await asyncio.sleep(0.01)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    # The first put may have come before the watch began; from then on nothing is missing.
    assert told == list(range(told[0], written + 2))
    assert told[0] <= 4


@pytest.mark.asyncio
async def test_a_member_that_stops_says_so_to_those_who_watch(members) -> None:
    (member,) = await members.start(1)
    stream = await watch(member, key=b"k")
    await member.stop_serving()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stream.read()
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE

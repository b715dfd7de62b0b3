"""A member without a majority refuses what needs one, serves what does not, and catches up afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest

from bench import clusters, rpc
from bench.proxy import Proxies
from kvstore.wire import rpc_pb2

REFUSAL_SECONDS_MAX = 7.0  # etcd's request timeout: 5 s and two election timeouts
MARGIN_SECONDS = 0.5  # for the way there and back on a busy machine
CATCH_UP_SECONDS_MAX = 15.0
TEXTS = (
    "etcdserver: request timed out",
    "etcdserver: no leader",
    "etcdserver: leader changed",
)  # each may go on with ", possibly due to ..."


@pytest.fixture
def network(tmp_path: Path) -> Iterator[tuple[clusters.Cluster, Proxies]]:
    cluster = clusters.ours(tmp_path)
    with Proxies(cluster) as proxies, cluster:
        yield cluster, proxies


async def refusal(call: object) -> tuple[str, float]:
    """The text of a refusal and the seconds it took, without a client's deadline."""
    began = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, 3 * REFUSAL_SECONDS_MAX)  # type: ignore[arg-type]  # an awaitable call
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, caught.value
    return caught.value.details() or "", time.monotonic() - began


async def put_until_done(store: rpc.Store, key: bytes, value: bytes) -> None:
    deadline = time.monotonic() + CATCH_UP_SECONDS_MAX
    while True:
        try:
            await store.put(rpc_pb2.PutRequest(key=key, value=value), timeout=1)
        except grpc.aio.AioRpcError as error:
            if time.monotonic() > deadline:
                pytest.fail(f"no leader was elected: {error.details()}")
        else:
            return


async def check(cluster: clusters.Cluster, proxies: Proxies, index: int) -> None:
    alone, other = rpc.Store(cluster.endpoints[index]), rpc.Store(cluster.endpoints[(index + 1) % 3])
    async with alone, other:
        await alone.put(rpc_pb2.PutRequest(key=b"a", value=b"1"), timeout=10)
        proxies.isolate(index)
        put = rpc_pb2.PutRequest(key=b"lost", value=b"1")
        refusals = await asyncio.gather(
            refusal(alone.put(put)),
            refusal(alone.range(rpc_pb2.RangeRequest(key=b"a"))),
            put_until_done(other, b"a", b"2"),  # the majority goes on meanwhile
        )
        refusals += await asyncio.gather(  # and again, now that it knows that it is alone
            refusal(alone.put(put)), refusal(alone.range(rpc_pb2.RangeRequest(key=b"a")))
        )
        for text, seconds in (one for one in refusals if one is not None):
            assert text.startswith(TEXTS), text
            assert seconds < REFUSAL_SECONDS_MAX + MARGIN_SECONDS
        local = rpc_pb2.RangeRequest(key=b"a", serializable=True)
        assert (await alone.range(local, timeout=2)).kvs[0].value == b"1"
        proxies.heal()
        deadline = time.monotonic() + CATCH_UP_SECONDS_MAX
        while (await alone.range(local, timeout=5)).kvs[0].value != b"2":
            assert time.monotonic() < deadline, "did not catch up"
            await asyncio.to_thread(clusters.pause)
        await asyncio.to_thread(cluster.wait_ready)
        reply = await alone.range(rpc_pb2.RangeRequest(key=b"a"), timeout=10)
        assert reply.kvs[0].value == b"2"
        await alone.put(rpc_pb2.PutRequest(key=b"a", value=b"3"), timeout=10)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("role", ["follower", "leader"])
def test_an_isolated_member(network: tuple[clusters.Cluster, Proxies], role: str) -> None:
    cluster, proxies = network
    leader = cluster.members.index(cluster.leader())
    asyncio.run(check(cluster, proxies, leader if role == "leader" else (leader + 1) % 3))

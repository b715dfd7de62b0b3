"""What code may rely on of a connection: each scenario runs over gRPC to a real member, and in simulation.

So the simulated connection is held to what the real one does, not to what its author believed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import kvstore
from kvstore.client import (
    CAMPAIGN,
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    LEASE_REVOKE,
    LOCK,
    PUT,
    RANGE,
    RESIGN,
    SNAPSHOT,
    UNLOCK,
    WATCH,
    Connection,
    Method,
    Session,
    StreamCaller,
    TimedOut,
    Watching,
    keep_alives,
    observe,
    parse_endpoints,
    wait_for,
)
from kvstore.devcluster.plan import free_ports
from kvstore.errors import Code, EmptyKey, KVError, LeaseNotFound, OutcomeUnknown
from kvstore.testing import SimulatedCluster, SimulatedConnection, SimulatedEngine, run_virtual
from kvstore.wire import rpc_pb2, v3election_pb2, v3lock_pb2

Connected = Connection | SimulatedConnection

Scenario = Callable[[Connected], Awaitable[None]]
TIMEOUT_S = 1.0


async def over_grpc(scenario: Scenario, directory: Path) -> None:
    (port,) = free_ports(1)
    config = kvstore.Config(
        name="a",
        data_dir=str(directory / "a"),
        listen_peer_urls=f"http://127.0.0.1:{port}",
        initial_cluster=f"a=http://127.0.0.1:{port}",
        listen_client_urls="http://127.0.0.1:0",
    )
    async with kvstore.serve(config) as member:
        await member.wait_ready()
        endpoints = parse_endpoints(member.client_urls[0])
        async with Connection(endpoints, timeout_s=TIMEOUT_S) as store, asyncio.timeout(60):
            await scenario(store)


async def in_memory(scenario: Scenario) -> None:
    cluster = SimulatedCluster(seed=1, size=1, machine=SimulatedEngine)
    await cluster.start_all()
    await cluster.wait_for_leader()
    async with cluster.connect(timeout_s=TIMEOUT_S) as store, asyncio.timeout(60):
        await scenario(store)
    await cluster.stop_all()


async def put(store: StreamCaller, key: bytes, value: bytes = b"v") -> int:
    return (await store.call(PUT, rpc_pb2.PutRequest(key=key, value=value))).header.revision


async def grant(store: StreamCaller) -> int:
    return (await store.call(LEASE_GRANT, rpc_pb2.LeaseGrantRequest(TTL=60))).ID


async def waiting_for_lock(store: StreamCaller) -> tuple[bytes, v3lock_pb2.LockRequest]:
    """The key of a holder, and the request of another that waits behind it."""
    first, second = await grant(store), await grant(store)
    held = await store.call(LOCK, v3lock_pb2.LockRequest(name=b"l", lease=first))
    return held.key, v3lock_pb2.LockRequest(name=b"l", lease=second)


async def entries(store: StreamCaller, count: int) -> None:
    """Wait until the queue of the lock has so many entries."""
    request = rpc_pb2.RangeRequest(key=b"l/", range_end=b"l0", count_only=True)
    while (await store.call(RANGE, request)).count != count:  # noqa: ASYNC110  what it waits for has no event
        await asyncio.sleep(0.01)


# --- scenarios ---


async def a_stream_of_replies_ends_with_none(store: Connected) -> None:
    await put(store, b"k", bytes(1000))
    pieces = await store.open(SNAPSHOT, rpc_pb2.SnapshotRequest())
    received = 0
    while (piece := await pieces.read()) is not None:
        received += len(piece.blob)
    assert received > 1000
    assert await pieces.read() is None
    pieces.cancel()
    assert await pieces.read() is None


async def a_unary_method_can_be_opened(store: Connected) -> None:
    await put(store, b"k")
    call = await store.open(RANGE, rpc_pb2.RangeRequest(key=b"k"))
    assert [kv.value for kv in (await call.read()).kvs] == [b"v"]
    assert await call.read() is None


async def refusals_have_their_type_and_code(store: Connected) -> None:
    with pytest.raises(EmptyKey) as refused:
        await store.call(PUT, rpc_pb2.PutRequest())
    assert refused.value.code is Code.INVALID_ARGUMENT
    call = await store.open(PUT, rpc_pb2.PutRequest(key=b"k", lease=77))
    for _ in range(2):
        with pytest.raises(LeaseNotFound):
            await call.read()


async def a_method_that_is_not_served_is_unimplemented(store: Connected) -> None:
    unknown = Method("/etcdserverpb.KV/Guess", rpc_pb2.RangeRequest, rpc_pb2.RangeResponse, changes=False)
    text = r"^unknown method Guess for service etcdserverpb\.KV$"
    with pytest.raises(KVError, match=text) as refused:
        await store.call(unknown, rpc_pb2.RangeRequest())
    assert refused.value.code is Code.UNIMPLEMENTED
    stream = await store.open(unknown)
    with pytest.raises(KVError, match=text):
        await stream.read()
    await stream.write(rpc_pb2.RangeRequest())  # the call has ended: nothing happens
    with pytest.raises(KVError, match=text):
        await stream.read()


async def a_cancelled_call_is_withdrawn_at_the_server(store: Connected) -> None:
    _, request = await waiting_for_lock(store)
    call = await store.open(LOCK, request)
    reading = asyncio.ensure_future(call.read())
    await entries(store, 2)
    call.cancel()
    await asyncio.wait([reading])
    assert reading.cancelled()
    with pytest.raises(asyncio.CancelledError):
        await call.read()
    await entries(store, 1)


async def a_read_that_is_cancelled_cancels_the_call(store: Connected) -> None:
    _, request = await waiting_for_lock(store)
    call = await store.open(LOCK, request)
    reading = asyncio.ensure_future(call.read())
    await entries(store, 2)
    reading.cancel()
    await asyncio.wait([reading])
    await entries(store, 1)
    with pytest.raises(asyncio.CancelledError):
        await call.read()


async def a_call_that_is_not_answered_in_time_has_an_unknown_outcome(store: Connected) -> None:
    _, request = await waiting_for_lock(store)
    with pytest.raises(OutcomeUnknown, match=r"^context deadline exceeded$") as late:
        await store.call(LOCK, request)
    assert late.value.code is Code.DEADLINE_EXCEEDED
    await entries(store, 1)


async def the_end_of_a_connection_ends_its_calls(store: Connected) -> None:
    stream = await store.open(WATCH)
    await stream.write(rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"k")))
    assert (await stream.read()).created
    reading = asyncio.ensure_future(stream.read())
    await asyncio.sleep(0.1)
    await store.close()
    await asyncio.wait([reading])
    assert reading.cancelled()
    with pytest.raises(TimedOut):
        await store.call(RANGE, rpc_pb2.RangeRequest(key=b"k"))
    with pytest.raises(TimedOut):
        await store.open(WATCH, deadline=asyncio.get_running_loop().time() + 0.1)


async def a_watch_goes_on_from_where_it_was(store: Connected) -> None:
    first = await put(store, b"k", b"0")
    async with Watching(store, rpc_pb2.WatchCreateRequest(key=b"k", start_revision=first)) as watching:
        for number in range(1, 4):
            await put(store, b"k", b"%d" % number)
        values: list[bytes] = []
        while len(values) < 4:
            values += [event.kv.value for event in (await anext(watching)).events]
        assert values == [b"0", b"1", b"2", b"3"]
        await watching.request_progress()
        progress = await anext(watching)
        assert (progress.events[:], progress.header.revision) == ([], first + 3)


async def a_watch_can_be_cancelled_on_its_stream(store: Connected) -> None:
    stream = await store.open(WATCH)
    for number in (1, 2):
        create = rpc_pb2.WatchCreateRequest(key=b"k", watch_id=number)
        await stream.write(rpc_pb2.WatchRequest(create_request=create))
        assert (await stream.read()).created
    await stream.write(rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=1)))
    ended = await stream.read()
    assert (ended.watch_id, ended.canceled) == (1, True)
    await put(store, b"k")
    response = await stream.read()
    assert (response.watch_id, [event.kv.value for event in response.events]) == (2, [b"v"])
    stream.cancel()


async def keep_alives_are_answered_in_order(store: Connected) -> None:
    lease = await grant(store)
    stream = await store.open(LEASE_KEEP_ALIVE)
    for number in range(100):
        await stream.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease + number % 2))
    ttls = [(await stream.read()).TTL for _ in range(100)]
    assert ttls == [60, 0] * 50
    stream.cancel()
    assert [reply.TTL async for reply in keep_alives(store, lease, once=True)] == [60]
    await store.call(LEASE_REVOKE, rpc_pb2.LeaseRevokeRequest(ID=lease))
    assert [reply.TTL async for reply in keep_alives(store, lease)] == [0]


async def a_session_holds_a_lock_and_hands_it_on(store: Connected) -> None:
    async with Session(store, 5) as one:
        held = await wait_for(store, LOCK, v3lock_pb2.LockRequest(name=b"l", lease=one.lease))
        async with Session(store, 5) as other:
            next_one = asyncio.ensure_future(
                wait_for(store, LOCK, v3lock_pb2.LockRequest(name=b"l", lease=other.lease))
            )
            await entries(store, 2)
            assert not next_one.done()
            await store.call(UNLOCK, v3lock_pb2.UnlockRequest(key=held.key))
            assert (await next_one).key == b"l/%x" % other.lease
        assert not one.lost.is_set()
    await entries(store, 0)


async def an_election_is_observed(store: Connected) -> None:
    async def campaign(value: bytes) -> v3election_pb2.LeaderKey:
        request = v3election_pb2.CampaignRequest(name=b"e", lease=await grant(store), value=value)
        return (await wait_for(store, CAMPAIGN, request)).leader

    first = await campaign(b"first")
    async with contextlib.aclosing(observe(store, b"e")) as leaders:
        assert (await anext(leaders)).kv.value == b"first"
        second = asyncio.ensure_future(campaign(b"second"))
        await store.call(RESIGN, v3election_pb2.ResignRequest(leader=first))
        assert (await anext(leaders)).kv.value == b"second"
        await second


SCENARIOS = [
    a_stream_of_replies_ends_with_none,
    a_unary_method_can_be_opened,
    refusals_have_their_type_and_code,
    a_method_that_is_not_served_is_unimplemented,
    a_cancelled_call_is_withdrawn_at_the_server,
    a_read_that_is_cancelled_cancels_the_call,
    a_call_that_is_not_answered_in_time_has_an_unknown_outcome,
    the_end_of_a_connection_ends_its_calls,
    a_watch_goes_on_from_where_it_was,
    a_watch_can_be_cancelled_on_its_stream,
    keep_alives_are_answered_in_order,
    a_session_holds_a_lock_and_hands_it_on,
    an_election_is_observed,
]
by_name = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)


@by_name
def test_over_grpc(scenario: Scenario, tmp_path: Path) -> None:
    asyncio.run(over_grpc(scenario, tmp_path))


@by_name
def test_in_memory(scenario: Scenario) -> None:
    run_virtual(in_memory(scenario))

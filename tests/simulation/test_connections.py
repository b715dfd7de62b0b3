"""What a client can do over gRPC works over a simulated connection, with the same client classes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf import message_factory
from google.protobuf.message import Message

from kvstore.client import (
    CAMPAIGN,
    COMPACT,
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    LOCK,
    MEMBER_ADD,
    MEMBER_LIST,
    MEMBER_PROMOTE,
    MEMBER_REMOVE,
    PUT,
    RANGE,
    RESIGN,
    UNLOCK,
    WATCH,
    Method,
    Session,
    StreamCaller,
    TimedOut,
    Watching,
    observe,
    wait_for,
)
from kvstore.client.connection import KEEPALIVE_TIME_S, KEEPALIVE_TIMEOUT_S
from kvstore.errors import OutcomeUnknown, RequestError, Unavailable
from kvstore.rpc import Method as Row
from kvstore.rpc.binding import UNREAD_LOW_MESSAGES
from kvstore.rpc.lease_service import KEEP_ALIVES_OPEN_MAX
from kvstore.testing import SimulatedCluster, SimulatedEngine, run_virtual
from kvstore.testing.simulated_connection import UNTAKEN_BYTES_MAX
from kvstore.testing.simulation import DATA_DIRECTORY
from kvstore.wire import health_pb2, rpc_pb2, v3election_pb2, v3lock_pb2
from raft.storage import memory_backend

BACKEND = f"{DATA_DIRECTORY}/state.db"

Scenario = Callable[[SimulatedCluster], Awaitable[Any]]


def play(scenario: Scenario, seed: int = 1) -> Any:
    """Run a scenario on a cluster of three that has a leader."""

    async def main() -> Any:
        cluster = SimulatedCluster(seed=seed, machine=SimulatedEngine)
        await cluster.start_all()
        await cluster.wait_for_leader()
        result = await scenario(cluster)
        await cluster.stop_all()
        return result

    return run_virtual(main())


async def put(store: StreamCaller, key: str, value: str = "v", lease: int = 0) -> int:
    request = rpc_pb2.PutRequest(key=key.encode(), value=value.encode(), lease=lease)
    while True:
        with contextlib.suppress(OutcomeUnknown, Unavailable):
            return (await store.call(PUT, request)).header.revision
        await asyncio.sleep(0.1)


async def get(store: StreamCaller, key: str) -> str | None:
    reply = await store.call(RANGE, rpc_pb2.RangeRequest(key=key.encode()))
    return reply.kvs[0].value.decode() if reply.kvs else None


async def grant(store: StreamCaller, ttl_s: int = 60) -> int:
    return (await store.call(LEASE_GRANT, rpc_pb2.LeaseGrantRequest(TTL=ttl_s))).ID


# --- every method ---


@dataclass(slots=True)
class Scene:
    """What the example requests refer to."""

    leader: int
    follower: int
    lease: int
    lock: v3lock_pb2.LockResponse
    elected: v3election_pb2.LeaderKey
    learner: int
    """A member that was added, has started, and holds the log."""


NAME, VALUE = b"name", b"value"
CREATE = rpc_pb2.WatchCreateRequest(key=b"k")

EXAMPLES: dict[str, Callable[[Scene], Message]] = {
    "etcdserverpb.KV/Range": lambda scene: rpc_pb2.RangeRequest(key=b"k"),
    "etcdserverpb.KV/RangeStream": lambda scene: rpc_pb2.RangeRequest(key=b"k"),
    "etcdserverpb.KV/Put": lambda scene: rpc_pb2.PutRequest(key=b"k", value=VALUE),
    "etcdserverpb.KV/DeleteRange": lambda scene: rpc_pb2.DeleteRangeRequest(key=b"k"),
    "etcdserverpb.KV/Txn": lambda scene: rpc_pb2.TxnRequest(
        success=[rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"k"))]
    ),
    "etcdserverpb.KV/Compact": lambda scene: rpc_pb2.CompactionRequest(revision=2, physical=True),
    "etcdserverpb.Lease/LeaseGrant": lambda scene: rpc_pb2.LeaseGrantRequest(TTL=60),
    "etcdserverpb.Lease/LeaseRevoke": lambda scene: rpc_pb2.LeaseRevokeRequest(ID=scene.lease),
    "etcdserverpb.Lease/LeaseTimeToLive": lambda scene: rpc_pb2.LeaseTimeToLiveRequest(
        ID=scene.lease, keys=True
    ),
    "etcdserverpb.Lease/LeaseLeases": lambda scene: rpc_pb2.LeaseLeasesRequest(),
    "etcdserverpb.Lease/LeaseKeepAlive": lambda scene: rpc_pb2.LeaseKeepAliveRequest(ID=scene.lease),
    "v3lockpb.Lock/Lock": lambda scene: v3lock_pb2.LockRequest(name=NAME, lease=scene.lease),
    "v3lockpb.Lock/Unlock": lambda scene: v3lock_pb2.UnlockRequest(key=scene.lock.key),
    "v3electionpb.Election/Campaign": lambda scene: v3election_pb2.CampaignRequest(
        name=NAME, lease=scene.lease, value=VALUE
    ),
    "v3electionpb.Election/Proclaim": lambda scene: v3election_pb2.ProclaimRequest(
        leader=scene.elected, value=VALUE
    ),
    "v3electionpb.Election/Leader": lambda scene: v3election_pb2.LeaderRequest(name=b"vote"),
    "v3electionpb.Election/Observe": lambda scene: v3election_pb2.LeaderRequest(name=b"vote"),
    "v3electionpb.Election/Resign": lambda scene: v3election_pb2.ResignRequest(leader=scene.elected),
    "etcdserverpb.Watch/Watch": lambda scene: rpc_pb2.WatchRequest(create_request=CREATE),
    "etcdserverpb.Cluster/MemberAdd": lambda scene: rpc_pb2.MemberAddRequest(peerURLs=["http://new:2380"]),
    "etcdserverpb.Cluster/MemberRemove": lambda scene: rpc_pb2.MemberRemoveRequest(ID=scene.learner),
    "etcdserverpb.Cluster/MemberUpdate": lambda scene: rpc_pb2.MemberUpdateRequest(
        ID=scene.learner, peerURLs=["http://moved:2380"]
    ),
    "etcdserverpb.Cluster/MemberList": lambda scene: rpc_pb2.MemberListRequest(linearizable=True),
    "etcdserverpb.Cluster/MemberPromote": lambda scene: rpc_pb2.MemberPromoteRequest(ID=scene.learner),
    "etcdserverpb.Maintenance/Status": lambda scene: rpc_pb2.StatusRequest(),
    "etcdserverpb.Maintenance/Alarm": lambda scene: rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.GET),
    "etcdserverpb.Maintenance/MoveLeader": lambda scene: rpc_pb2.MoveLeaderRequest(targetID=scene.follower),
    "etcdserverpb.Maintenance/Hash": lambda scene: rpc_pb2.HashRequest(),
    "etcdserverpb.Maintenance/HashKV": lambda scene: rpc_pb2.HashKVRequest(),
    "etcdserverpb.Maintenance/Defragment": lambda scene: rpc_pb2.DefragmentRequest(),
    "etcdserverpb.Maintenance/Downgrade": lambda scene: rpc_pb2.DowngradeRequest(
        action=rpc_pb2.DowngradeRequest.CANCEL
    ),
    "etcdserverpb.Maintenance/Snapshot": lambda scene: rpc_pb2.SnapshotRequest(),
    "grpc.health.v1.Health/Check": lambda scene: health_pb2.HealthCheckRequest(),
    "grpc.health.v1.Health/Watch": lambda scene: health_pb2.HealthCheckRequest(),
}
"""A request for each method, by its path, that is answered."""

REFUSED = {
    "etcdserverpb.Maintenance/Downgrade": "every server refuses it: there is no earlier version",
}
"""Methods that have no request that is served, and why."""


def served() -> dict[str, Row]:
    """Every method of a simulated member, by its path."""

    async def main() -> dict[str, Row]:
        cluster = SimulatedCluster(seed=1, size=1, machine=SimulatedEngine)
        await cluster.start_all()
        rows = cluster.services[1].methods
        await cluster.stop_all()
        return {row.path.removeprefix("/"): row for row in rows}

    return run_virtual(main())


SERVED = served()


def client_method(path: str, row: Row) -> Method[Any, Any]:
    """The method as a client knows it: with the type of its reply, from the descriptor of the service."""
    service, _, name = path.rpartition("/")
    for module in (rpc_pb2, v3lock_pb2, v3election_pb2, health_pb2):
        found = module.DESCRIPTOR.services_by_name.get(service.rpartition(".")[2])
        if found is not None and found.full_name == service:
            reply = message_factory.GetMessageClass(found.methods_by_name[name].output_type)
            return Method(f"/{path}", row.request_type, reply, changes=False)
    raise AssertionError(f"no descriptor of {service}")


def test_every_served_method_has_an_example() -> None:
    assert set(SERVED) == set(EXAMPLES)
    assert set(REFUSED) < set(EXAMPLES)


@pytest.mark.parametrize("path", SERVED)
def test_every_served_method_can_be_called(path: str) -> None:
    row = SERVED[path]
    method = client_method(path, row)

    async def scenario(cluster: SimulatedCluster) -> None:
        leader = (await cluster.wait_for_leader()).member_id
        store = cluster.connect(leader)
        await put(store, "k")
        lease = await grant(store)
        lock = await store.call(LOCK, v3lock_pb2.LockRequest(name=b"lock", lease=lease))
        campaign = v3election_pb2.CampaignRequest(name=b"vote", lease=lease, value=VALUE)
        elected = (await store.call(CAMPAIGN, campaign)).leader
        await asyncio.sleep(10)  # changes are refused until all voters have been connected for a while
        learner = await join(cluster, store)
        scene = Scene(leader, leader % 3 + 1, lease, lock, elected, learner)
        request = EXAMPLES[path](scene)
        if path in REFUSED:
            with pytest.raises(RequestError, match="downgrade"):
                await store.call(method, request)
        elif row.kind == "unary":
            assert isinstance(await store.call(method, request), method.reply)
        else:
            stream = await store.open(method, None if row.kind == "bidi_stream" else request)
            if row.kind == "bidi_stream":
                await stream.write(request)
            assert isinstance(await stream.read(), method.reply)
            stream.cancel()

    play(scenario)


async def join(cluster: SimulatedCluster, store: StreamCaller) -> int:
    """Add a learner and start it; the id that it was given."""
    request = rpc_pb2.MemberAddRequest(peerURLs=["http://learner:2380"], isLearner=True)
    learner = (await store.call(MEMBER_ADD, request)).member.ID
    cluster.add(learner)
    await cluster.start(learner)
    leader = await cluster.wait_for_leader()
    await cluster.wait_until(lambda: cluster.members[learner].running.applied == leader.applied)
    await asyncio.sleep(1)
    return learner


def test_the_members_are_listed_and_one_can_be_replaced() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        leader = (await cluster.wait_for_leader()).member_id
        store = cluster.connect(leader)
        listed = (await store.call(MEMBER_LIST, rpc_pb2.MemberListRequest(linearizable=True))).members
        assert [(one.ID, one.name) for one in listed] == [(1, "node1"), (2, "node2"), (3, "node3")]
        await asyncio.sleep(10)
        learner = await join(cluster, store)
        await store.call(MEMBER_PROMOTE, rpc_pb2.MemberPromoteRequest(ID=learner))
        removed = leader % 3 + 1
        await store.call(MEMBER_REMOVE, rpc_pb2.MemberRemoveRequest(ID=removed))
        listed = (await store.call(MEMBER_LIST, rpc_pb2.MemberListRequest(linearizable=True))).members
        assert {one.ID for one in listed} == {1, 2, 3, learner} - {removed}
        await put(cluster.connect(learner), "k")
        assert await get(store, "k") == "v"

    play(scenario)


# --- watches ---


async def taken(watching: Watching, into: list[tuple[int, str]]) -> None:
    async for response in watching:
        into += [(event.kv.mod_revision, event.kv.value.decode()) for event in response.events]


@contextlib.asynccontextmanager
async def watched(store: StreamCaller, key: bytes, start: int = 0) -> AsyncIterator[list[tuple[int, str]]]:
    """The events of a key, as they come, while the block lasts."""
    seen: list[tuple[int, str]] = []
    request = rpc_pb2.WatchCreateRequest(key=key, start_revision=start)
    async with Watching(store, request) as watching, asyncio.TaskGroup() as group:
        task = group.create_task(taken(watching, seen))
        await asyncio.sleep(0.5)
        yield seen
        task.cancel()


@pytest.mark.parametrize("seed", range(4))
def test_a_watch_goes_on_while_members_die_and_misses_nothing(seed: int) -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        writer = cluster.connect(timeout_s=1.0)
        async with watched(cluster.connect(2, 3, 1), b"k") as seen:
            for number in range(60):
                if number % 20 == 5:
                    cluster.crash(2 if number == 5 else (await cluster.wait_for_leader()).member_id)
                    down = [one for one, member in cluster.members.items() if member.node is None]
                if number % 20 == 15:
                    await cluster.start(down[0])
                await put(writer, "k", str(number))
                await asyncio.sleep(0.1)
            async with watched(cluster.connect(1), b"k", start=1) as all_of_them:
                await cluster.wait_until(
                    lambda: len(all_of_them) >= 60 and seen == all_of_them, 20, "all events"
                )
        assert [revision for revision, _ in seen] == sorted({revision for revision, _ in seen})
        assert {value for _, value in seen} == {str(number) for number in range(60)}

    play(scenario, seed)


def test_an_unread_watch_is_bounded_and_loses_nothing() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        store = cluster.connect()
        stream = await store.open(WATCH)
        await stream.write(rpc_pb2.WatchRequest(create_request=CREATE))
        count = 4 * UNREAD_LOW_MESSAGES
        for number in range(count):
            await put(store, "k", str(number))
        assert len(stream._call.replies) <= UNREAD_LOW_MESSAGES + 1
        values: list[str] = []
        while len(values) < count:
            response = await stream.read()
            assert response is not None
            values += [event.kv.value.decode() for event in response.events]
        assert values == [str(number) for number in range(count)]

    play(scenario)


def test_a_paused_member_keeps_its_streams_for_a_while_and_then_loses_them() -> None:
    given_up_s = KEEPALIVE_TIME_S + KEEPALIVE_TIMEOUT_S

    async def scenario(cluster: SimulatedCluster) -> list[float]:
        leader = (await cluster.wait_for_leader()).member_id
        first, second = (one for one in cluster.members if one != leader)
        writer = cluster.connect(leader)
        late: list[float] = []
        async with watched(cluster.connect(first, second), b"k") as seen:
            for pause_s in (given_up_s / 4, 3 * given_up_s):
                cluster.members[first].running.pause()
                begin_s = cluster.loop.time()
                await put(writer, "k", str(pause_s))
                resume = cluster.loop.call_later(pause_s, cluster.members[first].running.resume)
                await cluster.wait_until(lambda value=str(pause_s): value in [v for _, v in seen], 100)
                late.append(cluster.loop.time() - begin_s)
                await asyncio.sleep(max(0.0, resume.when() - cluster.loop.time()) + 1)
        assert [value for _, value in seen] == [str(given_up_s / 4), str(3 * given_up_s)]
        return late

    resumed, moved = play(scenario)
    assert given_up_s / 4 <= resumed < given_up_s / 4 + 1, "it came when the member went on"
    assert given_up_s / 2 < moved < 1.5 * given_up_s, "it came from the other one"


def test_a_request_to_a_paused_member_is_taken_when_it_goes_on() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        node = cluster.members[1].running
        store = cluster.connect(1)
        node.pause()
        stream = await store.open(WATCH)
        await stream.write(rpc_pb2.WatchRequest(create_request=CREATE))
        reading = asyncio.ensure_future(stream.read())
        await asyncio.sleep(2)
        assert not reading.done()
        node.resume()
        response = await reading
        assert response is not None
        assert response.created

    play(scenario)


def test_a_stream_to_a_member_that_dies_ends_like_a_broken_connection() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        store = cluster.connect(2)
        streams = [await store.open(WATCH) for _ in range(2)]
        reading = asyncio.ensure_future(streams[0].read())
        await asyncio.sleep(0.1)
        cluster.crash(2)
        with pytest.raises(Unavailable, match="connection reset"):
            await reading
        await streams[1].write(rpc_pb2.WatchRequest(create_request=CREATE))
        with pytest.raises(Unavailable, match="connection reset"):
            await streams[1].read()
        began_s = cluster.loop.time()
        with pytest.raises(TimedOut):
            await store.open(WATCH, deadline=began_s + 3)
        assert 3 <= cluster.loop.time() - began_s < 4

    play(scenario)


def test_the_end_of_a_connection_ends_its_streams_at_the_member() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        hub = cluster.services[1].member.watches
        async with cluster.connect(1) as store:
            for _ in range(3):
                await (await store.open(WATCH)).write(rpc_pb2.WatchRequest(create_request=CREATE))
            assert hub.streams == 3
        assert hub.streams == 0

    play(scenario)


# --- leases ---


def test_a_session_outlives_members_and_its_keys_end_with_it() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        store = cluster.connect(timeout_s=2.0)
        async with Session(store, 3) as session:
            await put(store, "mine", lease=session.lease)
            for _ in range(3):
                dead = (await cluster.wait_for_leader()).member_id
                cluster.crash(dead)
                await asyncio.sleep(4)
                await cluster.start(dead)
                await asyncio.sleep(1)
                assert await get(store, "mine") == "v"
            assert not session.lost.is_set()
        assert await get(store, "mine") is None, "revoked at the end"

    play(scenario)


def test_a_session_without_its_cluster_is_lost_when_its_ttl_is_over() -> None:
    async def scenario(cluster: SimulatedCluster) -> float:
        store = cluster.connect(timeout_s=0.5)
        async with Session(store, 3) as session:
            await asyncio.sleep(1)
            began_s = cluster.loop.time()
            cluster.power_cut()
            async with asyncio.timeout(60):
                await session.lost.wait()
            return cluster.loop.time() - began_s

    assert 1.5 <= play(scenario) <= 3.5


def test_keep_alives_beyond_the_bound_of_a_stream_wait_and_are_answered_in_order() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        store = cluster.connect()
        lease = await grant(store)
        stream = await store.open(LEASE_KEEP_ALIVE)
        count = KEEP_ALIVES_OPEN_MAX + 200
        for number in range(count):
            await stream.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease + number % 2))
        assert stream._call.holds, "more than a stream may have open: flow control stops the client"
        replies = [await stream.read() for _ in range(count)]
        assert [reply.TTL for reply in replies if reply] == [60 * (1 - number % 2) for number in range(count)]

    play(scenario)


# --- locks and elections ---


@pytest.mark.parametrize("seed", range(4))
def test_a_lock_is_held_by_one_at_a_time_while_members_die(seed: int) -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        holders: list[str] = []
        served: list[str] = []

        async def worker(name: str) -> None:
            store = cluster.connect(timeout_s=2.0)
            async with Session(store, 5) as session:
                held = await wait_for(store, LOCK, v3lock_pb2.LockRequest(name=b"l", lease=session.lease))
                holders.append(name)
                await asyncio.sleep(1.5)
                assert holders == [name]
                assert not session.lost.is_set()
                holders.remove(name)
                served.append(name)
                await store.call(UNLOCK, v3lock_pb2.UnlockRequest(key=held.key))

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(worker(f"worker {number}"))
            await asyncio.sleep(2)
            dead = (await cluster.wait_for_leader()).member_id
            cluster.crash(dead)
            await asyncio.sleep(3)
            await cluster.start(dead)
        assert sorted(served) == [f"worker {number}" for number in range(6)]

    play(scenario, seed)


def test_the_lock_of_a_holder_that_vanishes_passes_on_when_its_lease_expires() -> None:
    async def scenario(cluster: SimulatedCluster) -> float:
        gone, waiting = cluster.connect(), cluster.connect()
        lost = await grant(gone, 4)
        await wait_for(gone, LOCK, v3lock_pb2.LockRequest(name=b"l", lease=lost))
        began_s = cluster.loop.time()
        async with Session(waiting, 4) as session:
            await wait_for(waiting, LOCK, v3lock_pb2.LockRequest(name=b"l", lease=session.lease))
            return cluster.loop.time() - began_s

    assert 3.5 <= play(scenario) <= 8


def test_a_cancelled_wait_leaves_the_queue() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        store = cluster.connect()
        leases = [await grant(store) for _ in range(3)]
        request = [v3lock_pb2.LockRequest(name=b"l", lease=lease) for lease in leases]
        held = await wait_for(store, LOCK, request[0])
        second, third = (asyncio.ensure_future(wait_for(store, LOCK, one)) for one in request[1:])
        await asyncio.sleep(1)
        second.cancel()
        await asyncio.sleep(1)
        await store.call(UNLOCK, v3lock_pb2.UnlockRequest(key=held.key))
        assert (await third).key.endswith(b"%x" % leases[2])

    play(scenario)


def test_an_election_is_observed() -> None:
    async def scenario(cluster: SimulatedCluster) -> list[bytes]:
        seen: list[bytes] = []

        async def look() -> None:
            async with contextlib.aclosing(observe(cluster.connect(2), b"e")) as leaders:
                async for reply in leaders:
                    seen.extend((reply.kv.value,))

        async def campaign(store: StreamCaller, value: bytes) -> v3election_pb2.CampaignResponse:
            lease = await grant(store)
            return await wait_for(
                store, CAMPAIGN, v3election_pb2.CampaignRequest(name=b"e", lease=lease, value=value)
            )

        looking = asyncio.ensure_future(look())
        store = cluster.connect()
        first = await campaign(store, b"first")
        second = asyncio.ensure_future(campaign(cluster.connect(3), b"second"))
        await asyncio.sleep(1)
        assert not second.done()
        await store.call(RESIGN, v3election_pb2.ResignRequest(leader=first.leader))
        assert (await second).leader.key != first.leader.key
        await cluster.wait_until(lambda: len(seen) == 2)
        looking.cancel()
        await asyncio.wait([looking])
        return seen

    assert play(scenario) == [b"first", b"second"]


# --- repeatable ---


def test_a_seed_repeats_every_event_and_its_time() -> None:
    async def scenario(cluster: SimulatedCluster) -> list[Any]:
        trace: list[Any] = []
        store = cluster.connect()

        async def look() -> None:
            request = rpc_pb2.WatchCreateRequest(key=b"\0", range_end=b"\0")
            async with Watching(store, request) as watching:
                async for response in watching:
                    trace.extend((cluster.loop.time(), event.kv.mod_revision) for event in response.events)

        looking = asyncio.ensure_future(look())
        await asyncio.sleep(10)
        learner = rpc_pb2.MemberAddRequest(peerURLs=["http://learner:2380"], isLearner=True)
        trace.append((await store.call(MEMBER_ADD, learner)).member.ID)
        async with Session(store, 3) as session:
            trace.append(session.lease)
            await wait_for(store, LOCK, v3lock_pb2.LockRequest(name=b"l", lease=session.lease))
            cluster.crash((await cluster.wait_for_leader()).member_id)
            await cluster.wait_for_leader()
            await put(store, "k")
        await cluster.wait_until(lambda: len(trace) == 5, what="the lock, the put and the end of the lock")
        looking.cancel()
        await asyncio.wait([looking])
        return trace

    first = play(scenario, 5)
    assert first == play(scenario, 5)
    assert first != play(scenario, 6)


def test_a_seed_repeats_the_time_of_progress() -> None:
    """Of a watch without events, after ten minutes and a little that is drawn for each stream."""

    async def main(seed: int) -> list[float]:
        cluster = SimulatedCluster(seed=seed, size=1, machine=SimulatedEngine)
        await cluster.start_all()
        await cluster.wait_for_leader()
        times: list[float] = []
        for _ in range(2):
            request = rpc_pb2.WatchCreateRequest(key=b"k", progress_notify=True)
            async with Watching(cluster.connect(), request) as watching:
                began_s = cluster.loop.time()
                assert not (await anext(watching)).events
                times.append(cluster.loop.time() - began_s)
        await cluster.stop_all()
        return times

    first = run_virtual(main(5))
    assert all(600 <= one <= 661 for one in first)
    assert len(set(first)) == 2
    assert first == run_virtual(main(5))


# --- bounds ---


def test_a_client_that_writes_more_than_a_member_takes_has_to_wait() -> None:
    request = rpc_pb2.LeaseKeepAliveRequest(ID=1 << 62)
    count = 3 * UNTAKEN_BYTES_MAX // request.ByteSize()

    async def scenario(cluster: SimulatedCluster) -> None:
        store = cluster.connect(1)
        stream = await store.open(LEASE_KEEP_ALIVE)
        cluster.members[1].running.pause()
        written = 0

        async def write() -> None:
            nonlocal written
            for _ in range(count):
                await stream.write(request)
                written += 1

        writing = asyncio.ensure_future(write())
        for _ in range(3):
            await asyncio.sleep(1)
            assert abs(written * request.ByteSize() - UNTAKEN_BYTES_MAX) <= 2 * request.ByteSize()
        cluster.members[1].running.resume()
        for _ in range(count):
            assert await stream.read() is not None
        await writing
        assert written == count

    play(scenario)


def test_a_connection_forgets_streams_that_have_ended() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        store = cluster.connect()
        for _ in range(100):
            call = await store.open(RANGE, rpc_pb2.RangeRequest(key=b"k"))
            while await call.read() is not None:
                pass
        assert not store._streams
        (services,) = (one for one in cluster.services.values() if one._calls)
        assert len(services._calls) == 1, "the last one, until the next begins"

    play(scenario)


def test_a_long_scenario_keeps_no_more_than_the_store_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a member writes to its disk, and what a connection knows, are bounded."""
    monkeypatch.setattr(memory_backend, "SUPERSEDED_BYTES_MAX", 16_000)

    async def scenario(cluster: SimulatedCluster) -> list[int]:
        store = cluster.connect()
        sizes: list[int] = []
        async with watched(store, b"k") as seen:
            for number in range(1, 601):
                revision = await put(store, "k", f"{number:200}")
                if number % 100 == 0:
                    await asyncio.sleep(10)  # until all is checkpointed
                    await store.call(COMPACT, rpc_pb2.CompactionRequest(revision=revision, physical=True))
                    sizes += [member.files.open(BACKEND).size() for member in cluster.members.values()]
            await cluster.wait_until(lambda: len(seen) == 600)
            assert len(store._streams) == 1, "the watch"
        assert not store._streams
        return sizes

    sizes = play(scenario)
    assert 16_000 < max(sizes) < 64_000

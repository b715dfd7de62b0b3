"""A member that has failed answers no call; one that stops answers every call."""

from __future__ import annotations

import asyncio
import threading

import grpc
import pytest

from kvstore.app import StartError
from kvstore.wire import rpc_pb2 as pb
from kvstore.wire import v3lock_pb2
from raft.transport.peer_transport import PeerTransport

OTHER = "another-cluster"


@pytest.mark.asyncio
async def test_after_a_fatal_error_not_even_old_data_is_served(members) -> None:
    (member,) = await members.start(1)
    await member.put(b"k", b"1")
    assert await member.get(b"k", serializable=True) == b"1"
    member.handle.node.fail("the disk is gone")
    async with asyncio.timeout(5):
        assert await member.handle.wait_failed() == "the disk is gone"
    with pytest.raises(StartError, match="the disk is gone"):
        await member.handle.wait_ready()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await member.get(b"k", serializable=True, deadline=5)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    async with asyncio.timeout(5):
        await member.stop()
    await member.start()
    await member.ready()
    assert await member.get(b"k") == b"1"


@pytest.mark.asyncio
async def test_after_a_fatal_error_watches_and_waiters_end_instead_of_being_silent(members) -> None:
    (member,) = await members.start(1)
    lease, second = [
        (await member.call("Lease/LeaseGrant", pb.LeaseGrantRequest(TTL=60))).ID for _ in range(2)
    ]
    lock = "v3lockpb.Lock/Lock"
    first = v3lock_pb2.LockRequest(name=b"l", lease=lease)
    await member.call_any(lock, first, v3lock_pb2.LockResponse)
    behind = v3lock_pb2.LockRequest(name=b"l", lease=second)
    waiting = asyncio.ensure_future(member.call_any(lock, behind, v3lock_pb2.LockResponse, deadline=60))
    watch = member.both_ways("Watch/Watch", pb.WatchRequest, deadline=60)
    wanted = pb.WatchCreateRequest(key=b"l/%x" % second, start_revision=1)
    await watch.write(pb.WatchRequest(create_request=wanted))
    assert (await watch.read()).created
    assert len((await watch.read()).events) == 1
    member.handle.node.fail("the disk is gone")
    async with asyncio.timeout(5):
        for pending in (waiting, _to_the_end(watch)):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await pending
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            assert raised.value.details() == "etcdserver: server stopped"


async def _to_the_end(stream) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


@pytest.mark.asyncio
async def test_calls_in_flight_at_a_stop_learn_their_outcome(members) -> None:
    cluster = await members.start(3)
    others = [m for m in cluster if m.handle.status().leader != m.handle.member_id]
    survivor = others[0]
    await asyncio.gather(*(m.stop() for m in cluster if m is not survivor))
    request = pb.PutRequest(key=b"k")
    waiting = [asyncio.ensure_future(survivor.call("KV/Put", request, deadline=None)) for _ in range(20)]
    async with asyncio.timeout(3):
        # The stopping leader may have transferred leadership: then the survivor has them in its own log.
        status = survivor.handle.status()
        while status.waiting_operations + status.in_flight_operations < 20:
            await asyncio.sleep(0.01)
            status = survivor.handle.status()
        stopping = asyncio.ensure_future(survivor.stop_serving())
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        await stopping
    for answer in answers:
        assert isinstance(answer, grpc.aio.AioRpcError)
        assert answer.code() is grpc.StatusCode.UNAVAILABLE
        assert dict(answer.trailing_metadata())["kvstore-outcome"] in ("not-applied", "unknown")


@pytest.mark.asyncio
async def test_a_member_of_another_cluster_does_not_get_in(members, tmp_path) -> None:
    """Same URLs, another token: the handshake refuses, and neither cluster sees the other."""
    first, _, third = await members.start(3)
    await third.stop()
    stranger_options = {**vars(third.config), "initial_cluster_token": OTHER, "data_dir": str(tmp_path / "s")}
    stranger = members.add(**stranger_options)
    await stranger.start()
    await first.put(b"k", b"1")
    with pytest.raises(grpc.aio.AioRpcError):
        await stranger.get(b"k", deadline=0.5)
    assert not stranger.handle.ready
    assert await stranger.get(b"k", serializable=True) is None


@pytest.mark.asyncio
async def test_client_urls_that_cannot_be_published_are_an_error_not_a_silence(members) -> None:
    (member,) = members.plan(1, max_request_bytes=10)
    await member.start()
    with pytest.raises(StartError, match="cannot join the cluster: etcdserver: request is too large"):
        await member.ready()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "error", [OSError("injected"), asyncio.CancelledError()], ids=["failed", "cancelled"]
)
async def test_a_close_that_breaks_off_leaves_no_thread_that_keeps_the_process(
    members, until, monkeypatch, error
) -> None:
    """Of a loop that ends meanwhile, or a step that fails; the thread of an open backend never ends."""
    (member,) = members.plan(1)
    before = set(threading.enumerate())
    await member.start()
    await member.ready()
    genuine = PeerTransport.close

    async def close(self) -> None:
        await genuine(self)
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(PeerTransport, "close", close)
        with pytest.raises(type(error)):
            await member.stop()

    def left() -> list[threading.Thread]:
        started = set(threading.enumerate()) - before
        return [thread for thread in started if not thread.daemon and not thread.name.startswith("asyncio_")]

    await until(lambda: not left())
    await member.start()
    await member.ready()
    assert await member.get(b"k") is None

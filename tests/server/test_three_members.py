"""Three members over real gRPC and disks, in one process."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from kvstore.configuration.member_config import REQUEST_BYTES_LIMIT
from kvstore.wire import rpc_pb2 as pb


def leader_of(cluster):
    """The member that leads, by its own account."""
    return next(m for m in cluster if m.handle.status().leader == m.handle.member_id)


@pytest.mark.asyncio
async def test_every_member_takes_writes_and_linearizable_reads(members) -> None:
    cluster = await members.start(3)
    for number, member in enumerate(cluster):
        answered = await member.put(b"k", b"%d" % number)
        assert answered.header.member_id == member.handle.member_id
        assert answered.header.revision == number + 2
        for reader in cluster:
            assert await reader.get(b"k") == b"%d" % number
    deleted = await cluster[1].call("KV/DeleteRange", pb.DeleteRangeRequest(key=b"k"))
    assert deleted.deleted == 1
    assert await cluster[2].get(b"k") is None


@pytest.mark.asyncio
async def test_every_member_reports_the_same_of_the_cluster(members, until) -> None:
    cluster = await members.start(3)
    lists = [await m.call("Cluster/MemberList", pb.MemberListRequest(linearizable=True)) for m in cluster]
    seen = {
        tuple((m.ID, m.name, tuple(m.peerURLs), tuple(m.clientURLs)) for m in answered.members)
        for answered in lists
    }
    assert len(seen) == 1
    told = {name: urls for _, name, _, urls in seen.pop()}
    assert told == {member.config.name: member.handle.client_urls for member in cluster}
    statuses = [await m.call("Maintenance/Status", pb.StatusRequest()) for m in cluster]
    assert len({status.leader for status in statuses}) == 1
    assert len({status.header.cluster_id for status in statuses}) == 1
    assert statuses[0].leader == leader_of(cluster).handle.member_id


@pytest.mark.asyncio
async def test_the_listener_opens_before_there_is_a_quorum(members) -> None:
    first, second, third = members.plan(3)
    await first.start()
    status = await first.call("Maintenance/Status", pb.StatusRequest())
    assert list(status.errors) == ["etcdserver: no leader"]
    assert not first.handle.ready
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await first.put(b"k", metadata=(("hasleader", "true"),))
    assert raised.value.details() == "etcdserver: no leader"
    await asyncio.gather(second.start(), third.start())
    await first.ready()
    await first.put(b"k")


@pytest.mark.asyncio
async def test_writes_go_on_when_the_leader_stops_and_it_catches_up(members, until) -> None:
    cluster = await members.start(3)
    await cluster[0].put(b"before", b"1")
    stopped = leader_of(cluster)
    others = [member for member in cluster if member is not stopped]
    await stopped.stop()
    await others[0].put(b"after", b"2")
    assert await others[1].get(b"before") == b"1"
    await stopped.start()
    await stopped.ready()
    assert await stopped.get(b"after") == b"2"


@pytest.mark.asyncio
async def test_a_member_alone_refuses_in_time_but_serves_what_it_has(members) -> None:
    cluster = await members.start(3)
    await cluster[0].put(b"k", b"1")
    assert await cluster[2].get(b"k") == b"1"
    await asyncio.gather(cluster[0].stop(), cluster[1].stop())
    last = cluster[2]
    started = asyncio.get_running_loop().time()
    refusals = await asyncio.gather(
        last.put(b"k", b"2", deadline=None), last.get(b"k", deadline=None), return_exceptions=True
    )
    assert asyncio.get_running_loop().time() - started < 7.0
    for refusal in refusals:
        assert isinstance(refusal, grpc.aio.AioRpcError)
        assert refusal.code() is grpc.StatusCode.UNAVAILABLE
        assert refusal.details() in ("etcdserver: request timed out", "etcdserver: no leader")
    assert await last.get(b"k", serializable=True) == b"1"


@pytest.mark.asyncio
async def test_the_largest_request_that_can_be_configured_is_stored_by_all(members) -> None:
    patient = {"heartbeat_interval": 100, "election_timeout": 1000}  # the defaults: it is copied often
    started = await members.start(3, max_request_bytes=REQUEST_BYTES_LIMIT, **patient)
    await started[1].put(b"large", bytes(REQUEST_BYTES_LIMIT - 100))
    for member in started:
        answered = await member.call("KV/Range", pb.RangeRequest(key=b"large", count_only=True))
        assert answered.count == 1

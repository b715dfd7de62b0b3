"""Members come, are promoted, lead and leave, over real gRPC and disks in one process."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from kvstore.app import StartError
from kvstore.devcluster.plan import free_ports
from kvstore.server import joining
from kvstore.wire import rpc_pb2 as pb

QUICK = {"heartbeat_interval": 20, "election_timeout": 200, "listen_client_urls": "http://127.0.0.1:0"}


def leader_of(cluster):
    """The member that leads, by its own account."""
    return next(m for m in cluster if m.handle.status().leader == m.handle.member_id)


def peer_url() -> str:
    (port,) = free_ports(1)
    return f"http://127.0.0.1:{port}"


def newcomer(members, name: str, url: str, cluster):
    """A member that is to join, as configured, not started."""
    known = [f"{m.config.name}={m.config.listen_peer_urls}" for m in cluster]
    return members.add(
        name=name,
        data_dir=str(members.directory / name),
        listen_peer_urls=url,
        initial_cluster=",".join([*known, f"{name}={url}"]),
        initial_cluster_state="existing",
        **QUICK,
    )


async def patiently(member, method: str, request, *, but: str):
    """Call until the answer is another than the refusal `but`, which time heals."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await member.call(method, request)
            except grpc.aio.AioRpcError as error:
                if but not in error.details():
                    raise
                await asyncio.sleep(0.05)


async def add(member, url: str, *, learner: bool = False):
    request = pb.MemberAddRequest(peerURLs=[url], isLearner=learner)
    return (await patiently(member, "Cluster/MemberAdd", request, but="unhealthy cluster")).member


async def refusal(member, method: str, request) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await member.call(method, request)
    return raised.value.code(), raised.value.details()


@pytest.mark.asyncio
async def test_one_becomes_two_and_then_three_by_way_of_a_learner(members, until) -> None:
    (first,) = await members.start(1)
    await first.put(b"k", b"1")
    url = peer_url()
    added = await add(first, url)
    assert (added.name, list(added.peerURLs), added.isLearner) == ("", [url], False)
    second = newcomer(members, "b", url, [first])
    await second.start()
    await second.ready()
    assert second.handle.member_id == added.ID
    assert second.handle.cluster_id == first.handle.cluster_id
    assert await second.get(b"k") == b"1"

    url = peer_url()
    added = await add(second, url, learner=True)
    promote = pb.MemberPromoteRequest(ID=added.ID)
    code, text = await refusal(second, "Cluster/MemberPromote", promote)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert text == "etcdserver: can only promote a learner member which is in sync with leader"
    third = newcomer(members, "c", url, [first, second])
    await third.start()
    await third.ready()
    assert await third.get(b"k", serializable=True) == b"1"
    assert (await third.call("Maintenance/Status", pb.StatusRequest())).isLearner
    code, text = await refusal(third, "KV/Range", pb.RangeRequest(key=b"k"))
    assert (code, text) == (grpc.StatusCode.UNAVAILABLE, "etcdserver: rpc not supported for learner")
    await patiently(second, "Cluster/MemberPromote", promote, but="in sync with leader")
    await until(lambda: not third.handle.node.status().conf.learners)
    assert await third.get(b"k") == b"1"

    for member in (first, second, third):
        await member.stop()
    for member in (first, second, third):
        await member.start()
    for member in (first, second, third):
        await member.ready()
        listed = await member.call("Cluster/MemberList", pb.MemberListRequest(linearizable=True))
        assert sorted(one.name for one in listed.members) == ["a", "b", "c"]
        assert not any(one.isLearner for one in listed.members)
        assert await member.get(b"k") == b"1"


@pytest.mark.asyncio
async def test_a_leader_is_removed_and_replaced(members, until) -> None:
    cluster = await members.start(3)
    gone = leader_of(cluster)
    left = [member for member in cluster if member is not gone]
    request = pb.MemberRemoveRequest(ID=gone.handle.member_id)
    answered = await patiently(gone, "Cluster/MemberRemove", request, but="unhealthy cluster")
    assert gone.handle.member_id not in [member.ID for member in answered.members]
    async with asyncio.timeout(20):
        assert "permanently removed" in await gone.handle.wait_failed()
    assert gone.handle.removed
    await gone.stop()
    await left[0].put(b"k", b"1")
    for once_more in (request, pb.MemberRemoveRequest(ID=4711)):
        assert await refusal(left[0], "Cluster/MemberRemove", once_more) == (
            grpc.StatusCode.NOT_FOUND,
            "etcdserver: member not found",
        )
    url = peer_url()
    await add(left[1], url)
    new = newcomer(members, "new", url, left)
    await new.start()
    await new.ready()
    assert await new.get(b"k") == b"1"
    await gone.start()  # with its old data it learns of its removal, and stops again
    async with asyncio.timeout(20):
        await gone.handle.wait_failed()
    assert gone.handle.removed


@pytest.mark.asyncio
async def test_leadership_is_moved_and_forwarded_at_a_stop(members, until) -> None:
    patient = {"heartbeat_interval": 100, "election_timeout": 1000}  # terms are counted: no stray elections
    cluster = await members.start(3, **patient)
    leader = leader_of(cluster)
    follower, other = (member for member in cluster if member is not leader)
    move = pb.MoveLeaderRequest(targetID=follower.handle.member_id)
    for member, request, text in (
        (follower, move, "etcdserver: not leader"),
        (leader, pb.MoveLeaderRequest(targetID=4711), "etcdserver: bad leader transferee"),
    ):
        refused = await refusal(member, "Maintenance/MoveLeader", request)
        assert refused == (grpc.StatusCode.FAILED_PRECONDITION, text)
    await leader.call("Maintenance/MoveLeader", move)
    assert leader.handle.status().leader == follower.handle.member_id
    term = other.handle.status().term
    await follower.stop()
    await until(lambda: other.handle.status().leader not in (0, follower.handle.member_id))
    assert other.handle.status().term == term + 1, "transferred: no election timeout had to pass"
    await other.put(b"k")


@pytest.mark.asyncio
async def test_changes_that_would_cost_the_quorum_are_refused(members) -> None:
    cluster = await members.start(3)
    url = cluster[0].config.listen_peer_urls
    add_taken = pb.MemberAddRequest(peerURLs=[url])
    with pytest.raises(grpc.aio.AioRpcError, match="Peer URLs already exists"):
        await patiently(cluster[0], "Cluster/MemberAdd", add_taken, but="unhealthy cluster")
    invalid = "etcdserver: given member URLs are invalid"
    for urls in ([], ["nonsense"], ["https://1.2.3.4:5"], ["http://1.2.3.4"], ["http://1.2.3.4:5/p"]):
        request = pb.MemberAddRequest(peerURLs=urls)
        refused = await refusal(cluster[0], "Cluster/MemberAdd", request)
        assert refused == (grpc.StatusCode.INVALID_ARGUMENT, invalid)
    member_id = cluster[0].handle.member_id
    promote = pb.MemberPromoteRequest(ID=member_id)
    assert (await refusal(cluster[1], "Cluster/MemberPromote", promote))[1] == (
        "etcdserver: can only promote a learner member"
    )
    update = pb.MemberUpdateRequest(ID=member_id, peerURLs=[url, peer_url()])
    answered = await cluster[1].call("Cluster/MemberUpdate", update)
    assert [len(one.peerURLs) for one in answered.members if member_id == one.ID] == [2]
    await add(cluster[1], peer_url(), learner=True)
    too_many = pb.MemberAddRequest(peerURLs=[peer_url()], isLearner=True)
    assert await refusal(cluster[1], "Cluster/MemberAdd", too_many) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "etcdserver: too many learner members in cluster",
    )
    await cluster[2].stop()
    remove = pb.MemberRemoveRequest(ID=cluster[0].handle.member_id)
    assert await refusal(cluster[1], "Cluster/MemberRemove", remove) == (
        grpc.StatusCode.UNAVAILABLE,
        "etcdserver: unhealthy cluster",
    )


@pytest.mark.asyncio
async def test_who_was_not_added_cannot_join(members, monkeypatch) -> None:
    monkeypatch.setattr(joining, "PATIENCE_SECONDS", 0.1)
    (first,) = await members.start(1)
    stranger = newcomer(members, "b", peer_url(), [first])
    with pytest.raises(StartError, match="must be added first"):
        await stranger.start()
    await first.stop()
    with pytest.raises(StartError, match="could not retrieve cluster information"):
        await stranger.start()


@pytest.mark.asyncio
async def test_a_member_starts_at_the_address_that_it_was_updated_to(members) -> None:
    cluster = await members.start(3)
    await cluster[0].put(b"k", b"1")
    moved = cluster[2]
    url = peer_url()
    request = pb.MemberUpdateRequest(ID=moved.handle.member_id, peerURLs=[url])
    await patiently(cluster[0], "Cluster/MemberUpdate", request, but="unhealthy cluster")
    await moved.stop()
    names = moved.config.initial_cluster.rpartition("=")[0]
    again = members.add(
        **{**vars(moved.config), "listen_peer_urls": url, "initial_cluster": f"{names}={url}"}
    )
    await again.start()
    await again.ready()
    assert again.handle.member_id == moved.handle.member_id
    assert await again.get(b"k") == b"1"

"""Every error that a client of the data services can see, provoked on real members: etcd's text, etcd's code.

`TABLE` is etcd's own list (`api/v3rpc/rpctypes`), as far as these services go. Each class of
`kvstore.errors` must stand in it and be provoked here; what cannot be provoked from outside names the test
that makes it happen inside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc.aio
import pytest
from google.protobuf.message import Message

from kvstore import errors
from kvstore.wire import rpc_pb2 as pb
from kvstore.wire import v3election_pb2 as election_pb
from kvstore.wire import v3lock_pb2 as lock_pb

ROOT = Path(__file__).parents[2]

TABLE = {
    "etcdserver: key is not provided": 3,
    "etcdserver: key not found": 3,
    "etcdserver: value is provided": 3,
    "etcdserver: lease is provided": 3,
    "etcdserver: too many operations in txn request": 3,
    "etcdserver: duplicate key given in txn request": 3,
    "etcdserver: invalid sort option": 3,
    "etcdserver: mvcc: required revision has been compacted": 11,
    "etcdserver: mvcc: required revision is a future revision": 11,
    "etcdserver: mvcc: database space exceeded": 8,
    "etcdserver: requested lease not found": 5,
    "etcdserver: lease already exists": 9,
    "etcdserver: too large lease TTL": 11,
    "etcdserver: member ID already exist": 9,
    "etcdserver: Peer URLs already exists": 9,
    "etcdserver: re-configuration failed due to not enough started members": 9,
    "etcdserver: given member URLs are invalid": 3,
    "etcdserver: member not found": 5,
    "etcdserver: can only promote a learner member": 9,
    "etcdserver: can only promote a learner member which is in sync with leader": 9,
    "etcdserver: too many learner members in cluster": 9,
    "etcdserver: request is too large": 3,
    "etcdserver: too many requests": 8,
    "etcdserver: no leader": 14,
    "etcdserver: not leader": 9,
    "etcdserver: server stopped": 14,
    "etcdserver: request timed out": 14,
    "etcdserver: request timed out, leader transfer took too long": 2,
    "etcdserver: unhealthy cluster": 14,
    "etcdserver: corrupt cluster": 15,
    "etcdserver: rpc not supported for learner": 14,
    "etcdserver: bad leader transferee": 9,
    "etcdserver: wrong downgrade target version format": 3,
    "etcdserver: invalid downgrade target version": 3,
    "etcdserver: no inflight downgrade job": 9,
}


class Cluster(NamedTuple):
    """Three members, and one of a cluster of its own."""

    leader: Any
    follower: Any
    single: Any

    def id_of(self, member: Any) -> int:
        return int(member.handle.member_id)


async def call(member: Any, method: str, request: Message, **options: Any) -> bytes:
    invoke = member._channel.unary_unary(
        f"/{method}",
        request_serializer=type(request).SerializeToString,
    )
    return bytes(await invoke(request, timeout=20, **options))


KV, LEASE, CLUSTER, MAINTENANCE = (
    f"etcdserverpb.{name}/" for name in ("KV", "Lease", "Cluster", "Maintenance")
)
PUT = pb.PutRequest(key=b"k", value=b"v")


def one(method: str, request: Message, on: str = "leader") -> Callable[[Cluster], Awaitable[bytes]]:
    """A single call that is refused."""
    return lambda cluster: call(getattr(cluster, on), method, request)


def txn(*operations: pb.RequestOp) -> pb.TxnRequest:
    return pb.TxnRequest(success=operations)


async def compacted(cluster: Cluster) -> bytes:
    for value in (b"1", b"2", b"3"):
        await cluster.leader.put(b"k", value)
    await call(cluster.leader, KV + "Compact", pb.CompactionRequest(revision=3))
    return await call(cluster.leader, KV + "Range", pb.RangeRequest(key=b"k", revision=2))


async def under_alarm(cluster: Cluster, alarm: int) -> bytes:
    kinds = pb.AlarmRequest
    await call(cluster.leader, MAINTENANCE + "Alarm", kinds(action=kinds.ACTIVATE, alarm=alarm))
    try:
        return await call(cluster.leader, KV + "Put", PUT)
    finally:
        await call(cluster.leader, MAINTENANCE + "Alarm", kinds(action=kinds.DEACTIVATE, alarm=alarm))


async def lease_twice(cluster: Cluster) -> bytes:
    request = pb.LeaseGrantRequest(ID=77, TTL=60)
    await call(cluster.leader, LEASE + "LeaseGrant", request)
    return await call(cluster.leader, LEASE + "LeaseGrant", request)


async def add(cluster: Cluster, request: pb.MemberAddRequest) -> bytes:
    """Once the members have been connected for as long as a change asks for."""
    deadline = asyncio.get_running_loop().time() + 20
    while True:
        try:
            return await call(cluster.leader, CLUSTER + "MemberAdd", request)
        except grpc.aio.AioRpcError as error:
            if (
                error.details() != errors.UnhealthyCluster.text
                or asyncio.get_running_loop().time() > deadline
            ):
                raise
            await asyncio.sleep(0.1)


async def add_own_url(cluster: Cluster) -> bytes:
    return await add(cluster, pb.MemberAddRequest(peerURLs=[cluster.leader.config.listen_peer_urls]))


async def promote_a_voter(cluster: Cluster) -> bytes:
    request = pb.MemberPromoteRequest(ID=cluster.id_of(cluster.follower))
    return await call(cluster.leader, CLUSTER + "MemberPromote", request)


LEARNER_URLS = ["http://127.0.0.1:1"]


async def promote_a_learner_that_never_started(cluster: Cluster) -> bytes:
    answer = await add(cluster, pb.MemberAddRequest(peerURLs=LEARNER_URLS, isLearner=True))
    added = pb.MemberAddResponse.FromString(answer).member.ID
    return await call(cluster.leader, CLUSTER + "MemberPromote", pb.MemberPromoteRequest(ID=added))


SECOND_LEARNER = pb.MemberAddRequest(peerURLs=["http://127.0.0.1:2"], isLearner=True)


async def move_to_a_stranger(cluster: Cluster) -> bytes:
    return await call(cluster.leader, MAINTENANCE + "MoveLeader", pb.MoveLeaderRequest(targetID=12345))


async def move_from_a_follower(cluster: Cluster) -> bytes:
    target = cluster.id_of(cluster.leader)
    return await call(cluster.follower, MAINTENANCE + "MoveLeader", pb.MoveLeaderRequest(targetID=target))


async def add_to_a_cluster_that_cannot_start_more(cluster: Cluster) -> bytes:
    """The first voter is let in before it is started, to restore a cluster; then one of two is started."""
    for port in (3, 4, 5):
        request = pb.MemberAddRequest(peerURLs=[f"http://127.0.0.1:{port}"])
        await call(cluster.single, CLUSTER + "MemberAdd", request)
    return b""


async def lose_the_lease_while_waiting(cluster: Cluster) -> bytes:
    for lease in (501, 502):
        await call(cluster.leader, LEASE + "LeaseGrant", pb.LeaseGrantRequest(ID=lease, TTL=60))
    await call(cluster.leader, LOCK + "Lock", lock_pb.LockRequest(name=b"m", lease=501))
    waits = asyncio.ensure_future(
        call(cluster.follower, LOCK + "Lock", lock_pb.LockRequest(name=b"m", lease=502))
    )
    async with asyncio.timeout(10):
        while await cluster.leader.get(b"m/1f6") is None:  # noqa: ASYNC110  a queue entry has no event
            await asyncio.sleep(0.01)
    await call(cluster.leader, LEASE + "LeaseRevoke", pb.LeaseRevokeRequest(ID=502))
    await call(cluster.leader, LOCK + "Unlock", lock_pb.UnlockRequest(key=b"m/1f5"))
    return await waits


LOCK, ELECTION = "v3lockpb.Lock/", "v3electionpb.Election/"
UNKNOWN = election_pb.LeaderKey(name=b"e", key=b"e/1", rev=7, lease=1)
RELAYED: dict[str, Callable[[Cluster], Awaitable[bytes]]] = {
    "etcdserver: requested lease not found": one(LOCK + "Lock", lock_pb.LockRequest(name=b"m", lease=99)),
    "etcdserver: key is not provided": one(LOCK + "Unlock", lock_pb.UnlockRequest()),
    "mutex: session is expired": lose_the_lease_while_waiting,
    "election: no leader": one(ELECTION + "Leader", election_pb.LeaderRequest(name=b"none")),
    "election: not leader": one(ELECTION + "Proclaim", election_pb.ProclaimRequest(leader=UNKNOWN)),
    '"leader" field must be provided': one(ELECTION + "Resign", election_pb.ResignRequest()),
}
"""What the Lock and Election services say, with the code Unknown: in etcd they are clients of its store."""

KINDS = pb.DowngradeRequest
PROVOKED: dict[type[errors.KVError], Callable[[Cluster], Awaitable[bytes]]] = {
    errors.EmptyKey: one(KV + "Put", pb.PutRequest()),
    errors.KeyNotFound: one(KV + "Put", pb.PutRequest(key=b"none", ignore_value=True)),
    errors.ValueProvided: one(KV + "Put", pb.PutRequest(key=b"k", value=b"v", ignore_value=True)),
    errors.LeaseProvided: one(KV + "Put", pb.PutRequest(key=b"k", lease=1, ignore_lease=True)),
    errors.TooManyOps: one(KV + "Txn", txn(*[pb.RequestOp(request_put=PUT)] * 129)),
    errors.DuplicateKey: one(KV + "Txn", txn(*[pb.RequestOp(request_put=PUT)] * 2)),
    errors.InvalidSortOption: one(KV + "Range", pb.RangeRequest(key=b"k", sort_target=9, sort_order=1)),  # type: ignore[arg-type]  # an open enum
    errors.Compacted: compacted,
    errors.FutureRevision: one(KV + "Range", pb.RangeRequest(key=b"k", revision=10**6)),
    errors.NoSpace: lambda cluster: under_alarm(cluster, pb.NOSPACE),
    errors.LeaseNotFound: one(LEASE + "LeaseRevoke", pb.LeaseRevokeRequest(ID=99)),
    errors.LeaseExists: lease_twice,
    errors.LeaseTtlTooLarge: one(LEASE + "LeaseGrant", pb.LeaseGrantRequest(TTL=9_000_000_001)),
    errors.MemberNotFound: one(CLUSTER + "MemberRemove", pb.MemberRemoveRequest(ID=12345)),
    errors.MemberUrlsInvalid: one(CLUSTER + "MemberAdd", pb.MemberAddRequest(peerURLs=["nowhere"])),
    errors.PeerUrlsExist: add_own_url,
    errors.MemberNotLearner: promote_a_voter,
    errors.LearnerNotReady: promote_a_learner_that_never_started,
    errors.TooManyLearners: one(CLUSTER + "MemberAdd", SECOND_LEARNER),
    errors.NotEnoughStartedMembers: add_to_a_cluster_that_cannot_start_more,
    errors.NotLeader: move_from_a_follower,
    errors.BadLeaderTransferee: move_to_a_stranger,
    errors.RequestTooLarge: one(KV + "Put", pb.PutRequest(key=b"k", value=b"v" * 1_600_000)),
    errors.WrongVersionFormat: one(MAINTENANCE + "Downgrade", KINDS(action=KINDS.VALIDATE, version="x")),
    errors.InvalidDowngradeTarget: one(MAINTENANCE + "Downgrade", KINDS(action=KINDS.ENABLE, version="3.4")),
    errors.NoDowngrade: one(MAINTENANCE + "Downgrade", KINDS(action=KINDS.CANCEL)),
    errors.Corrupt: lambda cluster: under_alarm(cluster, pb.CORRUPT),
}
"""In this order: some leave something behind that the next one needs."""

ALONE: dict[type[errors.KVError], Callable[[Cluster], Awaitable[bytes]]] = {
    errors.NoLeader: lambda cluster: call(
        cluster.follower, KV + "Put", PUT, metadata=(("hasleader", "true"),)
    ),
    errors.NotAppliedInTime: one(KV + "Put", PUT, on="follower"),
    errors.ReadTimedOut: one(KV + "Range", pb.RangeRequest(key=b"k"), on="follower"),
    errors.UnhealthyCluster: one(
        CLUSTER + "MemberAdd", pb.MemberAddRequest(peerURLs=["http://127.0.0.1:5"]), on="follower"
    ),
}
"""On a member whose peers have gone."""

INSIDE: dict[type[errors.KVError], str] = {
    errors.TooManyRequests: "tests/rpc/test_kv.py",
    errors.ServerStopped: "tests/rpc/test_kv.py",
    errors.OutcomeUnknown: "tests/rpc/test_kv.py",
    errors.MemberExists: "tests/rpc/test_membership.py",
    errors.LeaderTransferTimedOut: "tests/rpc/test_membership.py",
    errors.NotSupportedForLearner: "tests/rpc/test_membership.py",
}
"""Errors that no client can provoke at will, and the test that provokes each."""

BASES = (errors.KVError, errors.RequestError, errors.ServiceError, errors.Unavailable)


def concrete() -> list[type[errors.KVError]]:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in found if issubclass(kind, errors.KVError) and kind not in BASES]


@pytest.mark.parametrize("kind", concrete())
def test_an_error_is_etcds(kind: type[errors.KVError]) -> None:
    assert TABLE.get(kind.text) == kind.code


def test_every_row_of_the_table_has_its_error() -> None:
    assert {kind.text for kind in concrete()} == set(TABLE)


def test_every_error_is_provoked_or_says_why_not() -> None:
    for kind in concrete():
        positions = [position for position in (PROVOKED, ALONE, INSIDE) if kind in position]
        assert len(positions) == 1, f"{kind.__name__} stands in {len(positions)} tables"
    for kind, test in INSIDE.items():
        assert kind.text in (ROOT / test).read_text(), f"{test} says nothing of {kind.__name__}"


async def told(provoke: Callable[[Cluster], Awaitable[bytes]], cluster: Cluster) -> tuple[int, str]:
    try:
        await provoke(cluster)
    except grpc.aio.AioRpcError as error:
        return error.code().value[0], error.details() or ""
    return 0, "no error"


@pytest.mark.asyncio
@pytest.mark.timeout(120)
async def test_real_members_say_so(members) -> None:
    patient = {"heartbeat_interval": 100, "election_timeout": 1000}  # no other member may lead meanwhile
    three = await members.start(3, **patient)
    (single,) = await members.start(1, data_dir=str(members.directory / "single"))
    leader = next(m for m in three if m.handle.status().leader == m.handle.member_id)
    first, second = (m for m in three if m is not leader)
    cluster = Cluster(leader, first, single)
    wrong = []
    for kind, provoke in PROVOKED.items():
        found = await told(provoke, cluster)
        if found != (int(kind.code), kind.text):
            wrong.append(f"{kind.__name__}: {found}")
    for text, provoke in RELAYED.items():
        found = await told(provoke, cluster)
        if found != (int(errors.Code.UNKNOWN), text):
            wrong.append(f"{text}: {found}")
    await asyncio.gather(leader.stop(), second.stop())
    async with asyncio.timeout(20):
        while first.handle.status().leader:  # noqa: ASYNC110  what is waited for has no event
            await asyncio.sleep(0.01)
    answers = await asyncio.gather(*(told(provoke, cluster) for provoke in ALONE.values()))
    for kind, found in zip(ALONE, answers, strict=True):
        if found != (int(kind.code), kind.text):
            wrong.append(f"{kind.__name__}: {found}")
    assert wrong == []

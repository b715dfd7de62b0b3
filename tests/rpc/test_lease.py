"""etcdserverpb.Lease on a member of one: what etcd answers, field by field."""

from __future__ import annotations

import asyncio
import random

import pytest

from kvstore.errors import KVError, LeaseExists, LeaseNotFound, LeaseTtlTooLarge
from kvstore.rpc.lease_service import KEEP_ALIVES_OPEN_MAX
from kvstore.testing import run_virtual
from kvstore.wire import rpc_pb2 as pb
from raft.node import NoLeader

GRANT, REVOKE = "/etcdserverpb.Lease/LeaseGrant", "/etcdserverpb.Lease/LeaseRevoke"
TTL, LEASES = "/etcdserverpb.Lease/LeaseTimeToLive", "/etcdserverpb.Lease/LeaseLeases"
KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"


@pytest.fixture
def play(bench):
    """Runs a scenario on a virtual-time loop with the lessor started."""

    def run(scenario) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            bench.member.lessor.start(loop=loop, rng=random.Random(1), election_timeout_ms=1000)
            try:
                await scenario()
            finally:
                bench.member.lessor.stop()

        run_virtual(main())

    return run


def test_grant_answers_id_and_time(bench, play) -> None:
    async def scenario() -> None:
        reply = bench.call(GRANT, pb.LeaseGrantRequest(TTL=60, ID=7))
        assert (reply.ID, reply.TTL, reply.header.revision) == (7, 60, 1)
        assert bench.call(GRANT, pb.LeaseGrantRequest()).TTL == 2
        for request, refusal in (
            (pb.LeaseGrantRequest(TTL=60, ID=7), LeaseExists),
            (pb.LeaseGrantRequest(TTL=9_000_000_001), LeaseTtlTooLarge),
        ):
            with pytest.raises(refusal):
                bench.call(GRANT, request)
        with pytest.raises(LeaseNotFound):
            bench.call(REVOKE, pb.LeaseRevokeRequest(ID=8))
        bench.call(REVOKE, pb.LeaseRevokeRequest(ID=7))
        assert 7 not in [each.ID for each in bench.call(LEASES, pb.LeaseLeasesRequest()).leases]

    play(scenario)


def test_time_to_live_reports_what_is_left_and_the_keys(bench, play) -> None:
    async def scenario() -> None:
        bench.call(GRANT, pb.LeaseGrantRequest(TTL=60, ID=7))
        for key in (b"b", b"a"):
            bench.call("/etcdserverpb.KV/Put", pb.PutRequest(key=key, lease=7))
        await asyncio.sleep(0.5)
        reply = await bench.later(TTL, pb.LeaseTimeToLiveRequest(ID=7, keys=True))
        assert (reply.ID, reply.TTL, reply.grantedTTL, list(reply.keys)) == (7, 59, 60, [b"a", b"b"])
        reply = await bench.later(TTL, pb.LeaseTimeToLiveRequest(ID=7))
        assert list(reply.keys) == []
        reply = await bench.later(TTL, pb.LeaseTimeToLiveRequest(ID=8, keys=True))
        assert (reply.ID, reply.TTL, reply.grantedTTL) == (8, -1, 0)

    play(scenario)


def test_keep_alives_are_answered_in_order_with_0_for_what_is_gone(bench, play) -> None:
    async def scenario() -> None:
        bench.call(GRANT, pb.LeaseGrantRequest(TTL=60, ID=7))
        call, inbound = bench.open(KEEP_ALIVE)
        for lease in (7, 8, 7):
            inbound.receive(pb.LeaseKeepAliveRequest(ID=lease))
        inbound.half_closed()
        assert not call.finished, "what is open is answered first"
        await asyncio.sleep(0.001)
        assert [(reply.ID, reply.TTL) for reply in call.sent] == [(7, 60), (8, 0), (7, 60)]
        assert call.finished

    play(scenario)


def test_a_flood_of_keep_alives_is_held_back(bench, play) -> None:
    async def scenario() -> None:
        call, inbound = bench.open(KEEP_ALIVE)
        for _ in range(KEEP_ALIVES_OPEN_MAX):
            assert not call.held
            inbound.receive(pb.LeaseKeepAliveRequest(ID=1))
        assert call.held
        await asyncio.sleep(0.001)
        assert not call.held
        assert len(call.sent) == KEEP_ALIVES_OPEN_MAX

    play(scenario)


def test_a_member_without_a_leader_ends_the_stream(bench, play) -> None:
    async def scenario() -> None:
        call, inbound = bench.open(KEEP_ALIVE)
        bench.node.error = NoLeader("no leader")
        inbound.receive(pb.LeaseKeepAliveRequest(ID=7))
        await asyncio.sleep(0.001)
        assert isinstance(call.result, KVError)
        assert call.result.code == 14

    play(scenario)

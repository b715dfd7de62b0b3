"""v3electionpb.Election on a member of one: what etcd 3.5 answers, to which caller and when."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from kvstore.engine import LeaseGrant, LeaseRevoke, encode
from kvstore.errors import KVError, NoLeader
from kvstore.testing import run_virtual
from kvstore.wire import v3election_pb2 as pb

CAMPAIGN, PROCLAIM, LEADER, OBSERVE, RESIGN = (
    f"/v3electionpb.Election/{name}" for name in ("Campaign", "Proclaim", "Leader", "Observe", "Resign")
)


class Electing:
    def __init__(self, bench) -> None:
        self.bench = bench
        bench.node.on_applied = bench.member.watches.applied
        bench.member.lessor.start(
            loop=asyncio.get_running_loop(), rng=random.Random(1), election_timeout_ms=1000
        )
        for lease in (1, 2, 3):
            self.apply(LeaseGrant(lease, 60))

    def apply(self, command) -> None:
        self.bench.node.propose(encode(command), lambda outcome, error: None)

    def campaign(self, lease: int, value: bytes = b""):
        return self.bench.begin(CAMPAIGN, pb.CampaignRequest(name=b"e", lease=lease, value=value))

    def observe(self):
        return self.bench.begin(OBSERVE, pb.LeaderRequest(name=b"e"))

    def leader(self):
        return self.bench.begin(LEADER, pb.LeaderRequest(name=b"e")).result

    def proclaim(self, leader, value: bytes):
        return self.bench.begin(PROCLAIM, pb.ProclaimRequest(leader=leader, value=value)).result

    def resign(self, leader):
        return self.bench.begin(RESIGN, pb.ResignRequest(leader=leader)).result

    async def quiesce(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


def play(bench, scenario: Callable[[Electing], object]) -> None:
    async def main() -> None:
        electing = Electing(bench)
        try:
            await scenario(electing)
        finally:
            bench.member.lessor.stop()

    run_virtual(main())


def refusal(result) -> tuple[int, str]:
    assert isinstance(result, KVError)
    return int(result.code), result.text


def test_candidates_lead_one_after_another(bench) -> None:
    async def scenario(electing: Electing) -> None:
        first, second = electing.campaign(1, b"a"), electing.campaign(2, b"b")
        key = first.result.leader
        assert (key.name, key.key, key.rev, key.lease) == (b"e", b"e/1", 2, 1)
        assert second.result is None
        leader = electing.leader()
        assert (leader.kv.key, leader.kv.value, leader.header.revision) == (b"e/1", b"a", 3)
        electing.resign(key)
        await electing.quiesce()
        assert second.result.leader.rev == 3
        assert second.result.header.revision == 3, (
            "etcd's header has the revision at its entry into the queue"
        )
        assert electing.leader().kv.key == b"e/2"

    play(bench, scenario)


def test_campaigning_again_proclaims_the_new_value(bench) -> None:
    async def scenario(electing: Electing) -> None:
        first = electing.campaign(1, b"a").result
        again = electing.campaign(1, b"a").result
        assert again == first
        assert bench.engine.revision == 2
        other = electing.campaign(1, b"b").result
        assert other.leader == first.leader
        assert electing.leader().kv.value == b"b"
        assert bench.engine.revision == 3

    play(bench, scenario)


def test_proclaim_and_resign_are_for_the_key_of_the_campaign_alone(bench) -> None:
    async def scenario(electing: Electing) -> None:
        leader = electing.campaign(1, b"a").result.leader
        assert electing.proclaim(leader, b"b").header.revision == 3
        stale = pb.LeaderKey(name=b"e", key=leader.key, rev=1, lease=1)
        assert refusal(electing.proclaim(stale, b"c")) == (2, "election: not leader")
        assert electing.resign(stale).header.revision == 3
        assert electing.leader().kv.value == b"b"
        assert electing.resign(leader).header.revision == 4
        assert refusal(electing.leader()) == (2, "election: no leader")
        missing = '"leader" field must be provided'
        for path, request in ((PROCLAIM, pb.ProclaimRequest(value=b"x")), (RESIGN, pb.ResignRequest())):
            assert refusal(bench.begin(path, request).result) == (2, missing)
        unknown = electing.campaign(99).result
        assert refusal(unknown) == (2, "etcdserver: requested lease not found")

    play(bench, scenario)


def test_a_candidate_whose_lease_died_is_not_told_that_it_leads(bench) -> None:
    async def scenario(electing: Electing) -> None:
        leader = electing.campaign(1, b"a").result.leader
        waiting = electing.campaign(2, b"b")
        electing.apply(LeaseRevoke(2))
        electing.resign(leader)
        await electing.quiesce()
        assert refusal(waiting.result) == (2, "election: not leader")

    play(bench, scenario)


def test_a_candidate_that_leaves_is_withdrawn(bench) -> None:
    async def scenario(electing: Electing) -> None:
        leader = electing.campaign(1, b"a").result.leader
        leaving = electing.campaign(2, b"b")
        leaving.mark_gone()
        electing.resign(leader)
        await electing.quiesce()
        assert refusal(electing.leader()) == (2, "election: no leader")

    play(bench, scenario)


def test_an_observer_is_told_every_leader_and_what_it_proclaims(bench) -> None:
    async def scenario(electing: Electing) -> None:
        call = electing.observe()
        await electing.quiesce()
        assert call.sent == []
        first = electing.campaign(1, b"a").result.leader
        electing.campaign(2, b"b")
        await electing.quiesce()
        electing.proclaim(first, b"c")
        await electing.quiesce()
        electing.resign(first)
        await electing.quiesce()
        told = [(reply.kv.key, reply.kv.value, reply.header.revision) for reply in call.sent]
        assert told == [(b"e/1", b"a", 2), (b"e/1", b"c", 4), (b"e/2", b"b", 5)]
        electing.apply(LeaseRevoke(2))
        await electing.quiesce()
        assert len(call.sent) == 3, "without a leader it waits"
        electing.campaign(3, b"d")
        await electing.quiesce()
        assert call.sent[-1].kv.key == b"e/3"
        call.mark_gone()
        assert bench.member.watches.watcher_count == 0

    play(bench, scenario)


def test_an_observer_without_space_gets_the_newest_later(bench) -> None:
    async def scenario(electing: Electing) -> None:
        leader = electing.campaign(1, b"a").result.leader
        call = electing.observe()
        await electing.quiesce()
        call.has_space = False
        for value in (b"b", b"c", b"d"):
            electing.proclaim(leader, value)
            await electing.quiesce()
        assert [reply.kv.value for reply in call.sent] == [b"a"]
        call.drain()
        assert [reply.kv.value for reply in call.sent] == [b"a", b"d"]

    play(bench, scenario)


def test_an_observer_that_has_room_again_is_not_told_older_news_behind_newer(bench) -> None:
    async def scenario(electing: Electing) -> None:
        leader = electing.campaign(1, b"a").result.leader
        call = electing.observe()
        await electing.quiesce()
        call.has_space = False
        electing.proclaim(leader, b"b")
        await electing.quiesce()
        call.has_space = True  # some of what waited was taken
        electing.proclaim(leader, b"c")
        await electing.quiesce()
        call.drain()
        assert [reply.kv.value for reply in call.sent] == [b"a", b"c"]

    play(bench, scenario)


def test_an_observer_that_asked_for_a_leader_ends_without_one(bench) -> None:
    async def scenario(electing: Electing) -> None:
        call = electing.bench.begin(OBSERVE, pb.LeaderRequest(name=b"e"), {"hasleader": "true"})
        patient = electing.observe()
        await electing.quiesce()
        bench.member.leader_loss._lost()
        assert isinstance(call.result, NoLeader)
        assert patient.result is None
        call.mark_gone()

    play(bench, scenario)

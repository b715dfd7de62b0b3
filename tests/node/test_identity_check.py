"""New disks, other members' disks and truncated logs neither vote nor acknowledge wrongly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest

from kvstore.testing import SimulatedCluster, run_virtual
from raft.core.messages import Message, MessageType
from raft.core.ready import AppendToken, AppendWork
from raft.core.types import EMPTY_HARD_STATE, ConfState, Entry, EntryId, EntryKind, SnapshotMeta
from raft.node.identity_check import (
    INCARNATIONS_KNOWN_MAX,
    IdentityCheck,
    IdentityEvents,
    PeerIncarnations,
)
from raft.node.torn_tail_guard import TornTailGuard
from raft.storage import MemoryFiles
from raft.storage.memory_files import PowerCut
from raft.storage.storage_protocol import Identity, Recovered
from raft.transport.transport_protocol import Handshake
from tests.node.scenarios import Scenario, ledger


def run(scenario: Scenario, *, size: int = 3) -> None:
    async def main() -> None:
        cluster = SimulatedCluster(seed=1, size=size)
        await scenario(cluster)
        await cluster.stop_all()

    run_virtual(main())


def test_fresh_disks_take_part_only_when_enough_others_have_spoken() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        await cluster.start(1)
        await cluster.start(2)
        await asyncio.sleep(10)
        assert [node.status().vote_eligible for node in cluster.running] == [False, False]
        assert {node.term for node in cluster.running} == {0}, "no member has even campaigned"
        await cluster.start(3)
        await cluster.wait_for_leader()
        assert all(node.status().vote_eligible for node in cluster.running)
        for member in (1, 2, 3):
            await cluster.stop(member)
        await cluster.start(2)
        await cluster.start(3)
        await cluster.wait_for_leader()

    run(scenario)


def test_a_disk_that_too_few_others_hold_on_record_takes_no_part() -> None:
    """Else the only member that holds it on record could be lost, and a second disk pass for the first."""

    async def scenario(cluster: SimulatedCluster) -> None:
        friend, shy = 1, 2
        for other in (3, 4, 5):
            cluster.network.block(shy, other)
            cluster.network.block(other, shy)
        await cluster.start_all()
        await cluster.wait_for_leader()
        await cluster.propose(friend, b"without it")
        assert not cluster.members[shy].running.status().vote_eligible, (
            "one of the three needed holds its disk"
        )
        cluster.network.heal()
        await cluster.wait_until(lambda: cluster.members[shy].running.status().vote_eligible)
        await cluster.propose(shy, b"with it")

    run(scenario, size=5)


def test_a_single_member_makes_eligible_itself() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        await cluster.start(1)
        await cluster.propose(1, b"alone")
        assert cluster.members[1].running.status().vote_eligible

    run(scenario, size=1)


def test_a_member_that_lost_its_disk_is_refused_and_cannot_vote_against_what_it_acknowledged() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        await cluster.start_all()
        leader = await cluster.wait_for_leader()
        wiped = 1 + leader.member_id % 3
        third = 1 + wiped % 3
        cluster.crash(third)
        await cluster.propose(leader.member_id, b"only on two disks")
        cluster.crash(leader.member_id)
        cluster.crash(wiped)
        cluster.members[wiped].files = MemoryFiles()
        await cluster.start(wiped)
        await cluster.start(third)
        await asyncio.sleep(20)
        assert not cluster.members[wiped].running.status().vote_eligible
        assert all(not node.is_leader for node in cluster.running), "the write would be lost"
        await cluster.start(leader.member_id)
        await cluster.wait_for_leader()
        await cluster.read_barrier(third)
        assert ledger(cluster, third) == [b"only on two disks"]
        assert not cluster.members[wiped].running.status().vote_eligible
        assert ledger(cluster, wiped) == []

    run(scenario)


def test_a_peers_disk_is_remembered_across_restarts() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        await cluster.start_all()
        await cluster.wait_for_leader()
        cluster.crash(1)
        receiver = (await cluster.start(1))._receiver
        present = cluster.members[2].running._identity_check.handshake
        handshake = replace(present, incarnation=5)
        assert (handshake.format_version, handshake.member_id) == (1, 2)
        assert receiver.on_handshake(present).refusal == ""
        other_disk = receiver.on_handshake(replace(handshake, disk_id=handshake.disk_id ^ 1))
        assert "another disk" in other_disk.refusal
        assert other_disk.earlier_disk_known
        assert "cluster" in receiver.on_handshake(replace(handshake, cluster_id=1)).refusal
        assert "format" in receiver.on_handshake(replace(handshake, format_version=2)).refusal
        assert "very member" in receiver.on_handshake(replace(handshake, member_id=1)).refusal
        # A member whose addition this one has yet to apply.
        assert receiver.on_handshake(replace(handshake, member_id=9)).refusal == ""

    run(scenario)


OURS = Handshake(format_version=1, cluster_id=1, member_id=1, disk_id=11, incarnation=1)


class Records:
    """Stands in for the log: everything is durable at once."""

    def __init__(self) -> None:
        self.vote_eligible = 0

    def record_vote_eligible(self) -> None:
        self.vote_eligible += 1

    def record_peer_disk(self, member_id: int, disk_id: int, done: Callable[[], None]) -> None:
        done()


def new_disk(log: Records, met: list[tuple[int, int, bool]], *, truncated: bool = False) -> IdentityCheck:
    recovered = Recovered(
        identity=Identity(cluster_id=1, member_id=1, disk_id=11),
        hard_state=EMPTY_HARD_STATE,
        snapshot=SnapshotMeta(0, 0, ConfState(voters=(1, 2, 3))),
        entries=(),
        tail_truncated=truncated,
        vote_eligible=False,
    )
    events = IdentityEvents(
        accepts=lambda handshake: True,
        removed=lambda member: None,
        recorded=lambda member: None,
        restarted=lambda member, incarnation, known: met.append((member, incarnation, known)),
    )
    return IdentityCheck(OURS, recovered, (1, 2, 3), log, PeerIncarnations(), events)


@pytest.mark.parametrize("truncated", [False, True])
def test_only_other_voters_that_hold_this_very_disk_make_it_eligible(truncated: bool) -> None:
    log = Records()
    identity_check = new_disk(log, [], truncated=truncated)
    for member_id, disk_id in ((9, 11), (1, 11), (3, 12), (2, 11), (2, 11)):
        identity_check.on_recorded(member_id, disk_id)
        assert not identity_check.vote_eligible, (member_id, disk_id)
    identity_check.on_recorded(3, 11)
    assert identity_check.vote_eligible
    assert log.vote_eligible == (not truncated), "the record would confirm the log, too"


def test_few_processes_of_a_member_are_remembered() -> None:
    met: list[tuple[int, int, bool]] = []
    identity_check = new_disk(Records(), met)
    first, last = 100, 100 + INCARNATIONS_KNOWN_MAX
    for incarnation in range(first, last + 1):
        identity_check.on_handshake(replace(OURS, member_id=2, disk_id=22, incarnation=incarnation))
    assert met == [(2, incarnation, False) for incarnation in range(first + 1, last + 1)]
    for incarnation, known in ((first + 1, True), (last, True), (first, False)):
        identity_check.on_handshake(replace(OURS, member_id=2, disk_id=22, incarnation=incarnation))
        assert met[-1] == (2, incarnation, known)


# ---------------------------------------------------------------------- torn tails

LAST = EntryId(4, 10)


def message(kind: MessageType, *, term: int = 5, last: EntryId = LAST, **fields: object) -> Message:
    made = Message(kind, 1, 2, term, log_term=last.term, index=last.index)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def guard() -> TornTailGuard:
    recovered = Recovered(
        identity=Identity(cluster_id=1, member_id=1, disk_id=1),
        hard_state=EMPTY_HARD_STATE,
        snapshot=SnapshotMeta(LAST.index, LAST.term, ConfState(voters=(1, 2, 3))),
        entries=(),
        tail_truncated=True,
        vote_eligible=True,
    )
    return TornTailGuard(recovered, (1, 2, 3), lambda: None)


def test_a_truncated_member_helps_no_candidate_until_every_other_has_shown_its_last_entry(
    guard: TornTailGuard,
) -> None:
    better, worse = EntryId(4, 12), EntryId(4, 11)
    assert not guard.may_step(2, 20, message(MessageType.PRE_VOTE, last=worse))
    assert not guard.may_step(2, 20, message(MessageType.VOTE_RESPONSE)), "nor itself"
    assert guard.may_step(3, 30, message(MessageType.PRE_VOTE, last=better)), "the best of all"
    assert not guard.may_step(2, 20, message(MessageType.VOTE, last=worse))
    assert not guard.may_step(3, 30, message(MessageType.VOTE_RESPONSE))
    guard.restarted(2, 21)
    assert not guard.may_step(3, 30, message(MessageType.PRE_VOTE, last=better)), "2 may hold less now"
    assert not guard.may_step(2, 21, message(MessageType.TIMEOUT_NOW))
    assert guard.may_step(2, 21, message(MessageType.APPEND))


def test_a_truncated_member_with_the_best_log_may_lead(guard: TornTailGuard) -> None:
    guard.may_step(2, 20, message(MessageType.PRE_VOTE, last=EntryId(3, 90)))
    guard.may_step(3, 30, message(MessageType.PRE_VOTE, last=EntryId(4, 10)))
    assert guard.may_step(2, 20, message(MessageType.PRE_VOTE_RESPONSE))


def work(index: int, entry_term: int, *, reject: bool = False, term: int = 5) -> AppendWork:
    entries = [Entry(entry_term, index, EntryKind.NORMAL, b"")] if entry_term else []
    response = message(MessageType.APPEND_RESPONSE, term=term, reject=reject)
    response.index = index
    return AppendWork(AppendToken(term, 1, index, entry_term), entries, responses=[response])


@pytest.mark.parametrize(
    ("done", "released"),
    [
        (work(10, 0), False),
        (work(11, 0, reject=True), False),
        (work(11, 4), True),
        (work(9, 5), True),
        (work(9, 3), False),
    ],
    ids=["at the truncation", "refused", "past the truncation", "a leader's own entry", "an older entry"],
)
def test_what_confirms_a_truncated_log(done: AppendWork, released: bool, guard: TornTailGuard) -> None:
    guard.on_durable(done)
    assert guard.active is not released


def test_a_truncated_member_acknowledges_nothing(guard: TornTailGuard) -> None:
    assert guard.outgoing(message(MessageType.APPEND_RESPONSE)) is None
    refusal = message(MessageType.APPEND_RESPONSE, reject=True)
    assert guard.outgoing(refusal) is refusal
    beat = guard.outgoing(message(MessageType.HEARTBEAT_RESPONSE, context=77))
    assert beat is not None
    assert beat.context == 0, "no read round is confirmed"


def test_a_member_with_a_truncated_tail_rejoins_and_all_three_recover_together() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        await cluster.start_all()
        await cluster.wait_for_leader()
        await cluster.propose(1, b"before")
        for truncated in ([2], [1, 2, 3]):
            leader = (await cluster.wait_for_leader()).member_id
            written = []
            # Followers first: a leader that stops takes its unsent messages with it.
            for member_id in sorted(truncated, key=lambda member_id: member_id == leader):
                cluster.members[member_id].files.fault = fail_before_sync
                written.append(cluster.propose(leader, b"." * 3000))
                await asyncio.sleep(0.02)
            for member_id in cluster.members:
                cluster.crash(member_id, choose=every_other())
            await asyncio.gather(*written, return_exceptions=True)
            await cluster.start_all()
            assert [
                m for m, member in cluster.members.items() if not member.running.status().trusted
            ] == truncated
            await cluster.wait_for_leader(30)
            await cluster.propose(3, b"after %d" % len(truncated))
            await cluster.wait_until(lambda: all(node.status().trusted for node in cluster.running))
            for member in cluster.members:
                await cluster.read_barrier(member)
                assert ledger(cluster, member)[0] == b"before"
        for member in cluster.members:
            await cluster.stop(member)
        await cluster.start_all()
        assert all(node.status().trusted for node in cluster.running), "noted durably"

    run(scenario)


def fail_before_sync(call: int, operation: str, path: str) -> PowerCut | None:
    """The record is written, and the power goes before it is durable."""
    return PowerCut() if operation == "datasync" else None


def every_other() -> Callable[[int], int]:
    """Of the sectors that were on their way, every second one arrives."""
    calls = count()
    return lambda n: next(calls) % 2

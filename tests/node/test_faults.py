"""Leaders killed, isolated, reset and silenced: which answers clients get, and how soon another leads."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest

from kvstore.testing import SimulatedCluster
from raft.core.raft_core import RaftCore
from raft.core.ready import ReadState
from raft.core.types import Role
from raft.node import Node, NodeError, NoSpace, NotApplied, OutcomeUnknown, ReadTimedOut
from raft.node.checkpointer import Checkpointer
from raft.node.failover import Failover
from raft.node.forwarding_sessions import ForwardingSessions
from raft.storage.memory_backend import MemoryBackend
from raft.transport.memory_transport import MemoryTransport
from raft.transport.transport_protocol import ForwardedBatch, Handshake, Receiver
from tests.node.scenarios import Scenario, leader_id, ledger, play


class Load:
    """Clients that write unique commands one after the other, and remember the answers."""

    loads = 0
    """Loads made so far: keeps the commands of several apart."""

    def __init__(self, cluster: SimulatedCluster, *, clients: int = 12, pause_s: float = 0.0) -> None:
        self.cluster = cluster
        self.pause_s = pause_s
        """Between an answer and the next command of one client."""
        Load.loads += 1
        self.name = Load.loads
        self.acknowledged: set[bytes] = set()
        self.unknown: set[bytes] = set()
        self.refused: set[bytes] = set()
        self.proposed = 0
        self.answered_s: list[float] = []
        """Loop time of every acknowledgement."""
        self._stopping = False
        self._tasks = [cluster.loop.create_task(self._client(n)) for n in range(clients)]

    async def _client(self, number: int) -> None:
        members = list(self.cluster.members)
        while not self._stopping:
            member_id = members[number % len(members)]
            if self.cluster.members[member_id].node is None:
                number += 1
                await asyncio.sleep(0.01)
                continue
            self.proposed += 1
            command = b"%d/%d" % (self.name, self.proposed)
            try:
                await self.cluster.propose(member_id, command)
            except OutcomeUnknown:
                self.unknown.add(command)
            except NotApplied:
                self.refused.add(command)
                await asyncio.sleep(0.01)
            else:
                self.acknowledged.add(command)
                self.answered_s.append(self.cluster.loop.time())
                if self.pause_s:
                    await asyncio.sleep(self.pause_s)

    async def finish(self) -> None:
        """Let what is in flight be answered, then check every answer against every member's history."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        order: list[bytes] = []
        for node in self.cluster.running:
            await self.cluster.read_barrier(node.member_id)
            applied = ledger(self.cluster, node.member_id)
            twice = [command for command, count in Counter(applied).items() if count > 1]
            assert not twice, f"applied twice: {twice[:5]}"
            assert self.acknowledged <= set(applied), "an acknowledged command is gone"
            assert not self.refused & set(applied), "a command said to be not applied was applied"
            shorter = min(len(order), len(applied))
            assert order[:shorter] == applied[:shorter]
            order = max(order, applied, key=len)

    def gap_after_s(self, moment_s: float) -> float:
        """From `moment_s` to the first acknowledgement that is not an answer already on its way."""
        return min(when for when in self.answered_s if when > moment_s + 0.003) - moment_s


@pytest.mark.parametrize("seed", range(8))
def test_killing_leaders_under_load_loses_and_repeats_nothing(seed: int) -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        rng = random.Random(seed)
        load = Load(cluster, pause_s=0.005)
        for _ in range(6):
            await asyncio.sleep(rng.uniform(0.02, 0.3))
            dead = (await cluster.wait_for_leader()).member_id
            cluster.crash(dead, power=rng.random() < 0.5)
            if rng.random() < 0.5:
                await asyncio.sleep(rng.uniform(0.0, 0.5))
            else:
                await cluster.wait_for_leader()
            await cluster.start(dead)
        await cluster.wait_for_leader()
        await load.finish()
        assert len(load.acknowledged) > 500

    play(scenario, seed=seed)


@pytest.mark.parametrize("seed", range(8))
def test_partitions_resets_and_kills_under_load_lose_and_repeat_nothing(seed: int) -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        rng = random.Random(seed)
        load = Load(cluster, pause_s=0.02)
        members = list(cluster.members)
        for _ in range(10):
            await asyncio.sleep(rng.uniform(0.0, 1.5))
            fault = rng.randrange(5)
            one, other = rng.sample(members, 2)
            if fault == 0:
                cluster.network.isolate(rng.choice(members))
            elif fault == 1:
                cluster.network.block(one, other)
            elif fault == 2:
                cluster.network.heal()
            elif fault == 3:
                cluster.network.disconnect(one, other)
            elif cluster.members[one].node is not None:
                cluster.crash(one)
                await asyncio.sleep(rng.uniform(0.0, 1.0))
                await cluster.start(one)
        cluster.network.heal()
        await cluster.wait_for_leader(30)
        await load.finish()
        assert len(load.acknowledged) > 300

    play(scenario, seed=seed)


def test_writes_in_flight_on_the_survivors_outlive_the_leader() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        for iteration in range(5):
            dead = (await cluster.wait_for_leader()).member_id
            survivors = [member for member in cluster.members if member != dead]
            futures = [cluster.propose(survivors[n % 2], b"%d-%d" % (iteration, n)) for n in range(100)]
            await asyncio.sleep(0.0007)  # forwarded, under way
            cluster.crash(dead)
            await asyncio.gather(*futures)
            for survivor in survivors:
                await cluster.read_barrier(survivor)
                assert max(Counter(ledger(cluster, survivor)).values()) == 1
            await cluster.start(dead)

    play(scenario)


def test_without_the_leaders_memory_of_positions_repeats_would_be_applied_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control of the outcome rule: a leader that takes every batch it is sent applies twice."""

    def take_everything(self: object, member_id: int, batch: ForwardedBatch, leading_term: int) -> None:
        if leading_term == batch.term:
            session = _Any(member_id)
            self.waiting.append((session, batch))  # type: ignore[attr-defined]  # a broken leader

    class _Any:
        def __init__(self, member_id: int) -> None:
            self.member_id = member_id
            self.pending: list[ForwardedBatch] = []

    monkeypatch.setattr("raft.node.forwarding_sessions.ForwardingSessions.on_batch", take_everything)
    monkeypatch.setattr(ForwardingSessions, "on_batch", take_everything)
    monkeypatch.setattr(ForwardingSessions, "step_down", lambda self: self.waiting.clear() or [])
    with pytest.raises(AssertionError, match="applied twice"):
        play(resets_under_load(3), seed=3)


def resets_under_load(seed: int) -> Scenario:
    async def scenario(cluster: SimulatedCluster) -> None:
        rng = random.Random(seed)
        leader = leader_id(cluster)
        term = cluster.members[leader].running.term
        load = Load(cluster, clients=30)
        others = [member for member in cluster.members if member != leader]
        for _ in range(100):
            await asyncio.sleep(rng.uniform(0.0, 0.05))
            pair = [leader, rng.choice(others)]
            rng.shuffle(pair)
            cluster.network.disconnect(*pair)
        await load.finish()
        assert {node.term for node in cluster.running} == {term}
        assert not load.unknown
        assert len(load.acknowledged) > 1000

    return scenario


@pytest.mark.parametrize("seed", [3, 4])
def test_a_hundred_resets_of_a_living_leaders_streams_change_no_term_and_lose_nothing(seed: int) -> None:
    play(resets_under_load(seed), seed=seed)


def test_a_dead_leader_is_replaced_in_a_fraction_of_the_election_timeout() -> None:
    gaps: list[float] = []

    async def scenario(cluster: SimulatedCluster) -> None:
        for _ in range(3):
            await cluster.wait_for_leader()
            load = Load(cluster, pause_s=0.002)
            await asyncio.sleep(0.2)
            dead = leader_id(cluster)
            killed_s = cluster.loop.time()
            cluster.crash(dead)
            await asyncio.sleep(0.6)
            await load.finish()
            gaps.append(load.gap_after_s(killed_s))
            await cluster.start(dead)
            await asyncio.sleep(0.5)

    for seed in range(4):
        play(scenario, seed=seed)
    gaps.sort()
    print([round(gap * 1000) for gap in gaps])
    assert gaps[len(gaps) // 2] < 0.05
    assert gaps[-1] < 0.5


def test_silence_takes_the_election_timeout() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        leader = await cluster.wait_for_leader()
        begun_s = cluster.loop.time()
        cluster.network.isolate(leader.member_id)
        await cluster.wait_until(
            lambda: any(n.is_leader and n.term > leader.term for n in cluster.running if n is not leader)
        )
        assert 0.9 < cluster.loop.time() - begun_s < 4.0
        assert not [n for n in cluster.running if n is not leader and n.leader == leader.member_id]
        await cluster.wait_until(lambda: not leader.is_leader, what="the old leader's own verdict")

    play(scenario)


def test_a_probe_that_meets_silence_changes_nothing() -> None:
    """A stream that ends behind a partition is no evidence: the election timeout decides, not the probe."""

    async def scenario(cluster: SimulatedCluster) -> None:
        leader = leader_id(cluster)
        term = cluster.members[leader].running.term
        cluster.network.isolate(leader)
        for member in cluster.members:
            if member != leader:
                cluster.network.disconnect(member, leader)
                cluster.network.disconnect(leader, member)
        await asyncio.sleep(0.85)
        assert {(node.term, node.leader) for node in cluster.running} == {(term, leader)}

    play(scenario)


def test_a_stopped_leader_is_replaced_at_once() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        leader = leader_id(cluster)
        begun_s = cluster.loop.time()
        await cluster.stop(leader)
        await cluster.wait_for_leader()
        assert cluster.loop.time() - begun_s < 0.3

    play(scenario)


def test_a_fast_round_that_is_lost_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first campaign meets voters still following the dead leader; the retry elects with no timeout."""
    campaigns = 0
    genuine = RaftCore.campaign

    def campaign(self: RaftCore) -> None:
        nonlocal campaigns
        campaigns += 1
        if campaigns > 2:
            genuine(self)

    async def scenario(cluster: SimulatedCluster) -> None:
        monkeypatch.setattr(RaftCore, "campaign", campaign)
        begun_s = cluster.loop.time()
        cluster.crash(leader_id(cluster))
        await cluster.wait_for_leader()
        assert campaigns > 2
        assert cluster.loop.time() - begun_s < 0.9

    play(scenario)


def test_a_plan_to_campaign_ends_when_a_leader_is_known() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        cluster.crash(leader_id(cluster))
        await cluster.wait_for_leader()
        term = cluster.running[0].term
        await asyncio.sleep(3)
        assert {node.term for node in cluster.running} == {term}
        for node in cluster.running:
            failover = node._failover
            assert isinstance(failover, Failover)
            assert failover._campaign is None

    play(scenario)


# ---------------------------------------------------------------------- reads


def stale_reads_scenario(stale: list[bytes]) -> Scenario:
    """Isolate a leader from the others only; it still believes that it leads, and is sent reads."""

    async def one_iteration(cluster: SimulatedCluster, command: bytes) -> None:
        old = await cluster.wait_for_leader()
        cluster.network.isolate(old.member_id)
        one, other = (node for node in cluster.running if node is not old)
        other._inbox.post(other._core.forget_leader)
        one._inbox.post(one._core.forget_leader)
        await asyncio.sleep(0.001)
        one._inbox.post(one._core.campaign)
        await cluster.wait_until(lambda: one.is_leader)
        assert old.is_leader, "it still believes that it leads"
        await cluster.propose(one.member_id, command)
        for read in [cluster.read_barrier(old.member_id) for _ in range(20)]:
            try:
                await read
            except ReadTimedOut:
                continue
            if command not in ledger(cluster, old.member_id):
                stale.append(command)
        cluster.network.heal()
        await cluster.wait_until(lambda: command in ledger(cluster, old.member_id))

    async def scenario(cluster: SimulatedCluster) -> None:
        for iteration in range(5):
            await one_iteration(cluster, b"new %d" % iteration)

    return scenario


def test_an_isolated_leader_answers_no_read_from_the_past() -> None:
    stale: list[bytes] = []
    play(stale_reads_scenario(stale))
    assert stale == []


def test_without_the_quorum_check_the_same_reads_are_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a leader that confirms its rounds by itself serves the past."""
    genuine = RaftCore.read_index

    def unconfirmed(self: RaftCore, context: int) -> None:
        if self.role is Role.LEADER:
            state = self._state
            state.read_states.append(ReadState(context, state.log.committed))
        else:
            genuine(self, context)

    monkeypatch.setattr(RaftCore, "read_index", unconfirmed)
    stale: list[bytes] = []
    play(stale_reads_scenario(stale))
    assert stale


def test_reads_whose_round_is_lost_are_asked_again() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        leader = leader_id(cluster)
        [follower, _] = [member for member in cluster.members if member != leader]
        cluster.network.conditions(follower, leader).drop_probability = 1.0
        read = cluster.read_barrier(follower)
        begun_s = cluster.loop.time()
        await asyncio.sleep(0.1)
        cluster.network.conditions(follower, leader).drop_probability = 0.0
        await read
        assert 0.4 < cluster.loop.time() - begun_s < 0.8
        assert cluster.members[follower].running.status().statistics.read_rounds == 2

    play(scenario)


def test_reads_survive_the_death_of_the_leader() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        for _ in range(5):
            dead = (await cluster.wait_for_leader()).member_id
            survivors = [member for member in cluster.members if member != dead]
            reads = [cluster.read_barrier(survivor) for survivor in survivors for _ in range(10)]
            cluster.crash(dead)
            await asyncio.gather(*reads)
            await cluster.start(dead)

    play(scenario)


def test_many_reads_share_few_rounds() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        node = cluster.members[1].running

        async def reader() -> None:
            for _ in range(20):
                await cluster.read_barrier(1)

        await asyncio.gather(*(reader() for _ in range(50)))
        statistics = node.status().statistics
        assert statistics.reads == 1000
        assert statistics.read_rounds <= 60

    play(scenario)


# ---------------------------------------------------------------------- disk


def test_a_leader_whose_sync_hangs_hands_over_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        sick = leader_id(cluster)
        writer = cluster.members[sick].writer
        assert writer is not None
        hanging = True
        monkeypatch.setattr(writer, "stalled_seconds", lambda: 0.6 if hanging else 0.0)
        genuine = writer.submit
        held: list[tuple[object, object]] = []
        monkeypatch.setattr(writer, "submit", lambda work, done: held.append((work, done)))
        begun_s = cluster.loop.time()
        await cluster.wait_until(lambda: any(n.is_leader and n.member_id != sick for n in cluster.running))
        assert cluster.loop.time() - begun_s < 1.5
        await cluster.propose(1 + sick % 3, b"without the sick one")
        hanging = False
        monkeypatch.setattr(writer, "submit", genuine)
        for work, done in held:
            genuine(work, done)  # type: ignore[arg-type]  # as they were given
        await cluster.wait_until(lambda: b"without the sick one" in ledger(cluster, sick))
        assert len({node.leader for node in cluster.running}) == 1

    play(scenario)


def test_a_failed_write_of_the_log_ends_the_member_and_is_unknown_to_its_clients() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        sick = leader_id(cluster)
        member = cluster.members[sick]
        node = member.running
        member.files.fault = lambda call, operation, path: OSError(5, "input/output error", path)
        with pytest.raises(OutcomeUnknown):
            await cluster.propose(sick, b"lost?")
        assert len(member.failures) == 1
        with pytest.raises(NodeError):
            await cluster.read_barrier(sick)
        await node.stop()
        member.node = None
        cluster.network.crash(sick)
        member.files.restart()
        await cluster.wait_for_leader()
        await cluster.start(sick)
        await cluster.propose(sick, b"after")

    play(scenario)


def test_a_leader_without_space_for_its_log_lets_another_lead_and_comes_back() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        sick = leader_id(cluster)
        node = cluster.members[sick].running
        node.on_log_space(False)
        await cluster.wait_until(lambda: any(n.is_leader and n is not node for n in cluster.running), 0.5)
        await cluster.propose(sick, b"through the new leader")
        for member in cluster.members:
            if member != sick:
                cluster.crash(member)
        await asyncio.sleep(5)
        assert node.status().role is Role.FOLLOWER, "it does not even ask for pre-votes"
        node.on_log_space(True)
        for member in cluster.members:
            if member != sick:
                await cluster.start(member)
        await cluster.wait_for_leader()
        await cluster.propose(sick, b"again")

    play(scenario)


@pytest.mark.parametrize("position", [0, 1])
def test_leadership_goes_to_the_member_that_has_space(position: int) -> None:
    """Whichever it is: a member without space takes no leadership from another one."""

    async def scenario(cluster: SimulatedCluster) -> None:
        first = leader_id(cluster)
        others = [member for member in cluster.members if member != first]
        well = others.pop(position)
        for member in (*others, first):
            cluster.members[member].running.on_log_space(False)
        # One transfer may go to the sick one, in vain; it is given up after an election timeout.
        await cluster.wait_until(lambda: cluster.members[well].running.is_leader, 5.0)
        for member in cluster.members:
            await cluster.propose(member, b"where there is space %d" % member)

    play(scenario)


def test_when_no_member_has_room_one_leads_all_the_same_and_reads_are_served() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        await cluster.propose(1, b"written while there was space")
        for member in cluster.members:
            cluster.crash(member)
        for member in cluster.members:
            (await cluster.start(member)).on_log_space(False)
        await cluster.wait_until(lambda: cluster.leader() is not None, 30.0)
        for member in cluster.members:
            await cluster.read_barrier(member)
            with pytest.raises(NoSpace):
                await cluster.propose(leader_id(cluster), b"no space")

    play(scenario)


def test_what_the_log_reports_while_the_state_is_loaded_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log's writer works before the node does: its first report may be that the disk is bad or full."""
    genuine = Checkpointer.load
    reports: list[Callable[[Node], None]] = []
    starting: list[Node] = []

    async def load(checkpointer: Checkpointer) -> None:
        for report in reports:
            report(starting[-1])
        await genuine(checkpointer)

    monkeypatch.setattr(Checkpointer, "load", load)

    async def scenario(cluster: SimulatedCluster) -> None:
        monkeypatch.setattr(cluster, "serve", lambda member_id, node: starting.append(node))
        cluster.crash(1)
        reports.append(lambda node: node.on_log_space(False))
        node = await cluster.start(1)
        await cluster.wait_for_leader()
        with pytest.raises(NoSpace):
            await cluster.propose(1, b"no space")
        node.on_log_space(True)
        await cluster.propose(1, b"space")
        cluster.crash(1)
        failures = len(cluster.members[1].failures)
        reports[:] = [lambda node: node.fail("the disk is gone")]
        await cluster.start(1)
        await cluster.wait_until(lambda: len(cluster.members[1].failures) > failures)
        assert cluster.members[1].failures[-1] == "the disk is gone"

    play(scenario, size=1)


def test_what_ends_a_member_while_it_starts_leaves_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = MemoryTransport.start
    ended: list[int] = []
    starting: list[Node] = []

    async def start(self: MemoryTransport, handshake: Handshake, receiver: Receiver) -> None:
        await genuine(self, handshake, receiver)
        starting[0].fail("the disk is gone")
        ended.append(starting[0]._iterations)

    async def scenario(cluster: SimulatedCluster) -> None:
        cluster.crash(1)
        monkeypatch.setattr(cluster, "serve", lambda member_id, node: starting.append(node))
        monkeypatch.setattr(MemoryTransport, "start", start)
        node = await cluster.start(1)
        assert cluster.members[1].failures[-1] == "the disk is gone"
        await asyncio.sleep(1)
        assert node._tick_timer is not None
        assert node._tick_timer.cancelled()
        assert [node._iterations] == ended, "it does nothing more"

    play(scenario, size=1)


def test_a_member_that_cannot_listen_does_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(self: MemoryTransport, handshake: Handshake, receiver: Receiver) -> None:
        raise OSError("the address is taken")

    async def scenario(cluster: SimulatedCluster) -> None:
        cluster.crash(1)
        with monkeypatch.context() as patched:
            patched.setattr(MemoryTransport, "start", start)
            with pytest.raises(OSError, match="taken"):
                await cluster.start(1)
        node = cluster.members[1].running
        assert node.failed
        assert node._tick_timer is not None
        assert node._tick_timer.cancelled()
        await node.stop()

    play(scenario, size=1)


def test_a_step_of_stopping_that_fails_keeps_none_of_the_others_from_being_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def close(self: MemoryTransport) -> None:
        raise OSError("injected")

    async def scenario(cluster: SimulatedCluster) -> None:
        member = cluster.members[1]
        await cluster.propose(1, b"k")
        with monkeypatch.context() as patched:
            patched.setattr(MemoryTransport, "close", close)
            with pytest.raises(OSError, match="injected"):
                await member.running.stop()
        state = member.running._checkpointer.backend
        assert isinstance(state, MemoryBackend)
        assert state._closed
        assert member.writer is not None
        assert member.writer._closing

    play(scenario, size=1)


def test_a_single_member_without_space_refuses_writes_and_serves_reads() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        node = cluster.members[1].running
        node.on_log_space(False)
        with pytest.raises(NoSpace):
            await cluster.propose(1, b"no space")
        await cluster.read_barrier(1)
        node.on_log_space(True)
        await cluster.propose(1, b"space")

    play(scenario, size=1)

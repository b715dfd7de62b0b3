"""A member that lags behind the log receives a snapshot, whatever happens meanwhile."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from kvstore.testing import SimulatedCluster
from kvstore.testing.simulation import CLUSTER_ID, SimulatedNode
from raft.core.confchange import ConfChange, ConfStep, ConfStepKind
from raft.core.messages import Message, MessageType
from raft.core.types import SnapshotMeta
from raft.node import NodeConfig, OutcomeUnknown
from raft.storage.snapshot_store import SNAPSHOT_PREFIX, state_name
from raft.transport import snapshot_stream
from raft.transport.transport_protocol import SnapshotOffer, SnapshotRefused
from tests.node.scenarios import ledger, play

STEP = 16
TAIL = 8
WRITES = 120
CHUNK = 256
"""Small, so that a snapshot of these tests is sent in some dozen chunks."""
IN_TIME_S = 60.0


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_stream, "SNAPSHOT_CHUNK_BYTES", CHUNK)


def config(member_id: int) -> NodeConfig:
    return NodeConfig(
        member_id=member_id,
        cluster_id=CLUSTER_ID,
        compaction_entries=STEP,
        catchup_entries=TAIL,
        checkpoint_ms=50,
    )


def installed(node: SimulatedNode) -> int:
    return node.status().snapshots.installed


async def left_behind(cluster: SimulatedCluster) -> int:
    """Crash a follower, write on, wait until the log has forgotten what it lacks; the follower."""
    leader = await cluster.wait_for_leader()
    down = next(member for member in cluster.members if member != leader.member_id)
    last = cluster.members[down].running.applied
    cluster.crash(down)
    for n in range(WRITES):
        await cluster.propose(leader.member_id, b"write %d" % n)
    await cluster.wait_until(
        lambda: all(node.status().first_index > last + 1 for node in cluster.running),
        IN_TIME_S,
        "the log to forget",
    )
    return down


async def caught_up(cluster: SimulatedCluster, member: int) -> None:
    await cluster.wait_until(
        lambda: len({node.applied for node in cluster.running}) == 1, IN_TIME_S, "everybody at one index"
    )
    await cluster.read_barrier(member)
    ledgers = [ledger(cluster, node.member_id) for node in cluster.running]
    assert all(each == ledgers[0] for each in ledgers)
    assert len(set(ledgers[0])) == len(ledgers[0]) >= WRITES, "nothing lost, nothing applied twice"


def files_of(cluster: SimulatedCluster, member: int) -> list[str]:
    return [name for name in cluster.members[member].files.list("/data") if name.endswith(".db")]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_member_behind_the_log_is_brought_a_snapshot_while_writes_go_on(seed: int) -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        down = await left_behind(cluster)
        node = await cluster.start(down)
        told: list[int] = []
        node.subscribe_installed(told.append)
        leader = await cluster.wait_for_leader()
        n = 0
        while not installed(node):
            n += 1
            assert n < 5000, "the snapshot never arrives"
            await cluster.propose(leader.member_id, b"meanwhile %d" % n)
        await cluster.propose(down, b"from the newcomer")
        await caught_up(cluster, down)
        assert len(told) == installed(node) >= 1
        assert told[0] >= WRITES
        sender = next(n for n in cluster.running if n.status().snapshots.sent)
        assert sender.status().snapshots.sent_bytes >= WRITES
        await cluster.wait_until(lambda: len(files_of(cluster, down)) == 1, IN_TIME_S, "the old file to go")
        assert files_of(cluster, down)[0].startswith("state-")
        # And it starts again from there.
        cluster.crash(down)
        await cluster.start(down)
        await cluster.propose(down, b"after a restart")
        await caught_up(cluster, down)
        for member in cluster.members:
            await cluster.wait_until(
                lambda member=member: (
                    not any(name.startswith(SNAPSHOT_PREFIX) for name in files_of(cluster, member))
                ),
                IN_TIME_S,
                "the copies to go",
            )

    play(scenario, seed=seed, config=config)


def receiving(node: SimulatedNode) -> int:
    """Bytes of a snapshot that are here."""
    under_way = node.status().snapshots.receiving
    return under_way[0] if under_way is not None else -1


def test_a_transfer_survives_an_interruption_at_every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on where it stopped: no byte is written twice."""
    monkeypatch.setattr(snapshot_stream, "SNAPSHOT_CHUNKS_IN_FLIGHT", 1)

    async def scenario(cluster: SimulatedCluster) -> None:
        down = await left_behind(cluster)
        node = await cluster.start(down)
        leader = await cluster.wait_for_leader()
        slow = cluster.network.conditions(leader.member_id, down)
        slow.delay_min_s = slow.delay_max_s = 0.03  # some looks per chunk
        resets, seen = 0, 0
        while not installed(node):
            await cluster.wait_until(
                lambda seen=seen: receiving(node) > seen or installed(node) > 0, IN_TIME_S, "the next chunk"
            )
            seen = receiving(node)
            resets += cluster.network.disconnect_snapshots(leader.member_id, down)
        await caught_up(cluster, down)
        assert resets > 5
        counted, sent = node.status().snapshots, leader.status().snapshots
        assert (counted.installed, sent.built) == (1, 1)
        assert counted.received_bytes == sent.sent_bytes >= resets * CHUNK

    play(scenario, seed=3, config=config)


def test_a_leader_that_dies_amid_a_transfer_is_replaced_and_so_is_its_snapshot() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        down = await left_behind(cluster)
        node = await cluster.start(down)
        leader = await cluster.wait_for_leader()
        slow = cluster.network.conditions(leader.member_id, down)
        slow.delay_min_s = slow.delay_max_s = 0.03
        await cluster.wait_until(lambda: receiving(node) >= 0, IN_TIME_S, "half a snapshot")
        assert not installed(node)
        cluster.crash(leader.member_id)
        await cluster.wait_until(lambda: installed(node) > 0, IN_TIME_S, "the snapshot of another leader")
        await cluster.start(leader.member_id)
        await caught_up(cluster, down)
        await cluster.wait_until(lambda: len(files_of(cluster, down)) == 1, IN_TIME_S, "one file")

    play(scenario, seed=4, config=config)


@pytest.mark.parametrize("seed", range(10, 40))
def test_the_receiver_may_crash_at_any_moment(seed: int) -> None:
    """Again and again, at random moments of the transfer and the installation."""

    async def scenario(cluster: SimulatedCluster) -> None:
        down = await left_behind(cluster)
        files = cluster.members[down].files
        for _ in range(4):
            await cluster.start(down)
            await cluster.wait_for_leader()
            at = files.calls + cluster.rng.randrange(1, 90)
            end_s = cluster.loop.time() + 5.0
            await cluster.wait_until(
                lambda at=at, end_s=end_s: files.calls >= at or cluster.loop.time() > end_s, IN_TIME_S
            )
            cluster.crash(down)
        node = await cluster.start(down)
        await caught_up(cluster, down)
        assert installed(node) or any(name.startswith("state-") for name in files_of(cluster, down))

    play(scenario, seed=seed, config=config)


def test_commands_that_a_snapshot_jumps_over_are_unknown_and_the_next_ones_go_through() -> None:
    """A member proposes, is isolated before the answer, and receives the state as a snapshot."""

    async def scenario(cluster: SimulatedCluster) -> None:
        leader = await cluster.wait_for_leader()
        apart = next(member for member in cluster.members if member != leader.member_id)
        others = [member for member in cluster.members if member != apart]
        for other in others:
            cluster.network.block(other, apart)  # it can speak and does not hear
        superseded = cluster.propose(apart, b"superseded")
        await cluster.wait_until(
            lambda: b"superseded" in ledger(cluster, leader.member_id), IN_TIME_S, "it applied"
        )
        last = cluster.members[apart].running.applied
        n = 0
        while min(cluster.members[other].running.status().first_index for other in others) <= last + 1:
            n += 1
            await cluster.propose(leader.member_id, b"write %d" % n)
        for n in range(WRITES):
            await cluster.propose(leader.member_id, b"more %d" % n)
        for other in others:
            cluster.network.disconnect(other, apart)  # what was under way is lost
            cluster.network.unblock(other, apart)
        node = cluster.members[apart].running
        await cluster.wait_until(lambda: installed(node) > 0, IN_TIME_S, "the snapshot")
        with pytest.raises(OutcomeUnknown):
            await superseded
        for n in range(3):
            assert await cluster.propose(apart, b"after %d" % n)
        await caught_up(cluster, apart)

    play(scenario, seed=5, config=config)


def test_a_member_that_joins_after_the_log_was_compacted_begins_with_a_snapshot() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        leader = await cluster.wait_for_leader()
        for n in range(WRITES):
            await cluster.propose(leader.member_id, b"write %d" % n)
        await cluster.wait_until(
            lambda: min(node.status().first_index for node in cluster.running) > 2, IN_TIME_S, "compaction"
        )
        step = ConfStep(ConfStepKind.ADD_LEARNER, 4)
        await cluster.change(leader.member_id, ConfChange((step,)), b"learner 4")
        cluster.add(4)
        node = await cluster.start(4)
        await cluster.wait_until(lambda: installed(node) > 0, IN_TIME_S, "the snapshot")
        await cluster.propose(4, b"from the learner")
        await caught_up(cluster, 4)
        assert node.status().conf.learners == (4,), "the configuration came with the snapshot"
        cluster.crash(4)
        await cluster.start(4)
        await cluster.propose(4, b"after a restart")
        await caught_up(cluster, 4)

    play(scenario, seed=6, config=config)


def test_a_full_disk_refuses_the_snapshot_and_takes_it_later() -> None:
    """The disk has space for the log, not for a snapshot: the member goes on, a later attempt succeeds."""

    async def scenario(cluster: SimulatedCluster) -> None:
        down = await left_behind(cluster)
        node = await cluster.start(down)
        files = cluster.members[down].files

        def full(call: int, operation: str, path: str) -> OSError | None:
            is_snapshot = path.rpartition("/")[2].startswith("state-")
            return OSError(errno.ENOSPC, "full") if is_snapshot and operation in ("open", "pwrite") else None

        files.fault = full
        await cluster.wait_until(
            lambda: node.status().snapshots.receive_failures > 0, IN_TIME_S, "a failed attempt"
        )
        assert not node.failed
        assert not installed(node)
        files.fault = None
        await caught_up(cluster, down)
        assert installed(node) == 1

    play(scenario, seed=7, config=config)


def test_of_two_snapshots_on_their_way_the_newer_wins() -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        leader = await cluster.wait_for_leader()
        here = next(node for node in cluster.running if node is not leader)
        handshake = cluster.members[leader.member_id].transport.handshake  # type: ignore[union-attr]  # it runs
        conf = here.status().conf

        def offer(index: int, *, sender: int = leader.member_id, term: int = leader.term) -> SnapshotOffer:
            meta = SnapshotMeta(index, leader.term, conf)
            message = Message(MessageType.SNAPSHOT, here.member_id, sender, term, snapshot=meta)
            return SnapshotOffer(message, 3 * CHUNK, b"%d" % index)

        take = here.snapshots.on_snapshot
        first = take(handshake, offer(1000))
        assert await first.open() == 0
        await first.write(bytes(CHUNK))
        again = take(handshake, offer(1000))
        assert await again.open() == CHUNK, "another attempt goes on"
        with pytest.raises(SnapshotRefused, match="superseded"):
            await first.write(bytes(CHUNK))
        newer = take(handshake, offer(2000))
        assert await newer.open() == 0
        with pytest.raises(SnapshotRefused, match="superseded"):
            await again.write(bytes(CHUNK))
        for older in (offer(1000), offer(1999)):
            with pytest.raises(SnapshotRefused, match="newer snapshot"):
                take(handshake, older)
        await cluster.wait_until(
            lambda: files_of(cluster, here.member_id) == [state_name(2000), "state.db"], IN_TIME_S, "one file"
        )
        later_term = take(handshake, offer(1500, term=leader.term + 1))
        assert await later_term.open() == 0, "the leader of a later term knows better"
        for wrong, words in (
            (offer(3000, sender=9), "not meant"),
            (offer(3000, term=0), "is over"),
        ):
            with pytest.raises(SnapshotRefused, match=words):
                take(handshake, wrong)
        with pytest.raises(SnapshotRefused, match="not known by this incarnation"):
            take(replace(handshake, incarnation=1), offer(3000))
        # One that lies about its checksum never gets near the state.
        for _ in range(3):
            await later_term.write(bytes(CHUNK))
        with pytest.raises(SnapshotRefused, match="not the one that was sent"):
            await later_term.finish()
        assert not installed(here)
        # And one whose sender never comes back is forgotten.
        left = take(handshake, offer(4000))
        await left.open()
        left.release()
        await cluster.wait_until(
            lambda: files_of(cluster, here.member_id) == ["state.db"], 2 * IN_TIME_S, "it to be forgotten"
        )

    play(scenario, seed=8, config=config)

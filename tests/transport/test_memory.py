"""Faults of the in-memory network, on virtual time: every wait here costs nothing."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from raft.core.messages import Message, MessageType
from raft.transport.liveness import BACKOFF_MAX_S, HANDSHAKE_TIMEOUT_S, PROBE_TIMEOUT_S, SILENCE_TIMEOUT_S
from raft.transport.memory_transport import MemoryTransport, Network
from raft.transport.transport_protocol import ForwardedBatch, Handshake, HandshakeReply, Liveness, PeerMessage


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer as soon as nothing else is left to do."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def time(self) -> float:
        return self.now_s

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled  # type: ignore[attr-defined]  # private to asyncio
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]  # private to asyncio
        if not ready and scheduled:
            self.now_s = max(self.now_s, scheduled[0]._when)
        super()._run_once()  # type: ignore[misc]  # private to asyncio


class Member:
    """A transport and its receiver, which records (time, event)."""

    def __init__(self, network: Network, member_id: int, incarnation: int) -> None:
        self.loop = network.loop
        self.handshake = Handshake(
            format_version=1, cluster_id=1, member_id=member_id, disk_id=member_id, incarnation=incarnation
        )
        self.transport: MemoryTransport = network.transport()
        self.events: list[tuple[float, str, int, Any]] = []

    def note(self, event: str, member_id: int, value: Any = None) -> None:
        self.events.append((round(self.loop.time(), 6), event, member_id, value))

    def times(self, event: str) -> list[float]:
        return [when for when, name, _, _ in self.events if name == event]

    def received(self) -> list[PeerMessage]:
        return [value for _, name, _, value in self.events if name == "message"]

    def on_handshake(self, handshake: Handshake) -> HandshakeReply:
        self.note("handshake", handshake.member_id)
        return HandshakeReply(handshake=self.handshake, earlier_disk_known=False)

    def on_answer(self, member_id: int, answer: HandshakeReply) -> None:
        self.note("answer", member_id)

    def on_message(self, member_id: int, incarnation: int, message: PeerMessage) -> None:
        self.note("message", member_id, message)

    def on_connected(self, member_id: int) -> None:
        self.note("connected", member_id)

    def on_disconnected(self, member_id: int) -> None:
        self.note("disconnected", member_id)

    def on_dropped(self, member_id: int, message: PeerMessage) -> None:
        self.note("dropped", member_id, message)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


async def three(seed: int = 1, **delays: float) -> tuple[Network, list[Member]]:
    network = Network(asyncio.get_running_loop(), random.Random(seed), **delays)
    members = [Member(network, member_id, member_id * 10) for member_id in (1, 2, 3)]
    for member in members:
        for other in members:
            if other is not member:
                member.transport.set_peer(other.handshake.member_id, ())
        await member.transport.start(member.handshake, member)
    await asyncio.sleep(1)
    assert all(len(member.transport.connected_peers()) == 2 for member in members)
    return network, members


def heartbeat(term: int, source: int = 1, target: int = 2) -> Message:
    return Message(MessageType.HEARTBEAT, to=target, from_=source, term=term)


def test_delay_is_drawn_from_the_range_and_keeps_order() -> None:
    async def main() -> None:
        _, (first, second, _) = await three(delay_min_s=0.01, delay_max_s=0.05)
        began = asyncio.get_running_loop().time()
        for term in range(50):
            first.transport.send(2, heartbeat(term))
        await asyncio.sleep(1)
        assert second.received() == [heartbeat(term) for term in range(50)]
        delays = [when - began for when in second.times("message")]
        assert min(delays) >= 0.01
        assert 0.02 < max(delays) <= 0.05 + 1e-6

    run(main())


def test_a_partition_is_silence_then_both_ends_give_up_and_come_back_after_healing() -> None:
    async def main() -> None:
        network, (first, second, third) = await three(delay_min_s=0.001, delay_max_s=0.001)
        began = asyncio.get_running_loop().time()
        network.partition([1], [2, 3])
        assert first.transport.send(2, heartbeat(1))
        await asyncio.sleep(SILENCE_TIMEOUT_S * 0.9)
        assert first.times("disconnected") == second.times("disconnected") == []
        assert second.received() == []
        assert await first.transport.probe(2) is Liveness.UNREACHABLE
        await asyncio.sleep(60)
        assert first.times("disconnected") == pytest.approx([began + SILENCE_TIMEOUT_S] * 4)
        assert not first.transport.send(2, heartbeat(2))
        assert third.transport.connected_peers() == frozenset({2})
        network.heal()
        await asyncio.sleep(HANDSHAKE_TIMEOUT_S + BACKOFF_MAX_S + 0.1)
        assert first.transport.connected_peers() == frozenset({2, 3})
        assert second.received() == []

    run(main())


def test_a_short_partition_only_holds_messages_back() -> None:
    async def main() -> None:
        network, (first, second, _) = await three()
        network.block(1, 2)
        first.transport.send(2, heartbeat(1))
        await asyncio.sleep(1)
        assert second.received() == []
        network.unblock(1, 2)
        await asyncio.sleep(0.01)
        assert second.received() == [heartbeat(1)]
        assert first.times("disconnected") == []

    run(main())


def test_a_one_way_partition_lets_the_other_way_through() -> None:
    async def main() -> None:
        network, (first, second, _) = await three()
        network.block(1, 2)
        first.transport.send(2, heartbeat(1))
        second.transport.send(1, heartbeat(2))
        await asyncio.sleep(0.1)
        assert second.received() == []
        assert first.received() == [heartbeat(2)]
        assert await second.transport.probe(1) is Liveness.UNREACHABLE

    run(main())


def test_isolate_partitions_one_member_from_all_others() -> None:
    async def main() -> None:
        network, (first, second, third) = await three()
        network.isolate(2)
        for target in (1, 3):
            second.transport.send(target, heartbeat(1))
        first.transport.send(3, heartbeat(2))
        await asyncio.sleep(0.1)
        assert first.received() == []
        assert third.received() == [heartbeat(2)]

    run(main())


def test_a_crash_is_seen_after_the_delay_and_not_reported_to_the_crashed_member() -> None:
    async def main() -> None:
        network, (first, second, _) = await three(delay_min_s=0.01, delay_max_s=0.01)
        first.transport.send(2, heartbeat(1))
        seen = len(second.events)
        network.crash(2)
        began = asyncio.get_running_loop().time()
        assert await first.transport.probe(2) is Liveness.DEAD
        assert asyncio.get_running_loop().time() - began < PROBE_TIMEOUT_S
        assert first.times("disconnected") == pytest.approx([began + 0.01] * 2)
        await asyncio.sleep(1)
        assert len(second.events) == seen
        reborn = Member(network, 2, 21)
        await reborn.transport.start(reborn.handshake, reborn)
        assert await first.transport.probe(2) is Liveness.DEAD
        await asyncio.sleep(BACKOFF_MAX_S + 0.1)
        assert 2 in first.transport.connected_peers()
        assert first.transport.send(2, heartbeat(3))
        await asyncio.sleep(0.1)
        assert reborn.received() == [heartbeat(3)]

    run(main())


def test_a_crash_behind_a_partition_is_only_silence() -> None:
    async def main() -> None:
        network, (first, _, _) = await three(delay_min_s=0.01, delay_max_s=0.01)
        network.isolate(2)
        network.crash(2)
        await asyncio.sleep(1)
        assert first.times("disconnected") == []
        assert await first.transport.probe(2) is Liveness.UNREACHABLE
        await asyncio.sleep(SILENCE_TIMEOUT_S)
        assert len(first.times("disconnected")) == 2

    run(main())


def test_a_reset_stream_is_reported_to_both_ends_and_dialled_again() -> None:
    async def main() -> None:
        network, (first, second, _) = await three()
        network.disconnect(1, 2)
        assert first.times("disconnected") == second.times("disconnected") != []
        assert await first.transport.probe(2) is Liveness.ALIVE
        await asyncio.sleep(0.1)
        assert 2 in first.transport.connected_peers()

    run(main())


def test_drops_and_duplicates_are_injected_consensus_messages_only() -> None:
    async def main() -> None:
        network, (first, second, _) = await three()
        conditions = network.conditions(1, 2)
        conditions.drop_probability = 1.0
        first.transport.send(2, heartbeat(1))
        first.transport.send(2, ForwardedBatch(1, 10, 1, b""))
        conditions.drop_probability = 0.0
        conditions.duplicate_probability = 1.0
        first.transport.send(2, heartbeat(2))
        first.transport.send(2, ForwardedBatch(1, 10, 2, b""))
        await asyncio.sleep(0.1)
        batches = [ForwardedBatch(1, 10, 1, b""), ForwardedBatch(1, 10, 2, b"")]
        assert second.received() == [heartbeat(2), heartbeat(2), *batches]

    run(main())


def test_one_seed_is_one_history() -> None:
    async def history(seed: int) -> list[Any]:
        network, members = await three(seed, delay_min_s=0.001, delay_max_s=0.02)
        draw = random.Random(seed)
        network.conditions(1, 2).drop_probability = 0.3
        for step in range(200):
            source, target = draw.sample([1, 2, 3], 2)
            members[source - 1].transport.send(target, heartbeat(step, source, target))
            if step % 50 == 20:
                network.disconnect(source, target)
            await asyncio.sleep(draw.random() / 100)
        await asyncio.sleep(1)
        return [member.events for member in members]

    assert run(history(5)) == run(history(5))
    assert run(history(5)) != run(history(6))

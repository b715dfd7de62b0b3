"""The contract of every transport, checked against the in-memory implementation and the gRPC one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raft.core.messages import Message, MessageType
from raft.core.types import Entry, EntryKind
from raft.transport.liveness import BULK_BOUNDS, MESSAGE_BYTES_MAX, URGENT_BOUNDS
from raft.transport.transport_protocol import ForwardedBatch, ForwardRefused, Liveness

pytestmark = pytest.mark.asyncio

Harness = Any  # the fixture's class; conftest modules cannot be imported by name


def heartbeat(term: int) -> Message:
    return Message(MessageType.HEARTBEAT, to=2, from_=1, term=term)


def append(index: int, nbytes: int = 8) -> Message:
    entry = Entry(1, index + 1, EntryKind.NORMAL, bytes(nbytes))
    return Message(MessageType.APPEND, to=2, from_=1, term=1, index=index, entries=(entry,))


async def test_a_pair_exchanges_handshakes_both_ways(harness: Harness) -> None:
    first, first_recorder, second, second_recorder = await harness.pair()
    assert first_recorder.handshakes[0] == second_recorder.handshake
    assert second_recorder.handshakes[0] == first_recorder.handshake
    assert first_recorder.answers == [(2, second_recorder.answers and first_recorder.answers[0][1])]
    assert first_recorder.answers[0][1].handshake == second_recorder.handshake
    assert first_recorder.connected == [2]
    assert first.connected_peers() == frozenset({2})
    assert second.connected_peers() == frozenset({1})


async def test_messages_arrive_in_order_with_their_sender(harness: Harness) -> None:
    first, _, _, recorder = await harness.pair()
    sent = [append(index) for index in range(200)]
    sent.insert(100, ForwardedBatch(3, 10, 1, b"batch"))
    for position, message in enumerate(sent):
        assert first.send(2, message)
        if position % 7 == 0:
            await asyncio.sleep(0)
    await recorder.until(lambda: len(recorder.messages) == len(sent))
    assert recorder.received == sent
    assert {(member_id, incarnation) for member_id, incarnation, _ in recorder.messages} == {(1, 10)}


async def test_urgent_messages_pass_bulk_and_keep_their_own_order(harness: Harness) -> None:
    first, _, _, recorder = await harness.pair()
    bulk = [append(index) for index in range(50)]
    urgent = [heartbeat(1), ForwardRefused(1, 10, 2), heartbeat(2)]
    for message in [*bulk, *urgent]:
        assert first.send(2, message)
    await recorder.until(lambda: len(recorder.messages) == len(bulk) + len(urgent))
    assert recorder.received == [*urgent, *bulk]


async def test_an_empty_append_stays_behind_the_entries_it_follows(harness: Harness) -> None:
    first, _, _, recorder = await harness.pair()
    sent = [append(1), Message(MessageType.APPEND, to=2, from_=1, term=1, index=2)]
    for message in sent:
        first.send(2, message)
    await recorder.until(lambda: len(recorder.messages) == 2)
    assert recorder.received == sent


async def test_a_full_lane_drops_and_reports_while_the_other_still_takes(harness: Harness) -> None:
    first, recorder, _, other = await harness.pair()
    taken = [first.send(2, append(index)) for index in range(BULK_BOUNDS.messages_max + 1)]
    assert taken == [True] * BULK_BOUNDS.messages_max + [False]
    assert recorder.dropped == [(2, append(BULK_BOUNDS.messages_max))]
    assert first.send(2, heartbeat(1))
    assert first.statistics()[2].send_failures == 1
    await other.until(lambda: len(other.messages) == BULK_BOUNDS.messages_max + 1)


async def test_the_urgent_lane_is_bounded_too(harness: Harness) -> None:
    first, recorder, _, _ = await harness.pair()
    taken = sum(first.send(2, heartbeat(term)) for term in range(URGENT_BOUNDS.messages_max + 10))
    assert taken == URGENT_BOUNDS.messages_max
    assert len(recorder.dropped) == 10


async def test_lanes_are_bounded_in_bytes(harness: Harness) -> None:
    first, recorder, _, other = await harness.pair()
    large = BULK_BOUNDS.bytes_max // 4
    assert large <= MESSAGE_BYTES_MAX
    taken = [first.send(2, append(index, large)) for index in range(4)]
    assert taken == [True, True, True, False]  # each counts for its payload and a little more
    await other.until(lambda: len(other.messages) == 3)
    assert first.send(2, append(9, large))
    await other.until(lambda: len(other.messages) == 4)
    assert len(recorder.dropped) == 1


async def test_sending_to_an_unknown_member_is_reported(harness: Harness) -> None:
    first, recorder = await harness.member(1, 10)
    assert not first.send(9, heartbeat(1))
    assert recorder.dropped == [(9, heartbeat(1))]


async def test_sending_before_the_stream_is_open_is_reported(harness: Harness) -> None:
    first, recorder = await harness.member(1, 10)
    await harness.member(2, 20)
    first.set_peer(2, harness.urls[2])
    assert not first.send(2, heartbeat(1))
    assert recorder.dropped == [(2, heartbeat(1))]
    await recorder.until(lambda: recorder.connected == [2])
    assert first.send(2, heartbeat(2))


async def test_a_refused_handshake_opens_nothing_and_says_why(harness: Harness) -> None:
    first, recorder = await harness.member(1, 10)
    _, other = await harness.member(2, 20)
    other.refusal = "another disk is recorded for this member"
    first.set_peer(2, harness.urls[2])
    await recorder.until(lambda: len(recorder.answers) >= 2)
    assert recorder.answers[0][1].refusal == other.refusal
    assert recorder.connected == []
    assert first.connected_peers() == frozenset()
    other.refusal = ""
    await recorder.until(lambda: recorder.connected == [2])


async def test_the_dialler_judges_the_answer_too(harness: Harness) -> None:
    first, recorder = await harness.member(1, 10)
    await harness.member(2, 20, cluster_id=0xBAD)
    first.set_peer(2, harness.urls[2])
    await recorder.until(lambda: bool(recorder.answers))
    assert "cluster" in recorder.answers[0][1].refusal
    assert recorder.connected == []


async def test_the_end_of_a_peer_is_reported_at_once_and_its_next_incarnation_is_found(
    harness: Harness,
) -> None:
    first, recorder, second, _ = await harness.pair()
    await second.close()
    await recorder.until(lambda: 2 in recorder.disconnected and not first.connected_peers(), 1.0)
    assert not first.send(2, heartbeat(1))
    third, other = await harness.again(2, 21)
    third.set_peer(1, harness.urls[1])
    await recorder.until(lambda: recorder.connected == [2, 2])
    assert first.send(2, heartbeat(2))
    await other.until(lambda: other.messages == [(1, 10, heartbeat(2))])


async def test_a_peer_that_dials_us_is_dialled_back_without_waiting(harness: Harness) -> None:
    first, recorder = await harness.member(1, 10)
    _, gone = await harness.member(2, 20)
    await harness.transports[1].close()
    first.set_peer(2, harness.urls[2])
    waiting = asyncio.Event()

    def long_wait() -> float:
        waiting.set()
        return 3600.0

    link = first._links[2]
    link._backoff.next_s = long_wait
    async with asyncio.timeout(10):
        await waiting.wait()
    second, _ = await harness.again(2, 21)
    assert recorder.connected == []
    second.set_peer(1, harness.urls[1])
    await recorder.until(lambda: recorder.connected == [2], 5.0)
    assert gone.handshakes == []


async def test_probe_finds_the_same_process_alive(harness: Harness) -> None:
    first, _, _, other = await harness.pair()
    assert await first.probe(2) is Liveness.ALIVE
    # Only the stream's handshake reaches the receiver: a probe may be late, after the handshake of its
    # member's next incarnation.
    assert len(other.handshakes) == 1


async def test_probe_finds_a_stopped_process_dead(harness: Harness) -> None:
    first, _, second, _ = await harness.pair()
    await second.close()
    assert await first.probe(2) is Liveness.DEAD


async def test_probe_of_another_incarnation_at_the_same_address_is_dead(harness: Harness) -> None:
    first, recorder, second, _ = await harness.pair()
    await second.close()
    await recorder.until(lambda: 2 in recorder.disconnected)
    await harness.again(2, 21)
    assert await first.probe(2) is Liveness.DEAD


async def test_probe_of_a_process_that_refuses_us_still_finds_its_incarnation(harness: Harness) -> None:
    first, _, _, other = await harness.pair()
    other.refusal = "removed from the cluster"
    assert await first.probe(2) is Liveness.ALIVE


async def test_reset_ends_every_stream_and_all_come_back(harness: Harness) -> None:
    first, recorder, second, other = await harness.pair()
    if harness.kind == "memory":
        first.reset_connections()
    else:
        await asyncio.to_thread(first.reset_connections)
    await other.until(lambda: 1 in other.disconnected, 2.0)
    await recorder.until(lambda: 2 in recorder.disconnected, 2.0)
    await recorder.until(lambda: recorder.connected == [2, 2])
    await other.until(lambda: 1 in second.connected_peers())
    assert first.send(2, heartbeat(5))
    await other.until(lambda: heartbeat(5) in other.received)
    assert await second.probe(1) is Liveness.ALIVE


async def test_a_removed_peer_is_disconnected_and_not_dialled(harness: Harness) -> None:
    first, recorder, second, other = await harness.pair()
    other.refusal = recorder.refusal = "removed"
    first.remove_peer(2)
    await other.until(lambda: not second.connected_peers(), 2.0)
    assert recorder.disconnected == []
    assert first.connected_peers() == frozenset()
    assert 2 not in first.statistics()
    assert not first.send(2, heartbeat(1))


async def test_statistics_count_both_directions(harness: Harness) -> None:
    first, recorder, second, other = await harness.pair()
    for index in range(10):
        first.send(2, append(index, 100))
    await other.until(lambda: len(other.messages) == 10)
    second.send(1, append(1, 1000))
    await recorder.until(lambda: len(recorder.messages) == 1)
    counted = first.statistics()[2]
    assert counted.sent_messages == 10
    assert counted.sent_bytes > 1000
    assert counted.received_bytes > 1000
    assert counted.send_failures == 0


async def test_close_reports_nothing_to_the_closing_side(harness: Harness) -> None:
    first, recorder, _, other = await harness.pair()
    await first.close()
    await other.until(lambda: 1 in other.disconnected)
    assert recorder.disconnected == []
    await first.close()

"""A snapshot moves in chunks, resumably, in bounded memory, and never ahead of a heartbeat."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, cast

import pytest

from raft.core.messages import Message, MessageType
from raft.core.types import ConfState, SnapshotMeta
from raft.transport import codec, snapshot_stream
from raft.transport.memory_snapshots import OneWay, SnapshotConnection
from raft.transport.snapshot_stream import receive_snapshot, send_snapshot
from raft.transport.transport_protocol import (
    Handshake,
    Receiver,
    SnapshotChunk,
    SnapshotFailed,
    SnapshotOffer,
    SnapshotOpening,
    SnapshotRefused,
    SnapshotStatus,
)

DATA = bytes(range(256)) * 40 + b"tail"
META = SnapshotMeta(77, 5, ConfState((1, 2, 3), (4,)))
MESSAGE = Message(MessageType.SNAPSHOT, 2, 1, 5, snapshot=META)
OFFER = SnapshotOffer(MESSAGE, len(DATA), hashlib.sha256(DATA).digest())
CHUNK = 1000


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_stream, "SNAPSHOT_CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(snapshot_stream, "SNAPSHOT_ALIVE_S", 0.02)


class Sink:
    """Keeps what arrives, across attempts."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.finished = 0
        self.released = 0
        self.open_refusal = self.finish_refusal = ""
        self.gate = asyncio.Event()
        """Writing waits for it."""
        self.gate.set()
        self.install = asyncio.Event()
        self.install.set()
        self.offers: list[tuple[Handshake, SnapshotOffer]] = []

    async def open(self) -> int:
        if self.open_refusal:
            raise SnapshotRefused(self.open_refusal)
        return len(self.data)

    async def write(self, data: bytes) -> None:
        await self.gate.wait()
        self.data += data

    def finish(self) -> asyncio.Future[None]:
        return asyncio.ensure_future(self._finish())

    async def _finish(self) -> None:
        await self.install.wait()
        if self.finish_refusal:
            raise SnapshotRefused(self.finish_refusal)
        self.finished += 1

    def release(self) -> None:
        self.released += 1


async def read(offset: int, size: int) -> bytes:
    return DATA[offset : offset + size]


def take_into(recorder: Any, sink: Sink) -> None:
    def on_snapshot(handshake: Handshake, offer: SnapshotOffer) -> Sink:
        sink.offers.append((handshake, offer))
        return sink

    recorder.on_snapshot = on_snapshot


@pytest.mark.asyncio
async def test_a_snapshot_arrives_whole_with_what_it_was_announced_as(harness: Any) -> None:
    first, recorder, _, other = await harness.pair()
    sink = Sink()
    take_into(other, sink)
    seen: list[int] = []
    await first.send_snapshot(2, OFFER, read, seen.append)
    assert bytes(sink.data) == DATA
    assert sink.finished == 1
    await other.until(lambda: sink.released == 1, poll=True)
    assert sink.offers == [(recorder.handshake, OFFER)]
    assert seen == sorted(seen)
    assert seen[-1] == len(DATA)


@pytest.mark.asyncio
async def test_an_attempt_goes_on_where_the_one_before_was_interrupted(harness: Any) -> None:
    """At every chunk: the reader fails there, and the next attempt never reads before what has arrived."""
    first, _, _, other = await harness.pair()
    for stop in range(0, len(DATA), CHUNK):
        sink = Sink()
        take_into(other, sink)

        async def breaking(offset: int, size: int, stop: int = stop) -> bytes:
            if offset >= stop:
                raise SnapshotFailed("injected")
            return await read(offset, size)

        with pytest.raises(SnapshotFailed, match="injected"):
            await first.send_snapshot(2, OFFER, breaking, lambda offset: None)
        await other.until(lambda sink=sink: sink.released == 1, poll=True)
        had, asked = len(sink.data), []

        async def counting(offset: int, size: int, asked: list[int] = asked) -> bytes:
            asked.append(offset)
            return await read(offset, size)

        await first.send_snapshot(2, OFFER, counting, lambda offset: None)
        assert bytes(sink.data) == DATA
        assert asked == list(range(had, len(DATA), CHUNK))
        assert sink.finished == 1


@pytest.mark.asyncio
async def test_what_is_under_way_is_bounded_by_the_receivers_disk(harness: Any) -> None:
    first, _, _, other = await harness.pair()
    sink = Sink()
    take_into(other, sink)
    sink.gate.clear()
    furthest = 0

    async def counting(offset: int, size: int) -> bytes:
        nonlocal furthest
        furthest = max(furthest, offset + size)
        return await read(offset, size)

    sending = asyncio.create_task(first.send_snapshot(2, OFFER, counting, lambda offset: None))
    await other.until(lambda: furthest == CHUNK * snapshot_stream.SNAPSHOT_CHUNKS_IN_FLIGHT, poll=True)
    # Messages flow however long the snapshot waits.
    heartbeat = Message(MessageType.HEARTBEAT, 2, 1, 5)
    assert first.send(2, heartbeat)
    await other.until(lambda: heartbeat in other.received)
    assert furthest == CHUNK * snapshot_stream.SNAPSHOT_CHUNKS_IN_FLIGHT
    sink.gate.set()
    await sending
    assert bytes(sink.data) == DATA


@pytest.mark.asyncio
async def test_refusals_reach_the_sender_in_words(harness: Any) -> None:
    first, _, _, other = await harness.pair()
    sink = Sink()
    take_into(other, sink)
    sink.open_refusal = "a newer snapshot is on its way"
    with pytest.raises(SnapshotFailed, match="a newer snapshot is on its way"):
        await first.send_snapshot(2, OFFER, read, lambda offset: None)
    sink.open_refusal, sink.finish_refusal = "", "its digest is wrong"
    with pytest.raises(SnapshotFailed, match="its digest is wrong"):
        await first.send_snapshot(2, OFFER, read, lambda offset: None)

    def refuse(handshake: Handshake, offer: SnapshotOffer) -> Sink:
        raise SnapshotRefused("not from you")

    other.on_snapshot = refuse
    with pytest.raises(SnapshotFailed, match="not from you"):
        await first.send_snapshot(2, OFFER, read, lambda offset: None)


@pytest.mark.asyncio
async def test_a_long_installation_is_waited_for(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _, _, other = await harness.pair()
    monkeypatch.setattr(snapshot_stream, "SNAPSHOT_SILENCE_S", 0.5)
    sink = Sink()
    take_into(other, sink)
    sink.install.clear()
    loop = asyncio.get_running_loop()
    loop.call_later(1.5, sink.install.set)  # three times the silence that would end it
    await first.send_snapshot(2, OFFER, read, lambda offset: None)
    assert sink.finished == 1


@pytest.mark.asyncio
async def test_silence_ends_the_attempt(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _, _, other = await harness.pair()
    monkeypatch.setattr(snapshot_stream, "SNAPSHOT_SILENCE_S", 0.3)
    sink = Sink()
    take_into(other, sink)
    sink.gate.clear()
    with pytest.raises(SnapshotFailed, match="silent"):
        await first.send_snapshot(2, OFFER, read, lambda offset: None)
    sink.gate.set()
    await other.until(lambda: sink.released == 1, poll=True)


@pytest.mark.asyncio
async def test_no_connection_is_a_failure_like_another(harness: Any) -> None:
    first, _, second, _ = await harness.pair()
    with pytest.raises(SnapshotFailed):
        await first.send_snapshot(9, OFFER, read, lambda offset: None)
    await second.close()
    with pytest.raises(SnapshotFailed):
        await first.send_snapshot(2, OFFER, read, lambda offset: None)


class Altered(OneWay[Any]):
    """A way on which the second frame is altered."""

    def __init__(self, alter: Any) -> None:
        super().__init__(asyncio.get_running_loop(), lambda: 0.0, lambda: False)
        self._alter = alter
        self._count = 0

    def write(self, frame: Any) -> None:
        self._count += 1
        super().write(self._alter(frame) if self._count == 2 else frame)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (lambda chunk: chunk._replace(data=b"X" + chunk.data[1:]), "damaged"),
        (lambda chunk: chunk._replace(crc32c=chunk.crc32c ^ 1), "damaged"),
        (lambda chunk: chunk._replace(data=b""), "damaged"),
        (lambda chunk: chunk._replace(offset=CHUNK), "missing"),
        (lambda chunk: SnapshotOpening(Handshake(**HANDSHAKE), OFFER), "missing"),
    ],
)
async def test_a_bad_chunk_is_refused_before_it_is_written(alter: Any, words: str) -> None:
    sink = Sink()

    class Taker:
        def on_snapshot(self, handshake: Handshake, offer: SnapshotOffer) -> Sink:
            return sink

    loop = asyncio.get_running_loop()
    back: OneWay[SnapshotStatus] = OneWay(loop, lambda: 0.0, lambda: False)
    connection = SnapshotConnection(Altered(alter), back)
    receiving = asyncio.create_task(receive_snapshot(connection.receiver, cast(Receiver, Taker())))
    with pytest.raises(SnapshotFailed, match=words):
        await send_snapshot(connection.sender, Handshake(**HANDSHAKE), OFFER, read, lambda offset: None)
    await receiving
    assert not sink.data
    assert not sink.finished


HANDSHAKE = {"format_version": 1, "cluster_id": 1, "member_id": 1, "disk_id": 1, "incarnation": 1}


def test_frames_survive_the_wire() -> None:
    for frame in (SnapshotOpening(Handshake(**HANDSHAKE), OFFER), SnapshotChunk(3, 2**32 - 1, b"\0data")):
        assert codec.decode_snapshot_frame(codec.encode_snapshot_frame(frame)) == frame
    status = SnapshotStatus(5, True, "why")
    assert codec.decode_snapshot_status(codec.encode_snapshot_status(status)) == status
    for junk in (b"\xff\xff", b""):
        with pytest.raises(codec.Malformed):
            codec.decode_snapshot_frame(junk)


@pytest.mark.asyncio
async def test_a_sender_that_is_cancelled_ends_so_wherever_it_is(harness: Any) -> None:
    """Also if the receiver ends at the same moment: gRPC reports that by a cancellation, too."""
    first, _, second, other = await harness.pair()
    leaving = None
    for iterations in (0, 1, 2, 4, 8, 16, 64, 256):
        sink = Sink()
        sink.install.clear()  # never at its end
        take_into(other, sink)
        sending = asyncio.create_task(first.send_snapshot(2, OFFER, read, lambda offset: None))
        for _ in range(iterations):
            await asyncio.sleep(0)
        if iterations == 256:
            await other.until(lambda sink=sink: sink.data == DATA, poll=True)
            leaving = asyncio.create_task(second.close())
        sending.cancel()
        await asyncio.wait([sending])
        assert sending.cancelled(), iterations
    assert leaving is not None
    await leaving

"""A snapshot of one member becomes another's backend: complete and verified, or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from raft.core.ready import AppendToken, AppendWork
from raft.core.types import ConfState, HardState, SnapshotMeta
from raft.storage import (
    BackendFailed,
    Checkpoint,
    DirectoryUnrecognized,
    MemberDirectory,
    MemoryFiles,
    SnapshotInvalid,
    StorageError,
)
from raft.storage.memory_files import PowerCut
from raft.storage.snapshot_store import SNAPSHOT_PREFIX, STATE_NAME, ThreadBackground, state_name
from raft.storage.storage_protocol import Backend

CONF = ConfState((1, 2, 3))
MARK = Checkpoint(40, 3, CONF)
ROWS = [(b"a%d" % number, b"value %d" % number * 9) for number in range(300)]
CHUNK = 3000


def work_of(mark: Checkpoint) -> AppendWork:
    """The append work that the core emits when it restores the snapshot."""
    return AppendWork(
        token=AppendToken(mark.term, 1, mark.index, mark.term),
        hard_state=HardState(mark.term, 0, mark.index),
        snapshot=SnapshotMeta(*mark),
        must_sync=True,
    )


async def read_all(state: Backend) -> list[tuple[bytes, bytes]]:
    return [row async for chunk in state.scan(b"", None) for row in chunk]


async def snapshot_bytes(disk: Any, **overrides: Any) -> tuple[Checkpoint, bytes, bytes]:
    """A member's snapshot as it is sent: checkpoint, bytes, digest."""
    sender = type(disk)(disk.files, f"{disk.path}-sender")
    member = await sender.open(member_id=2, new_disk_id=lambda: 0xBEEF, **overrides)
    await member.state.commit(MARK, ROWS)
    snapshot = await member.snapshot_store.build(member.state)
    chunks = [
        await member.snapshot_store.read(snapshot, offset, CHUNK)
        for offset in range(0, snapshot.size_bytes, CHUNK)
    ]
    await member.snapshot_store.discard(snapshot)
    assert not disk.files.exists(snapshot.path)
    member.log.close()
    await member.state.close()
    member.release()
    assert sum(map(len, chunks)) == snapshot.size_bytes
    return snapshot.mark, b"".join(chunks), snapshot.sha256


async def receive(member: MemberDirectory, index: int, data: bytes, sha256: bytes) -> Checkpoint:
    incoming = await member.snapshot_store.receive(index)
    try:
        while incoming.offset < len(data):
            await incoming.write(data[incoming.offset : incoming.offset + CHUNK])
        return await incoming.finish(sha256)
    finally:
        incoming.close()


@pytest.mark.asyncio
async def test_a_snapshot_becomes_the_backend_of_another_member(disk: Any, kit: Any) -> None:
    mark, data, sha256 = await snapshot_bytes(disk)
    assert mark == MARK
    member = await disk.open()
    await member.state.commit(Checkpoint(7, 1, CONF), [(b"old", b"row")])
    assert await receive(member, 40, data, sha256) == MARK
    state = await member.snapshot_store.open_received(40)
    assert await state.mark() == MARK
    assert await read_all(state) == sorted(ROWS)
    member.log.stage_work(work_of(MARK))
    member.log.commit()
    await member.state.close()
    member.state = state
    await member.snapshot_store.use(40)
    assert not disk.files.exists(f"{disk.path}/{STATE_NAME}")
    await state.commit(Checkpoint(41, 3, CONF), [(b"new", b"row")])
    await kit.close(member)

    with pytest.raises(StorageError):  # the log ends at 40: the backend is ahead of it
        await disk.open()


@pytest.mark.asyncio
async def test_the_named_file_is_found_again_after_many_segments(disk: Any, kit: Any) -> None:
    _, data, sha256 = await snapshot_bytes(disk)
    member = await disk.open()
    await receive(member, 40, data, sha256)
    model = kit.Model().after(work_of(MARK))
    member.log.stage_work(work_of(MARK))
    member.log.commit()
    for sequence in range(2, 20):
        work = kit.append(sequence, model, 1, 3000, term=3)
        model = model.after(work)
        member.log.stage_work(work)
        member.log.commit()
        member.log.maintain()
    assert len(disk.segments()) > 3
    await kit.close(member)
    member = await disk.open()
    assert await member.state.mark() == MARK
    assert await read_all(member.state) == sorted(ROWS)
    assert model.matches(member.recovered)
    names = [name for name in disk.files.list(disk.path) if name.startswith("state")]
    assert STATE_NAME not in names, "the predecessor is swept away at start"
    await kit.close(member)


@pytest.mark.asyncio
async def test_what_the_log_does_not_name_is_swept_away(disk: Any, kit: Any) -> None:
    _, data, sha256 = await snapshot_bytes(disk)
    member = await disk.open()
    await receive(member, 40, data, sha256)
    snapshot = await member.snapshot_store.build(member.state)
    assert disk.files.exists(snapshot.path)
    await kit.close(member)
    member = await disk.open()
    assert [name for name in disk.files.list(disk.path) if name.endswith(".db")] == [STATE_NAME]
    assert await read_all(member.state) == []
    await kit.close(member)


@pytest.mark.asyncio
async def test_a_snapshot_that_is_none_does_not_blame_the_receiver(disk: Any, kit: Any) -> None:
    data = b"no backend"
    member = await disk.open()
    with pytest.raises(SnapshotInvalid, match=r"^the snapshot received is damaged: not a backend file$"):
        await receive(member, 40, data, hashlib.sha256(data).digest())
    await kit.close(member)


@pytest.mark.asyncio
@pytest.mark.parametrize("position", [0, 10, 5000, -1])
async def test_a_changed_byte_is_detected(disk: Any, kit: Any, position: int) -> None:
    _, data, sha256 = await snapshot_bytes(disk)
    changed = bytearray(data)
    changed[position] ^= 1
    member = await disk.open()
    for received in (bytes(changed), data[:-1]):
        with pytest.raises(SnapshotInvalid, match=r"^the snapshot received is not the one that was sent$"):
            await receive(member, 40, received, sha256)
    await member.snapshot_store.abandon(40)
    assert not disk.files.exists(f"{disk.path}/{state_name(40)}")
    assert await receive(member, 40, data, sha256) == MARK, "and it can be received anew"
    await kit.close(member)


@pytest.mark.asyncio
async def test_a_snapshot_of_another_cluster_is_refused(disk: Any, kit: Any) -> None:
    _, data, sha256 = await snapshot_bytes(disk, cluster_id=8)
    member = await disk.open()
    with pytest.raises(DirectoryUnrecognized, match="another cluster"):
        await receive(member, 40, data, sha256)
    await kit.close(member)


@pytest.mark.asyncio
async def test_a_copy_stands_at_one_index_while_commits_go_on(disk: Any, kit: Any) -> None:
    member = await disk.open()
    state = member.state
    await state.commit(Checkpoint(1, 1, CONF), [(b"%05d" % key, b"1" * 50) for key in range(3000)])
    done = False

    async def write() -> None:
        index = 1
        while not done:
            index += 1
            rows: list[tuple[bytes, bytes | None]] = [
                (b"%05d" % key, b"%d" % index) for key in range(0, 3000, 7)
            ]
            await state.commit(Checkpoint(index, 1, CONF), rows)
            await asyncio.sleep(0)

    writer = asyncio.create_task(write())
    for _ in range(3):
        snapshot = await member.snapshot_store.build(state)
        received = await member.snapshot_store.receive(snapshot.mark.index + 10_000)
        while received.offset < snapshot.size_bytes:
            await received.write(await member.snapshot_store.read(snapshot, received.offset, CHUNK))
        assert await received.finish(snapshot.sha256) == snapshot.mark
        copy = await member.snapshot_store.open_received(snapshot.mark.index + 10_000)
        changed = {value for key, value in await read_all(copy) if int(key) % 7 == 0}
        expected = b"%d" % snapshot.mark.index if snapshot.mark.index > 1 else b"1" * 50
        assert changed == {expected}, "rows and mark of one moment"
        await copy.close()
        await member.snapshot_store.discard(snapshot)
    done = True
    await writer
    await kit.close(member)


@pytest.mark.asyncio
async def test_power_cut_at_every_step_of_an_installation(kit: Any) -> None:
    """Afterwards the member has its old state or the new one, whichever the log names."""
    _, data, sha256 = await snapshot_bytes(kit.in_memory())
    before = Checkpoint(7, 1, CONF)
    found: set[int] = set()
    rng = kit.seeded(20_26)
    calls = 1
    for attempt in range(3000):
        call = attempt // 6 + 1  # each call several times, with other choices of what survives
        disk = kit.in_memory()
        member = await disk.open()
        base_model = kit.Model()
        first = kit.append(1, base_model, 9, 20)
        member.log.stage_work(first)
        member.log.commit()
        await member.state.commit(before, [(b"old", b"row")])
        files: MemoryFiles = disk.files
        calls = files.calls + call
        files.fault = lambda number, operation, path, at=calls: PowerCut(operation) if number >= at else None
        named = finished = False
        try:
            await receive(member, 40, data, sha256)
            member.log.stage_work(work_of(MARK))
            named = True
            member.log.commit()
            await member.snapshot_store.use(40)
            finished = True
        except (PowerCut, StorageError):
            pass
        files.fault = None
        files.crash(rng.randrange)
        member = await disk.open()
        mark = await member.state.mark()
        rows = await read_all(member.state)
        assert (mark, rows) in ((before, [(b"old", b"row")]), (MARK, sorted(ROWS)))
        assert mark == before or named, "nothing is installed before the log names it"
        assert not finished or mark == MARK
        assert member.recovered.snapshot.index == (40 if mark == MARK else 0)
        names = [name for name in files.list(disk.path) if name.endswith(".db")]
        assert len(names) == 1
        found.add(mark.index)
        await kit.close(member)
        if finished:
            break
    else:
        pytest.fail("the installation never came to its end")
    assert found == {7, 40}


@pytest.mark.asyncio
@pytest.mark.parametrize("summing", [False, True])
async def test_a_cancelled_copy_stops_at_once(
    summing: bool, disk: Any, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that stops, or a caller that is cancelled, does not wait until a large state is copied."""
    background = ThreadBackground()
    member = await disk.open(background=background)
    copying, genuine = threading.Event(), member.state.copy_to

    def copy_to(path: str, wanted: Callable[[], bool]) -> Checkpoint:
        mark = genuine(path, lambda: True)
        copying.set()
        while wanted():
            time.sleep(0.001)  # as large as you like
        if summing:
            return mark
        raise BackendFailed("given up")

    monkeypatch.setattr(member.state, "copy_to", copy_to)
    making = asyncio.create_task(member.snapshot_store.build(member.state))
    assert await asyncio.to_thread(copying.wait, 10)
    making.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await making
    assert not [name for name in disk.files.list(disk.path) if name.startswith(SNAPSHOT_PREFIX)]
    await kit.close(member)

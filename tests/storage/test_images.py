"""An image of one member's state becomes another's state file: whole, verified, or not at all."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from raft.core.ready import AppendToken, AppendWork
from raft.core.types import ConfState, HardState, SnapshotMeta
from raft.storage import (
    Damaged,
    DirectoryForeign,
    MemberDirectory,
    MemoryFiles,
    StateFileFailed,
    StateMark,
    StorageError,
)
from raft.storage.images import IMAGE_PREFIX, STATE_NAME, ThreadBackground, state_name
from raft.storage.memory import PowerCut
from raft.storage.protocol import StateFile

CONF = ConfState((1, 2, 3))
MARK = StateMark(40, 3, CONF)
ROWS = [(b"a%d" % number, b"value %d" % number * 9) for number in range(300)]
CHUNK = 3000


def work_of(mark: StateMark) -> AppendWork:
    """What the core hands out when it takes the image."""
    return AppendWork(
        token=AppendToken(mark.term, 1, mark.index, mark.term),
        hard_state=HardState(mark.term, 0, mark.index),
        snapshot=SnapshotMeta(*mark),
        must_sync=True,
    )


async def read_all(state: StateFile) -> list[tuple[bytes, bytes]]:
    return [row async for chunk in state.scan(b"", None) for row in chunk]


async def image_bytes(disk: Any, **overrides: Any) -> tuple[StateMark, bytes, bytes]:
    """A member's image as it travels: mark, bytes, sum."""
    sender = type(disk)(disk.files, f"{disk.path}-sender")
    member = await sender.open(member_id=2, new_disk_id=lambda: 0xBEEF, **overrides)
    await member.state.commit(MARK, ROWS)
    image = await member.images.build(member.state)
    chunks = [await member.images.read(image, offset, CHUNK) for offset in range(0, image.size_bytes, CHUNK)]
    await member.images.discard(image)
    assert not disk.files.exists(image.path)
    member.log.close()
    await member.state.close()
    member.release()
    assert sum(map(len, chunks)) == image.size_bytes
    return image.mark, b"".join(chunks), image.sha256


async def receive(member: MemberDirectory, index: int, data: bytes, sha256: bytes) -> StateMark:
    incoming = await member.images.receive(index)
    try:
        while incoming.offset < len(data):
            await incoming.write(data[incoming.offset : incoming.offset + CHUNK])
        return await incoming.finish(sha256)
    finally:
        incoming.close()


@pytest.mark.asyncio
async def test_an_image_becomes_the_state_file_of_another_member(disk: Any, kit: Any) -> None:
    mark, data, sha256 = await image_bytes(disk)
    assert mark == MARK
    member = await disk.open()
    await member.state.commit(StateMark(7, 1, CONF), [(b"old", b"row")])
    assert await receive(member, 40, data, sha256) == MARK
    state = await member.images.open_received(40)
    assert await state.mark() == MARK
    assert await read_all(state) == sorted(ROWS)
    member.log.stage_work(work_of(MARK))
    member.log.commit()
    await member.state.close()
    member.state = state
    await member.images.use(40)
    assert not disk.files.exists(f"{disk.path}/{STATE_NAME}")
    await state.commit(StateMark(41, 3, CONF), [(b"new", b"row")])
    await kit.close(member)

    with pytest.raises(StorageError):  # the log ends at 40: the state file is ahead of it
        await disk.open()


@pytest.mark.asyncio
async def test_the_named_file_is_found_again_after_many_segments(disk: Any, kit: Any) -> None:
    _, data, sha256 = await image_bytes(disk)
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
    _, data, sha256 = await image_bytes(disk)
    member = await disk.open()
    await receive(member, 40, data, sha256)
    image = await member.images.build(member.state)
    assert disk.files.exists(image.path)
    await kit.close(member)
    member = await disk.open()
    assert [name for name in disk.files.list(disk.path) if name.endswith(".db")] == [STATE_NAME]
    assert await read_all(member.state) == []
    await kit.close(member)


@pytest.mark.asyncio
@pytest.mark.parametrize("place", [0, 10, 5000, -1])
async def test_a_changed_byte_is_noticed(disk: Any, kit: Any, place: int) -> None:
    _, data, sha256 = await image_bytes(disk)
    changed = bytearray(data)
    changed[place] ^= 1
    member = await disk.open()
    with pytest.raises(Damaged, match="not the one that was sent"):
        await receive(member, 40, bytes(changed), sha256)
    with pytest.raises(Damaged):
        await receive(member, 40, data[:-1], sha256)
    await member.images.abandon(40)
    assert not disk.files.exists(f"{disk.path}/{state_name(40)}")
    assert await receive(member, 40, data, sha256) == MARK, "and it can be received anew"
    await kit.close(member)


@pytest.mark.asyncio
async def test_an_image_of_another_cluster_is_refused(disk: Any, kit: Any) -> None:
    _, data, sha256 = await image_bytes(disk, cluster_id=8)
    member = await disk.open()
    with pytest.raises(DirectoryForeign, match="another cluster"):
        await receive(member, 40, data, sha256)
    await kit.close(member)


@pytest.mark.asyncio
async def test_a_copy_stands_at_one_index_while_commits_go_on(disk: Any, kit: Any) -> None:
    member = await disk.open()
    state = member.state
    await state.commit(StateMark(1, 1, CONF), [(b"%05d" % key, b"1" * 50) for key in range(3000)])
    done = False

    async def write() -> None:
        index = 1
        while not done:
            index += 1
            rows: list[tuple[bytes, bytes | None]] = [
                (b"%05d" % key, b"%d" % index) for key in range(0, 3000, 7)
            ]
            await state.commit(StateMark(index, 1, CONF), rows)
            await asyncio.sleep(0)

    writer = asyncio.create_task(write())
    for _ in range(3):
        image = await member.images.build(state)
        received = await member.images.receive(image.mark.index + 10_000)
        while received.offset < image.size_bytes:
            await received.write(await member.images.read(image, received.offset, CHUNK))
        assert await received.finish(image.sha256) == image.mark
        copy = await member.images.open_received(image.mark.index + 10_000)
        changed = {value for key, value in await read_all(copy) if int(key) % 7 == 0}
        expected = b"%d" % image.mark.index if image.mark.index > 1 else b"1" * 50
        assert changed == {expected}, "rows and mark of one moment"
        await copy.close()
        await member.images.discard(image)
    done = True
    await writer
    await kit.close(member)


@pytest.mark.asyncio
async def test_power_cut_at_every_step_of_an_installation(kit: Any) -> None:
    """Afterwards the member has its old state or the new one, and which one is what the log says."""
    _, data, sha256 = await image_bytes(kit.twin())
    before = StateMark(7, 1, CONF)
    found: set[int] = set()
    rng = kit.seeded(20_26)
    calls = 1
    for attempt in range(3000):
        call = attempt // 6 + 1  # each place several times, with other choices of what survives
        disk = kit.twin()
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
            await member.images.use(40)
            finished = True
        except (PowerCut, StorageError):
            pass
        files.fault = None
        files.crash(rng.randrange)
        member = await disk.open()
        mark = await member.state.mark()
        rows = await read_all(member.state)
        assert (mark, rows) in ((before, [(b"old", b"row")]), (MARK, sorted(ROWS)))
        assert mark == before or named, "nothing is installed before the log says so"
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
async def test_a_copy_in_the_making_keeps_nobody_waiting(
    summing: bool, disk: Any, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that stops, or a caller who leaves, does not wait until a large state is copied."""
    background = ThreadBackground()
    member = await disk.open(background=background)
    copying, genuine = threading.Event(), member.state.copy_to

    def copy_to(path: str, wanted: Callable[[], bool]) -> StateMark:
        mark = genuine(path, lambda: True)
        copying.set()
        while wanted():
            time.sleep(0.001)  # as large as you like
        if summing:
            return mark
        raise StateFileFailed("given up")

    monkeypatch.setattr(member.state, "copy_to", copy_to)
    making = asyncio.create_task(member.images.build(member.state))
    assert await asyncio.to_thread(copying.wait, 10)
    making.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await making
    assert not [name for name in disk.files.list(disk.path) if name.startswith(IMAGE_PREFIX)]
    await kit.close(member)

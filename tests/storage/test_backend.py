"""The backend is an ordered map of bytes at exactly one log index, on SQLite and in memory."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from raft.core.types import ConfState
from raft.storage import BackendFailed, BackendFull, Checkpoint, MemoryFiles, backend, memory_backend
from raft.storage.memory_backend import MemoryBackend
from raft.storage.memory_files import PowerCut, fail_at
from raft.storage.storage_protocol import Identity

CONF = ConfState((1, 2, 3), (4,), (1, 2), (2,), True)
IDENTITY = Identity(cluster_id=2**64 - 1, member_id=2**63, disk_id=5)


async def open_state(disk: Any) -> Any:
    disk.files.make_directory(disk.path)
    path = f"{disk.path}/state.db"
    if isinstance(disk.files, MemoryFiles):
        return MemoryBackend(disk.files, path, IDENTITY)
    return await backend.open_sqlite_backend(path, IDENTITY)


async def rows(state: Any, low: bytes = b"", high: bytes | None = None) -> list[tuple[bytes, bytes]]:
    return [row async for chunk in state.scan(low, high) for row in chunk]


@pytest.mark.asyncio
async def test_rows_and_mark_move_together_and_are_found_again(disk: Any) -> None:
    state = await open_state(disk)
    assert await state.mark() == Checkpoint(0, 0, ConfState())
    assert await rows(state) == []
    await state.commit(Checkpoint(3, 1, CONF), [(b"b", b"2"), (b"a", b"1"), (b"\xff\0", b"\0"), (b"c", b"3")])
    await state.commit(Checkpoint(9, 2, CONF), [(b"b", None), (b"none", None), (b"a", b""), (b"d", b"4")])
    await state.close()
    state = await open_state(disk)
    assert await state.mark() == Checkpoint(9, 2, CONF)
    assert await rows(state) == [(b"a", b""), (b"c", b"3"), (b"d", b"4"), (b"\xff\0", b"\0")]
    assert await rows(state, b"b", b"d") == [(b"c", b"3")]
    assert await rows(state, b"d", None) == [(b"d", b"4"), (b"\xff\0", b"\0")]
    assert state.size_bytes() > 0
    await state.close()


@pytest.mark.asyncio
async def test_the_last_change_of_a_key_in_one_commit_wins(disk: Any) -> None:
    state = await open_state(disk)
    changes = [(b"a", b"1"), (b"a", None), (b"b", None), (b"b", b"2"), (b"c", b"1"), (b"c", b"2")]
    await state.commit(Checkpoint(1, 1, CONF), changes)
    assert await rows(state) == [(b"b", b"2"), (b"c", b"2")]
    await state.close()


@pytest.mark.asyncio
async def test_the_index_only_grows(disk: Any) -> None:
    state = await open_state(disk)
    await state.commit(Checkpoint(5, 1, CONF), [(b"a", b"1")])
    for index in (5, 4):
        with pytest.raises(BackendFailed, match="cannot go from index 5"):
            await state.commit(Checkpoint(index, 1, CONF), [(b"a", b"2")])
    assert await rows(state) == [(b"a", b"1")]
    await state.close()
    with pytest.raises(BackendFailed):
        await state.commit(Checkpoint(6, 1, CONF), [])


@pytest.mark.asyncio
async def test_a_scan_comes_in_chunks_and_sees_one_index(disk: Any) -> None:
    state = await open_state(disk)
    contents = [(b"%06d" % i, b"%d" % i) for i in range(5000)]
    await state.commit(Checkpoint(1, 1, CONF), contents)
    chunks = []
    async for chunk in state.scan(b"", None):
        if not chunks:
            await state.commit(Checkpoint(2, 1, CONF), [(key, None) for key, _ in contents])
        chunks.append(chunk)
    assert [len(chunk) for chunk in chunks] == [2048, 2048, 904]
    assert [row for chunk in chunks for row in chunk] == contents
    assert await rows(state) == []
    await state.close()


@pytest.mark.asyncio
async def test_a_full_disk_changes_nothing_and_can_be_tried_again(disk: Any) -> None:
    state = await open_state(disk)
    await state.commit(Checkpoint(1, 1, CONF), [(b"a", b"1")])
    big = [(b"%d" % i, bytes(1000)) for i in range(100)]
    if isinstance(disk.files, MemoryFiles):
        disk.files.fault = fail_at(0, errno.ENOSPC)
    else:
        await (await state._connect()).execute("PRAGMA max_page_count = 6")
    with pytest.raises(BackendFull, match="disk full"):
        await state.commit(Checkpoint(2, 1, CONF), big)
    if isinstance(disk.files, MemoryFiles):
        disk.files.fault = None
    assert await state.mark() == Checkpoint(1, 1, CONF)
    assert await rows(state) == [(b"a", b"1")]
    await state.commit(Checkpoint(3, 1, CONF), big)  # the limit belonged to the discarded connection
    assert len(await rows(state)) == 101
    await state.close()
    state = await open_state(disk)
    assert await state.mark() == Checkpoint(3, 1, CONF)
    await state.close()


@pytest.mark.asyncio
async def test_every_crash_of_the_in_memory_implementation_leaves_one_commit_or_the_other(kit: Any) -> None:
    rng = kit.seeded(3)
    changes = [(b"k%d" % i, bytes([i]) * 900) for i in range(4)]
    outcomes = set()
    for call in range(1, 9):
        for _ in range(40):
            disk = kit.in_memory()
            state = await open_state(disk)
            await state.commit(Checkpoint(1, 1, CONF), changes[:2])
            first = disk.files.calls
            disk.files.fault = lambda n, op, path, at=first + call: PowerCut(op) if n >= at else None
            acknowledged = 1
            try:
                await state.commit(Checkpoint(2, 1, CONF), [(b"k0", None), *changes[2:]])
                acknowledged = 2
                await state.commit(Checkpoint(3, 1, CONF), [(b"k1", None)])
                acknowledged = 3
            except PowerCut:
                pass
            disk.files.crash(rng.randrange)
            state = await open_state(disk)
            index = (await state.mark()).index
            keys = [key for key, _ in await rows(state)]
            assert keys == [[], [b"k0", b"k1"], [b"k1", b"k2", b"k3"], [b"k2", b"k3"]][index]
            assert acknowledged <= index <= acknowledged + 1
            outcomes.add((acknowledged, index))
            await state.commit(Checkpoint(9, 1, CONF), [(b"more", b"")])
    assert len(outcomes) >= 4


@pytest.fixture
def rewritten_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_backend, "SUPERSEDED_BYTES_MAX", 8000)


@pytest.mark.asyncio
@pytest.mark.usefixtures("rewritten_early")
async def test_the_file_in_memory_does_not_outgrow_its_rows(kit: Any) -> None:
    disk = kit.in_memory()
    state = await open_state(disk)
    longest = 0
    for index in range(1, 201):
        await state.commit(Checkpoint(index, 1, CONF), [(b"k%d" % (index % 4), bytes([index]) * 900)])
        longest = max(longest, state.size_bytes())
    assert longest < 8000 + 2 * 4000 + 1000, "twice the rows, what may be superseded, and one commit"
    expected = await rows(state)
    disk.files.crash(lambda n: 0)
    state = await open_state(disk)
    assert await state.mark() == Checkpoint(200, 1, CONF)
    assert await rows(state) == expected
    assert disk.files.list(disk.path) == ["state.db"]


@pytest.mark.asyncio
@pytest.mark.usefixtures("rewritten_early")
async def test_every_crash_while_the_file_is_rewritten_keeps_what_was_committed(kit: Any) -> None:
    rng = kit.seeded(4)
    sizes = set()
    for call in range(1, 12):
        for _ in range(20):
            disk = kit.in_memory()
            state = await open_state(disk)
            for index in range(1, 11):
                await state.commit(Checkpoint(index, 1, CONF), [(b"k", bytes([index]) * 900)])
            assert state.size_bytes() > 9000, "the next commit meets the bound"
            at = disk.files.calls + call
            disk.files.fault = lambda n, op, path, at=at: PowerCut(op) if n >= at else None
            acknowledged = 10
            with contextlib.suppress(PowerCut):
                await state.commit(Checkpoint(11, 1, CONF), [(b"k", b"11")])
                acknowledged = 11
                await state.commit(Checkpoint(12, 1, CONF), [(b"k", b"12")])
                acknowledged = 12
            disk.files.crash(rng.randrange)
            state = await open_state(disk)
            index = (await state.mark()).index
            assert acknowledged <= index <= acknowledged + 1
            assert await rows(state) == [(b"k", {10: bytes([10]) * 900, 11: b"11", 12: b"12"}[index])]
            sizes.add((acknowledged, state.size_bytes() < 9000))
            for index in range(13, 40):  # whatever the crash left is no obstacle
                await state.commit(Checkpoint(index, 1, CONF), [(b"k", bytes([index]) * 900)])
            assert state.size_bytes() < 12_000
    assert {(10, False), (10, True), (11, True), (12, True)} <= sizes


@pytest.mark.asyncio
@pytest.mark.usefixtures("rewritten_early")
async def test_without_space_for_another_file_the_old_one_goes_on(kit: Any) -> None:
    disk = kit.in_memory()
    state = await open_state(disk)
    full = OSError(errno.ENOSPC, "disk full")
    disk.files.fault = lambda n, op, path: full if op == "open" else None
    for index in range(1, 20):
        await state.commit(Checkpoint(index, 1, CONF), [(b"k", bytes([index]) * 900)])
    assert state.size_bytes() > 17_000
    disk.files.fault = None
    for index in range(20, 30):
        await state.commit(Checkpoint(index, 1, CONF), [(b"k", bytes([index]) * 900)])
    assert state.size_bytes() < 12_000
    assert await rows(state) == [(b"k", bytes([29]) * 900)]


@pytest.mark.asyncio
@pytest.mark.usefixtures("rewritten_early")
async def test_a_rewritten_file_whose_name_cannot_be_synced_fails_the_backend(kit: Any) -> None:
    disk = kit.in_memory()
    state = await open_state(disk)
    broken = OSError(errno.EIO, "broken")
    disk.files.fault = lambda n, op, path: broken if op == "sync_directory" else None
    for index in range(1, 11):
        await state.commit(Checkpoint(index, 1, CONF), [(b"k", bytes([index]) * 900)])
    with pytest.raises(BackendFailed, match="broken"):
        await state.commit(Checkpoint(11, 1, CONF), [(b"k", b"v")])
    disk.files.fault = None
    with pytest.raises(BackendFailed, match="closed"):
        await state.commit(Checkpoint(99, 1, CONF), [(b"k", b"v")])


@pytest.mark.asyncio
async def test_durable_settings_are_in_force(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    state = await backend.open_sqlite_backend(path, IDENTITY)
    connection = await state._connect()
    values = {
        name: await backend._pragma(connection, name)
        for name in ("journal_mode", "synchronous", "wal_autocheckpoint", "application_id", "user_version")
    }
    assert values == {
        "journal_mode": "wal",
        "synchronous": 2,
        "wal_autocheckpoint": 0,
        "application_id": backend.APPLICATION_ID,
        "user_version": 1,
    }
    await state.close()


@pytest.mark.asyncio
async def test_a_sqlite_that_refuses_durability_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = backend._pragma

    async def ignores_synchronous(connection: aiosqlite.Connection, text: str) -> object:
        return 1 if text == "synchronous" else await real(connection, text)

    monkeypatch.setattr(backend, "_pragma", ignores_synchronous)
    with pytest.raises(BackendFailed, match="refuses durable settings"):
        await backend.open_sqlite_backend(str(tmp_path / "state.db"), IDENTITY)


@pytest.mark.asyncio
async def test_the_journal_is_folded_in_deliberately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "state.db")
    journal = tmp_path / "state.db-wal"
    monkeypatch.setattr(backend, "CHECKPOINT_BYTES", 1 << 20)
    state = await backend.open_sqlite_backend(path, IDENTITY)
    sizes = []
    for index in range(1, 30):
        await state.commit(Checkpoint(index, 1, CONF), [(b"%d" % i, b"%d" % index * 200) for i in range(200)])
        sizes.append(journal.stat().st_size)
    assert max(sizes) < 1 << 20
    assert 0 in sizes
    assert any(size > 100_000 for size in sizes)
    await state.close()


@pytest.mark.asyncio
async def test_a_cancelled_commit_leaves_no_open_transaction(tmp_path: Path) -> None:
    state = await backend.open_sqlite_backend(str(tmp_path / "state.db"), IDENTITY)
    # More than the page cache holds: part of it reaches the journal before the commit.
    big = [(b"%d" % i, bytes(backend.CACHE_KIB // 10)) for i in range(20_000)]
    journal = tmp_path / "state.db-wal"
    before = journal.stat().st_size
    task = asyncio.create_task(state.commit(Checkpoint(1, 1, CONF), big))
    async with asyncio.timeout(30):
        while journal.stat().st_size == before:  # noqa: ASYNC110  it raises no event
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await state.mark()).index == 0
    await state.commit(Checkpoint(2, 1, CONF), [(b"a", b"1")])
    assert await rows(state) == [(b"a", b"1")]
    await state.close()


@pytest.mark.asyncio
async def test_inspecting_the_file_does_not_block_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    real = backend.inspect

    def watched(path: str) -> None:
        threads.append(threading.current_thread())
        real(path)

    monkeypatch.setattr(backend, "inspect", watched)
    state = await backend.open_sqlite_backend(str(tmp_path / "state.db"), IDENTITY)
    await state.close()
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


@pytest.mark.asyncio
async def test_a_copy_that_is_not_wanted_any_more_ends_half_way(tmp_path: Path) -> None:
    state = await backend.open_sqlite_backend(str(tmp_path / "state.db"), IDENTITY)
    await state.commit(Checkpoint(3, 1, CONF), [(b"%d" % number, b"x" * 100) for number in range(20_000)])
    asked: list[int] = []

    def wanted() -> bool:
        asked.append(len(asked))
        return len(asked) < 2

    with pytest.raises(BackendFailed, match="interrupted"):
        await asyncio.to_thread(state.copy_to, str(tmp_path / "given-up.db"), wanted)
    assert len(asked) == 2
    await state.commit(Checkpoint(4, 1, CONF), [(b"goes on", b"")])
    whole = str(tmp_path / "whole.db")
    assert await asyncio.to_thread(state.copy_to, whole, lambda: True) == Checkpoint(4, 1, CONF)
    await state.close()

"""Recovery refuses changed durable bytes in one line that says how to rejoin, and leaves them untouched."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from raft.core.types import ConfState, SnapshotMeta
from raft.storage import (
    BackendFailed,
    Bootstrap,
    Checkpoint,
    Damaged,
    DirectoryEmpty,
    DirectoryLocked,
    DirectoryUnrecognized,
    DirectoryUnusable,
    FormatUnknown,
    MemoryFiles,
    StorageError,
    holds_member,
)

_HOLDER = """
import fcntl, sys
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


async def filled(kit: Any, disk: Any, works: int = 12, size: int = 1500) -> Any:
    """A closed member whose log spans three segments, the newest work marked as synced; returns its model."""
    member = await disk.open()
    model = kit.Model()
    for sequence in range(works):
        work = kit.append(sequence, model, 2, size)
        model = model.after(work)
        member.log.stage_work(work)
        member.log.commit()
    member.log.stage_synced_through()
    member.log.commit()
    await kit.close(member)
    return model


async def refused(disk: Any, kind: type[StorageError], **overrides: Any) -> str:
    """Open, and return the refusal: one line, every byte as before."""
    before = disk.contents()
    with pytest.raises(kind) as caught:
        await disk.open(**overrides)
    assert disk.contents() == before
    text = str(caught.value)
    assert "\n" not in text
    assert disk.path in text
    if kind is Damaged:
        assert "add it again as a new member" in text
    return text


@pytest.mark.asyncio
async def test_every_flipped_bit_in_what_was_written_is_detected(kit: Any, disk: Any) -> None:
    model = await filled(kit, disk)
    rng = kit.seeded(11)
    segments = disk.segments()
    assert len(segments) == 3
    flips = 150 if isinstance(disk.files, MemoryFiles) else 10
    for segment in segments:
        data = disk.read(segment)
        used = len(data.rstrip(b"\0"))
        positions = [
            *range(0, 60, 1 if flips > 10 else 7),
            *(rng.randrange(used) for _ in range(flips)),
            used - 1,
        ]
        for at in positions:
            bit = 1 << rng.randrange(8)
            disk.edit(segment, lambda data, at=at, bit=bit: data.__setitem__(at, data[at] ^ bit))
            with pytest.raises(Damaged):
                await disk.open()
            disk.edit(segment, lambda data, at=at, bit=bit: data.__setitem__(at, data[at] ^ bit))
    member = await disk.open()
    assert model.matches(member.recovered)
    await kit.close(member)


@pytest.mark.asyncio
async def test_a_sector_lost_before_the_end_is_damage(kit: Any, disk: Any) -> None:
    """A whole sector of zeros is a torn write only in the last frame; earlier ones were durable."""
    await filled(kit, disk)
    segment = disk.segments()[-1]
    data = disk.read(segment)
    used = len(data.rstrip(b"\0"))
    for at in range(512, used // 512 * 512 - 512, 512):
        disk.edit(segment, lambda data, at=at: data.__setitem__(slice(at, at + 512), bytes(512)))
        assert "damaged" in await refused(disk, Damaged)
        disk.edit(segment, lambda now: now.__setitem__(slice(None), data))


@pytest.mark.parametrize("kept", [0, 100, 512, 5000, 16 * 1024 - 1])
@pytest.mark.asyncio
async def test_a_short_segment_is_damage(kit: Any, disk: Any, kept: int) -> None:
    await filled(kit, disk)
    assert len(disk.segments()) >= 3
    for segment in disk.segments():
        data = disk.read(segment)
        disk.edit(segment, lambda now: now.__delitem__(slice(kept, None)))
        await refused(disk, Damaged)
        disk.edit(segment, lambda now, data=data: now.__setitem__(slice(None), data))


@pytest.mark.asyncio
async def test_a_long_segment_is_damage(kit: Any, disk: Any) -> None:
    await filled(kit, disk)
    disk.edit(disk.segments()[0], lambda data: data.extend(b"\0"))
    assert "instead of 16384" in await refused(disk, Damaged)


@pytest.mark.asyncio
async def test_a_missing_segment_is_damage(kit: Any, disk: Any) -> None:
    await filled(kit, disk)
    segments = disk.segments()
    disk.files.unlink(segments[1])
    assert "segment is missing" in await refused(disk, Damaged)
    disk.files.unlink(segments[0])
    assert "entries from 1 to" in await refused(disk, Damaged)
    disk.files.unlink(segments[2])
    assert "the log is missing" in await refused(disk, Damaged)


@pytest.mark.asyncio
async def test_exchanged_segments_are_damage(kit: Any, disk: Any) -> None:
    await filled(kit, disk)
    first, second, _ = disk.segments()
    data = disk.read(second)
    disk.edit(first, lambda now: now.__setitem__(slice(None), data))
    assert "sequence number 2" in await refused(disk, Damaged)
    disk.files.open(f"{disk.path}/wal/x.wal", create=True).close()
    assert "not a segment" in await refused(disk, Damaged)


@pytest.mark.asyncio
async def test_a_segment_of_another_disk_is_damage(kit: Any, disk: Any) -> None:
    await filled(kit, disk)
    other = kit.in_memory()
    await kit.close(await other.open(new_disk_id=lambda: 0xD15D))
    data = other.read(other.segments()[0])
    disk.edit(disk.segments()[2], lambda now: now.__setitem__(slice(None), data))
    assert "sequence number 1" in await refused(disk, Damaged)
    header = bytearray(data[:508])
    header[16] = 3  # the sequence of its file name
    forged = bytes(header) + crc32c(bytes(header)).to_bytes(4, "little")
    disk.edit(disk.segments()[2], lambda now: now.__setitem__(slice(0, 512), forged))
    assert "another member or disk" in await refused(disk, Damaged)


@pytest.mark.asyncio
async def test_a_newer_log_is_left_alone(kit: Any, disk: Any) -> None:
    await filled(kit, disk)

    def newer(data: bytearray) -> None:
        data[8] = 2
        data[508:512] = crc32c(bytes(data[:508])).to_bytes(4, "little")

    disk.edit(disk.segments()[0], newer)
    assert "format version 2 is not known" in await refused(disk, FormatUnknown)


@pytest.mark.asyncio
async def test_a_newer_backend_is_left_alone(kit: Any, disk: Any) -> None:
    await kit.close(await disk.open())
    state = f"{disk.path}/state.db"
    at = 1 if isinstance(disk.files, MemoryFiles) else 60
    disk.edit(state, lambda data: data.__setitem__(slice(at - 1, at + 4), data[at - 1 : at] + b"\0\0\0\x02"))
    if isinstance(disk.files, MemoryFiles):
        disk.edit(state, lambda data: data.__setitem__(slice(0, 2), b"\x02\0"))
    assert "format version 2 is not known" in await refused(disk, FormatUnknown)


@pytest.mark.asyncio
async def test_a_backend_of_another_disk_is_refused(kit: Any, disk: Any) -> None:
    await kit.close(await disk.open())
    for segment in disk.segments():
        disk.files.unlink(segment)
    state = f"{disk.path}/state.db"
    data = disk.read(state)
    disk.files.unlink(state)
    await kit.close(await disk.open(new_disk_id=lambda: 5))
    disk.edit(state, lambda now: now.__setitem__(slice(None), data))
    assert "another member or disk" in await refused(disk, DirectoryUnrecognized)


@pytest.mark.asyncio
async def test_a_backend_ahead_of_the_log_is_damage(kit: Any, disk: Any) -> None:
    model = await filled(kit, disk, works=3)
    member = await disk.open()
    await member.state.commit(Checkpoint(model.last_index + 1, 1, kit.CONF), [])
    await kit.close(member)
    assert "backend is at index 7 but the log ends at 6" in await refused(disk, Damaged)


@pytest.mark.asyncio
async def test_a_backend_of_another_history_is_damage(kit: Any, disk: Any) -> None:
    await filled(kit, disk, works=3)
    member = await disk.open()
    await member.state.commit(Checkpoint(4, 2, kit.CONF), [])
    await kit.close(member)
    assert "has term 2 at index 4, the log has 1" in await refused(disk, Damaged)


@pytest.mark.asyncio
async def test_a_backend_behind_the_log_is_damage(kit: Any, disk: Any) -> None:
    await filled(kit, disk, works=3)
    member = await disk.open()
    member.log.stage_compaction(SnapshotMeta(4, 1, kit.CONF))
    member.log.commit()
    await kit.close(member)
    assert "the log begins after 4" in await refused(disk, Damaged)
    disk.files.unlink(f"{disk.path}/state.db")
    assert "backend is missing" in await refused(disk, Damaged)


@pytest.mark.asyncio
async def test_a_lost_backend_is_rebuilt_while_the_log_is_whole(kit: Any, disk: Any) -> None:
    model = await filled(kit, disk, works=3)
    disk.files.unlink(f"{disk.path}/state.db")
    member = await disk.open()
    assert model.matches(member.recovered)
    assert (await member.state.mark()).index == 0
    await kit.close(member)


@pytest.mark.asyncio
async def test_a_commit_index_past_the_end_is_damage(kit: Any, disk: Any) -> None:
    member = await disk.open()
    work = kit.append(1, kit.Model(), 1, 10)
    work.hard_state = work.hard_state._replace(commit=5)
    member.log.stage_work(work)
    member.log.commit()
    await kit.close(member)
    assert "up to 5 were committed but the log ends at 1" in await refused(disk, Damaged)


@pytest.mark.asyncio
async def test_another_clusters_or_members_directory_is_refused(kit: Any, disk: Any) -> None:
    await kit.close(await disk.open())
    assert "belongs to cluster 7, not to 8" in await refused(disk, DirectoryUnrecognized, cluster_id=8)
    assert "belongs to member 1, not to 2" in await refused(disk, DirectoryUnrecognized, member_id=2)
    await kit.close(await disk.open(cluster_id=None, member_id=None, bootstrap=None))


@pytest.mark.asyncio
async def test_an_empty_directory_needs_a_bootstrap(kit: Any, disk: Any) -> None:
    assert not holds_member(disk.files, disk.path)
    with pytest.raises(DirectoryEmpty, match="no member"):
        await disk.open(bootstrap=None)
    assert not holds_member(disk.files, disk.path)
    await kit.close(await disk.open(bootstrap=Bootstrap(conf=ConfState())))
    assert holds_member(disk.files, disk.path)


@pytest.mark.asyncio
async def test_a_directory_in_use_is_refused_before_anything_is_opened(kit: Any, disk: Any) -> None:
    member = await disk.open()
    assert "in use by another process" in await refused(disk, DirectoryLocked)
    await kit.close(member)
    await kit.close(await disk.open())


@pytest.mark.asyncio
async def test_a_refused_directory_is_not_left_locked(kit: Any, disk: Any) -> None:
    await kit.close(await disk.open())
    for _ in range(2):
        with pytest.raises(DirectoryUnrecognized):
            await disk.open(cluster_id=8)


@pytest.mark.asyncio
async def test_a_lock_held_by_another_process_counts(kit: Any, tmp_path: Path) -> None:
    disk = kit.Disk(kit.real(), str(tmp_path / "member"))
    await kit.close(await disk.open())
    holder = subprocess.Popen(  # noqa: ASYNC220  # the test's loop has nothing else to do
        [
            sys.executable,
            "-c",
            _HOLDER,
            f"{disk.path}/lock",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        await refused(disk, DirectoryLocked)
        holder.kill()
    await kit.close(await disk.open())


@pytest.mark.asyncio
async def test_a_path_that_is_no_directory_is_refused(kit: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    disk = kit.Disk(kit.real(), str(tmp_path / "file"))
    with pytest.raises(DirectoryUnusable, match="cannot use the data directory"):
        await disk.open()


@pytest.mark.asyncio
async def test_another_file_under_the_backends_name(kit: Any, tmp_path: Path) -> None:
    disk = kit.Disk(kit.real(), str(tmp_path / "member"))
    await kit.close(await disk.open())
    state = f"{disk.path}/state.db"
    good = disk.read(state)

    def replace(content: bytes) -> None:
        disk.edit(state, lambda data: data.__setitem__(slice(None), content))

    replace(b"not a database, but long enough to hold a header " * 9)
    assert "not a backend file" in await refused(disk, Damaged)
    disk.files.unlink(state)
    other = sqlite3.connect(state)
    other.execute("CREATE TABLE t (x)")
    other.execute("PRAGMA user_version = 1")
    other.commit()
    other.close()
    assert "not a backend file" in await refused(disk, Damaged)
    replace(good[:4096])  # the first page, with the tables' pages gone
    with pytest.raises((Damaged, BackendFailed)):
        await disk.open()

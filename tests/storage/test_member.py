"""A member's directory is written, closed and recovered, on the real disk and on `MemoryFiles`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from raft.core.ready import AppendToken, AppendWork
from raft.core.types import ConfState, Entry, EntryKind, HardState, SnapshotMeta
from raft.storage import (
    Bootstrap,
    Checkpoint,
    DirectoryUnrecognized,
    FileSystem,
    InlineLogWriter,
    MemberDirectory,
    MemoryBackendOpener,
    MemoryFiles,
    RealFiles,
    ThreadedLogWriter,
    open_member,
)

CONF = ConfState((1, 2, 3))


@pytest.fixture(params=["real", "memory"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FileSystem, str]:
    if request.param == "real":
        return RealFiles(), str(tmp_path / "member")
    return MemoryFiles(), "/member"


async def open_(disk: tuple[FileSystem, str]) -> MemberDirectory:
    files, path = disk
    bootstrap = Bootstrap(conf=CONF, blob=b"members")
    kwargs = {"open_state": MemoryBackendOpener(files)} if isinstance(files, MemoryFiles) else {}
    return await open_member(
        files, path, cluster_id=7, member_id=1, bootstrap=bootstrap, segment_bytes=1 << 16, **kwargs
    )


def work(sequence: int, first: int, count: int, *, term: int = 1, size: int = 100) -> AppendWork:
    entries = [Entry(term, first + i, EntryKind.NORMAL, bytes([first % 256]) * size) for i in range(count)]
    last = first + count - 1
    return AppendWork(
        token=AppendToken(term, sequence, last, term),
        entries=entries,
        hard_state=HardState(term, 1, first - 1),
        must_sync=True,
    )


async def check_writer(disk: tuple[FileSystem, str], threaded: bool) -> None:
    loop = asyncio.get_running_loop()
    fatal: list[str] = []
    member = await open_(disk)
    assert member.fresh
    kind = ThreadedLogWriter if threaded else InlineLogWriter
    writer = kind(member.log, loop=loop, fatal=fatal.append)
    delivered: list[int] = []
    finished = loop.create_future()

    def done(done_work: AppendWork) -> None:
        delivered.append(done_work.token.sequence)
        if len(delivered) == 40:
            finished.set_result(None)

    for i in range(40):
        writer.submit(work(i, 1 + 5 * i, 5, size=1000), done)
    assert delivered == []  # never from inside submit
    await asyncio.wait_for(finished, 10)
    assert delivered == list(range(40))
    known = loop.create_future()
    writer.record_peer_disk(2, 99, lambda: known.set_result(None))
    writer.record_vote_eligible()
    await asyncio.wait_for(known, 10)
    await member.state.commit(Checkpoint(150, 1, CONF), [(b"a", b"1"), (b"b", b"2"), (b"a", None)])
    writer.compact(SnapshotMeta(150, 1, CONF))
    await writer.close()
    await member.state.close()
    member.release()
    assert fatal == []

    again = await open_(disk)
    assert not again.fresh
    assert again.recovered.identity == member.recovered.identity
    assert again.recovered.vote_eligible
    assert not again.recovered.tail_truncated
    assert again.recovered.snapshot == SnapshotMeta(150, 1, CONF)
    assert [e.index for e in again.recovered.entries] == list(range(151, 201))
    assert again.recovered.hard_state == HardState(1, 1, 195)
    assert dict(again.recovered.peer_disks) == {2: 99}
    assert again.bootstrap.blob == b"members"
    assert [row async for chunk in again.state.scan(b"", None) for row in chunk] == [(b"b", b"2")]
    assert await again.state.mark() == Checkpoint(150, 1, CONF)
    again.log.close()
    await again.state.close()
    again.release()


@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.asyncio
async def test_what_was_written_is_found_again(disk: tuple[FileSystem, str], threaded: bool) -> None:
    await check_writer(disk, threaded)


@pytest.mark.asyncio
async def test_a_member_is_not_created_among_files_of_another_program(
    disk: tuple[FileSystem, str],
) -> None:
    files, path = disk
    files.make_directory(f"{path}/snap")
    with pytest.raises(DirectoryUnrecognized, match="the directory holds 'snap', which is not data"):
        await open_(disk)
    assert files.list(path) == ["snap"]

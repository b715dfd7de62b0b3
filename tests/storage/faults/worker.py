"""Runs the life in one data directory, as a member's process does, and reports each step as a line.

Lines: `begun N` and `acked N` of the log's steps, `state INDEX` after a commit of the backend, `state-full`,
`full` and `space` about the log's next segment, `refused TEXT`, `fatal TEXT`, `done`. As a process it prints
them on stdout, uses real files and the threaded writer, and exits with 7 after `refused` and `fatal`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from raft.storage import (
    Backend,
    BackendFull,
    Bootstrap,
    FileSystem,
    InlineBackground,
    InlineLogWriter,
    MemberDirectory,
    MemoryBackendOpener,
    MemoryFiles,
    RealFiles,
    StorageError,
    ThreadedLogWriter,
    backend,
    open_member,
)
from tests.storage.faults.life import (
    BLOB,
    CLUSTER_ID,
    CONF,
    DISK_ID,
    INSTALLED,
    INSTALLED_ROWS,
    MEMBER_ID,
    SEGMENT_BYTES,
    Life,
    make_life,
)

FATAL_CODE = 7
BUG_CODE = 70
STEP_TIMEOUT_S = 20.0
FOLD_BYTES = 24 * 1024
"""Small, so that a short life folds the journal in."""

CHUNK_BYTES = 9000
"""Bytes of the snapshot per write, so that it takes several."""

Say = Callable[[str], None]


class Fatal(Exception):
    """The log's writer gave up."""


async def open_directory(path: str, files: FileSystem | None = None) -> MemberDirectory:
    options: dict[str, Any] = {}
    if isinstance(files, MemoryFiles):
        options = {"open_state": MemoryBackendOpener(files), "background": InlineBackground()}
    return await open_member(
        files or RealFiles(),
        path,
        cluster_id=CLUSTER_ID,
        member_id=MEMBER_ID,
        bootstrap=Bootstrap(conf=CONF, blob=BLOB),
        segment_bytes=SEGMENT_BYTES,
        new_disk_id=lambda: DISK_ID,
        **options,
    )


async def make_snapshot(path: str, files: FileSystem | None = None) -> tuple[bytes, bytes]:
    """The bytes and the digest of the snapshot that the life installs, made by another member at `path`."""
    member = await open_directory(path, files)
    await member.state.commit(INSTALLED, INSTALLED_ROWS)
    snapshot = await member.snapshot_store.build(member.state)
    data = await member.snapshot_store.read(snapshot, 0, snapshot.size_bytes)
    await member.snapshot_store.discard(snapshot)
    member.log.close()
    await member.state.close()
    member.release()
    return data, snapshot.sha256


async def live(
    path: str, life: Life, snapshot: tuple[bytes, bytes], say: Say, files: FileSystem | None = None
) -> None:
    """Live on real files, or on `files`; says `refused` or `fatal` and returns when the life is stopped."""
    try:
        await _live(path, life, snapshot, say, files)
    except (StorageError, OSError) as error:
        say(f"refused {type(error).__name__}: {error}")
    except Fatal as error:
        say(f"fatal {error}")


async def _live(
    path: str, life: Life, snapshot: tuple[bytes, bytes], say: Say, files: FileSystem | None
) -> None:
    loop = asyncio.get_running_loop()
    member = await open_directory(path, files)
    stopped: asyncio.Future[None] = loop.create_future()

    def on_space(space: bool) -> None:
        say("space" if space else "full")

    def fatal(message: str) -> None:
        stopped.set_exception(Fatal(message))

    writer: ThreadedLogWriter | InlineLogWriter
    if files is None:
        writer = ThreadedLogWriter(member.log, loop=loop, fatal=fatal, on_space=on_space, inline=False)
    else:
        writer = InlineLogWriter(member.log, loop=loop, fatal=fatal, on_space=on_space)
    late: int | None = None
    for number, step in enumerate(life.steps, 1):
        say(f"begun {number}")
        if step.quiet:
            if step.vote_eligible_step:
                writer.record_vote_eligible()
            elif step.compact is not None and (await member.state.mark()).index >= step.compact.index:
                writer.compact(step.compact)
            continue
        acked: asyncio.Future[None] = loop.create_future()

        def done(*_: object, acked: asyncio.Future[None] = acked) -> None:
            acked.set_result(None)

        received = await _receive(member, snapshot) if step.installs else None
        if step.work is not None:
            writer.submit(step.work, done)
        elif step.peer is not None:
            writer.record_peer_disk(*step.peer, done)
        await _first(acked, stopped)
        say(f"acked {number}")
        if received is not None:
            say(f"state {INSTALLED.index}")
            await member.state.close()
            member.state = received
            await member.snapshot_store.use(INSTALLED.index)
            late = None
        if number in life.commits:
            late = number
        if late is not None:
            late = await _commit(member, life, late, say)
    await _first(asyncio.ensure_future(writer.close()), stopped)
    if late is not None:
        await _commit(member, life, late, say)
    await member.state.close()
    member.release()
    say("done")


async def _receive(member: MemberDirectory, snapshot: tuple[bytes, bytes]) -> Backend:
    data, sha256 = snapshot
    incoming = await member.snapshot_store.receive(INSTALLED.index)
    try:
        while incoming.offset < len(data):
            await incoming.write(data[incoming.offset : incoming.offset + CHUNK_BYTES])
        await incoming.finish(sha256)
    finally:
        incoming.close()
    return await member.snapshot_store.open_received(INSTALLED.index)


async def _first(wanted: Awaitable[None], stopped: asyncio.Future[None]) -> None:
    """Wait for `wanted`; a stop goes before. Raises Fatal."""
    awaited = {asyncio.ensure_future(wanted), stopped}
    done, _ = await asyncio.wait(awaited, timeout=STEP_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
    assert done, "neither done nor failed"
    if stopped.done():
        stopped.result()


async def _commit(member: MemberDirectory, life: Life, number: int, say: Say) -> int | None:
    """Commit to the backend up to step `number`; return the step again if the disk is full."""
    before = (await member.state.mark()).index
    due = [commit for at, commit in sorted(life.commits.items()) if at <= number and commit[0].index > before]
    try:
        await member.state.commit(due[-1][0], [row for _, rows in due for row in rows])
    except BackendFull:
        say("state-full")
        return number
    say(f"state {due[-1][0].index}")
    return None


def main() -> None:
    stop = ("refused", "fatal")

    def say(line: str) -> None:
        os.write(1, (line + "\n").encode())
        if line.startswith(stop):
            os._exit(FATAL_CODE)

    async def run() -> None:
        with tempfile.TemporaryDirectory() as donor:
            snapshot = await make_snapshot(f"{donor}/member")
        await live(sys.argv[1], make_life(), snapshot, say)

    backend.CHECKPOINT_BYTES = FOLD_BYTES
    try:
        asyncio.run(run())
    except BaseException:  # noqa: BLE001  # whatever it was, the process must end
        # A thread of SQLite's connection that was left open would keep the process for ever.
        traceback.print_exc()
        os._exit(BUG_CODE)


if __name__ == "__main__":
    main()

"""Snapshots: copies of the backend made for other members, and those received, each a file of its own.

<data-dir>/state.db            the backend of a member that built its state from the log alone
<data-dir>/state-<index>.db    one that began as the snapshot received at that log index (16 hex digits)
<data-dir>/image-<number>.db   a copy to be sent; deleted after use, and at start

Only the log names the member's backend (`LogContents.backend`). A snapshot is received under its final name,
verified and synced with its directory; only then does the log name it, in the same frame as the snapshot
mark. So no file is ever renamed over another or opened with another file's journal, and after a crash at any
point the log names a complete file. The next start deletes every other one.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from raft.storage.files import File, FileSystem
from raft.storage.storage_errors import BackendFailed, Damaged, SnapshotInvalid
from raft.storage.storage_protocol import Backend, Checkpoint, Identity

logger = logging.getLogger(__name__)

STATE_NAME = "state.db"
STATE_PREFIX = "state-"
SNAPSHOT_PREFIX = "image-"
_SUFFIX = ".db"
_COMPANIONS = ("-wal", "-shm", "-journal")
"""Suffixes of the files that SQLite may create beside a database."""

SNAPSHOT_THREADS = 3
"""One makes a copy, which takes seconds if the state is large; one each serves a stream out and in."""

READ_BYTES = 1 << 20
"""Bytes per read while a copy is hashed."""

T = TypeVar("T")


class BackendOpener(Protocol):
    """Opens backends of one implementation."""

    async def __call__(self, path: str, identity: Identity) -> Backend:
        """Open the backend at `path`, or create an empty one, for the member of that identity."""

    def adopt(self, path: str, identity: Identity) -> Checkpoint:
        """Write this member's identity into the snapshot at `path`; return its checkpoint.

        Blocks, on any thread; the caller syncs the file. Raises Damaged, FormatUnknown, DirectoryUnrecognized
        (a snapshot of another cluster), BackendFull or BackendFailed.
        """


class Background(Protocol):
    """Runs functions that block on the disk for long."""

    async def run(self, function: Callable[[], T], give_up: Callable[[], None] | None = None) -> T:
        """Call the function. On cancellation call `give_up`, then wait for the function to return: it may be
        using a file."""

    def close(self) -> None:
        """Wait for the functions still running."""


class ThreadBackground:
    """A thread pool of its own, started when first needed."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(SNAPSHOT_THREADS, thread_name_prefix="raft-snapshots")

    async def run(self, function: Callable[[], T], give_up: Callable[[], None] | None = None) -> T:
        """See Background."""
        future = asyncio.get_running_loop().run_in_executor(self._executor, function)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if give_up is not None:
                give_up()
            await asyncio.wait([future])
            raise

    def close(self) -> None:
        self._executor.shutdown()


class InlineBackground:
    """Calls each function at once, on the loop: for simulation."""

    async def run(self, function: Callable[[], T], give_up: Callable[[], None] | None = None) -> T:
        return function()

    def close(self) -> None:
        """Nothing runs in the background."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of the backend: a closed file, durable except for its name. Discard it after use."""

    path: str
    mark: Checkpoint
    size_bytes: int
    sha256: bytes


def state_name(index: int) -> str:
    """Name of the backend that began as the snapshot at log index `index`, 0 for one that began empty."""
    return f"{STATE_PREFIX}{index:016x}{_SUFFIX}" if index else STATE_NAME


def is_state_name(name: str) -> bool:
    """Whether a name in the data directory is that of a backend, a copy, or a companion of one."""
    return name.startswith((STATE_NAME, STATE_PREFIX, SNAPSHOT_PREFIX))


class SnapshotStore:
    """The snapshots in one data directory. Used on the event loop only; raises OSError and StorageError."""

    def __init__(
        self,
        files: FileSystem,
        directory: str,
        identity: Identity,
        *,
        open_backend: BackendOpener,
        background: Background,
        backend: int,
    ) -> None:
        self._files = files
        self._directory = directory
        self._identity = identity
        self._open_backend = open_backend
        self._background = background
        self._in_use = backend
        self._numbers = 0
        """Copies begun so far."""
        self._building = asyncio.Lock()
        """One copy is made at a time."""

    @property
    def in_use(self) -> int:
        """Index in the name of the backend that the log names."""
        return self._in_use

    # -- copies to be sent

    async def build(self, state: Backend) -> Snapshot:
        """Copy what `state` holds durably, while its commits continue. Takes seconds for a large state; stops
        within milliseconds when cancelled."""
        async with self._building:
            self._numbers += 1
            path = f"{self._directory}/{SNAPSHOT_PREFIX}{self._numbers}{_SUFFIX}"
            unwanted = threading.Event()
            try:
                return await self._background.run(
                    lambda: self._build(state, path, lambda: not unwanted.is_set()), unwanted.set
                )
            except BaseException:
                await self._background.run(lambda: self._unlink(path))
                raise

    def _build(self, state: Backend, path: str, wanted: Callable[[], bool]) -> Snapshot:
        mark = state.copy_to(path, wanted)
        digest = hashlib.sha256()
        file = self._files.open(path)
        try:
            size = file.size()
            for offset in range(0, size, READ_BYTES):
                if not wanted():
                    raise BackendFailed(f"{path}: the copy was cancelled")
                digest.update(file.pread(READ_BYTES, offset))
        finally:
            file.close()
        return Snapshot(path, mark, size, digest.digest())

    async def read(self, snapshot: Snapshot, offset: int, size: int) -> bytes:
        """Up to `size` bytes of a copy."""

        def read() -> bytes:
            file = self._files.open(snapshot.path)
            try:
                return file.pread(size, offset)
            finally:
                file.close()

        return await self._background.run(read)

    async def discard(self, snapshot: Snapshot) -> None:
        await self._background.run(lambda: self._unlink(snapshot.path))

    # -- received snapshots

    async def receive(self, index: int) -> IncomingSnapshot:
        """Begin to receive the snapshot at log index `index`, above that of the backend in use.

        Deletes the file of an earlier attempt under the same name.
        """
        assert index > self._in_use, "the snapshot would overwrite the backend in use"
        path = f"{self._directory}/{state_name(index)}"

        def begin() -> File:
            self._unlink(path)
            return self._files.open(path, create=True)

        return IncomingSnapshot(self, path, await self._background.run(begin))

    async def open_received(self, index: int) -> Backend:
        """Open the received snapshot at `index`, which is not yet in use, as a backend."""
        return await self._open_backend(f"{self._directory}/{state_name(index)}", self._identity)

    async def use(self, index: int) -> None:
        """Delete the previous backend. Called when the log durably names the snapshot at `index` and the
        previous backend is closed."""
        before, self._in_use = self._in_use, index
        await self._background.run(lambda: self._unlink(f"{self._directory}/{state_name(before)}"))

    async def abandon(self, index: int) -> None:
        """Delete the snapshot received at `index`, which must be closed."""
        assert index != self._in_use, "the backend in use would be deleted"
        await self._background.run(lambda: self._unlink(f"{self._directory}/{state_name(index)}"))

    def sweep(self) -> None:
        """Delete files that the log does not name, left over from a previous incarnation. Blocks."""
        own = state_name(self._in_use)
        kept = (own, *(own + each for each in _COMPANIONS))
        stale = [name for name in self._files.list(self._directory) if is_state_name(name)]
        stale = [name for name in stale if name not in kept]
        for name in stale:
            self._files.unlink(f"{self._directory}/{name}")
        if stale:
            self._files.sync_directory(self._directory)

    def close(self) -> None:
        """Wait for the threads."""
        self._background.close()

    def _unlink(self, path: str) -> None:
        found = [name for name in (path, *(path + each for each in _COMPANIONS)) if self._files.exists(name)]
        for name in found:
            self._files.unlink(name)
        if found:
            # Sync before these names are reused: a companion that reappeared would belong to another file.
            self._files.sync_directory(self._directory)


class IncomingSnapshot:
    """A snapshot being received, in order, under its final name. One call at a time."""

    def __init__(self, store: SnapshotStore, path: str, file: File) -> None:
        self._store = store
        self._path = path
        self._file = file
        self._digest = hashlib.sha256()
        """Of the first `offset` bytes."""
        self.offset = 0
        """Bytes written; where the transfer continues."""

    async def write(self, data: bytes) -> None:
        """Append the next bytes."""
        await self._store._background.run(lambda: self._write(data))

    def _write(self, data: bytes) -> None:
        self._file.pwrite(data, self.offset)
        self._digest.update(data)
        self.offset += len(data)

    async def finish(self, sha256: bytes) -> Checkpoint:
        """Verify and adopt what was received; return its checkpoint. Durable, name included, on return.

        Raises SnapshotInvalid when the digest differs or the content is damaged, and what else
        BackendOpener.adopt raises.
        """
        return await self._store._background.run(lambda: self._finish(sha256))

    def _finish(self, sha256: bytes) -> Checkpoint:
        store = self._store
        if self._digest.digest() != sha256:
            raise SnapshotInvalid("the snapshot received is not the one that was sent")
        self._file.datasync()
        try:
            mark = store._open_backend.adopt(self._path, store._identity)
        except Damaged as error:
            raise SnapshotInvalid(f"the snapshot received is damaged: {error.what}") from error
        self._file.sync()
        self.close()
        store._files.sync_directory(store._directory)
        return mark

    def close(self) -> None:
        """Close the file. The store's `abandon` deletes it."""
        self._file.close()

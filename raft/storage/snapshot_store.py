"""Whole images of the state: copies made for others, and those received, each a file of its own.

<data-dir>/state.db            the state file of a member that has built its state by itself
<data-dir>/state-<index>.db    one that began as an image received at that log index (16 hex digits)
<data-dir>/image-<number>.db   a copy on its way to somebody else; deleted after use, and at start

Which state file is the member's own is said by the log and by nothing else (`Recovered.backend`): an
image is received under its final name, verified, synced with its directory, and only then named by the
log, in the same frame as the snapshot mark. So no file is ever renamed over another or found beside a
journal that is not its own, and after a crash at any point the log names a whole file; what it does not
name is deleted.
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
from raft.storage.storage_errors import BackendFailed, Damaged
from raft.storage.storage_protocol import Backend, Checkpoint, Identity

logger = logging.getLogger(__name__)

STATE_NAME = "state.db"
STATE_PREFIX = "state-"
SNAPSHOT_PREFIX = "image-"
_SUFFIX = ".db"
_COMPANIONS = ("-wal", "-shm", "-journal")
"""What SQLite may put beside a file."""

SNAPSHOT_THREADS = 3
"""One for a copy being made, which takes seconds if the state is large; one each for a stream out and in."""

READ_BYTES = 1 << 20
"""Read at once while a copy is summed."""

T = TypeVar("T")


class StateFormat(Protocol):
    """A kind of state file."""

    async def __call__(self, path: str, identity: Identity) -> Backend:
        """Open the state file at a path, or create an empty one, for the member of that identity."""

    def adopt(self, path: str, identity: Identity) -> Checkpoint:
        """Make the image at `path`, a copy of another member's state file, this member's; its mark.

        Blocks, on any thread; the caller syncs the file. Raises Damaged, FormatUnknown, DirectoryUnrecognized
        (an image of another cluster), BackendFull or BackendFailed.
        """


class Background(Protocol):
    """Where work that blocks on the disk for long is done."""

    async def run(self, function: Callable[[], T], give_up: Callable[[], None] | None = None) -> T:
        """Call the function. A cancelled caller calls `give_up`, and goes on when the function has ended: it
        may be at work on a file."""

    def close(self) -> None:
        """Wait for what is being done."""


class ThreadBackground:
    """Threads of its own, started when first needed."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(SNAPSHOT_THREADS, thread_name_prefix="raft-images")

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
    """At once, in the caller: for simulation."""

    async def run(self, function: Callable[[], T], give_up: Callable[[], None] | None = None) -> T:
        return function()

    def close(self) -> None:
        """Nothing is being done."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of the state file, closed and durable but for its name. Discard it after use."""

    path: str
    mark: Checkpoint
    size_bytes: int
    sha256: bytes


def state_name(index: int) -> str:
    """Name of the state file that began at log index `index`, 0 for one that began empty."""
    return f"{STATE_PREFIX}{index:016x}{_SUFFIX}" if index else STATE_NAME


def is_state_name(name: str) -> bool:
    """Whether a name in the data directory is that of a state file, a copy, or a companion of one."""
    return name.startswith((STATE_NAME, STATE_PREFIX, SNAPSHOT_PREFIX))


class SnapshotStore:
    """The images in one data directory. Belongs to the event loop; errors are OSError and StorageError."""

    def __init__(
        self,
        files: FileSystem,
        directory: str,
        identity: Identity,
        *,
        state_format: StateFormat,
        background: Background,
        backend: int,
    ) -> None:
        self._files = files
        self._directory = directory
        self._identity = identity
        self._format = state_format
        self._background = background
        self._in_use = backend
        """Index in the name of the state file that the log names."""
        self._numbers = 0
        """Copies begun so far."""
        self._building = asyncio.Lock()
        """One copy is made at a time."""

    @property
    def in_use(self) -> int:
        """Index in the name of the state file that the log names."""
        return self._in_use

    # -- copies for others

    async def build(self, state: Backend) -> Snapshot:
        """Copy what `state` holds durably, without disturbing it. Takes seconds for a large state; cancelled,
        it ends at once."""
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
                    raise BackendFailed(f"{path}: the copy was given up")
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
        """Delete a copy."""
        await self._background.run(lambda: self._unlink(snapshot.path))

    # -- images received

    async def receive(self, index: int) -> IncomingSnapshot:
        """Begin to receive the image at log index `index`, beyond that of the state file in use.

        Whatever lies under its name is of an earlier attempt and goes.
        """
        assert index > self._in_use, "an image is received that would replace its own file"
        path = f"{self._directory}/{state_name(index)}"

        def begin() -> File:
            self._unlink(path)
            return self._files.open(path, create=True)

        return IncomingSnapshot(self, path, await self._background.run(begin))

    async def open_received(self, index: int) -> Backend:
        """Open the received image at `index`, which is not yet in use, as a state file."""
        return await self._format(f"{self._directory}/{state_name(index)}", self._identity)

    async def use(self, index: int) -> None:
        """The log names the image received at `index` durably, and its predecessor is closed: delete that."""
        before, self._in_use = self._in_use, index
        await self._background.run(lambda: self._unlink(f"{self._directory}/{state_name(before)}"))

    async def abandon(self, index: int) -> None:
        """The image received at `index`, closed by now, is not wanted."""
        assert index != self._in_use, "the state file in use would be deleted"
        await self._background.run(lambda: self._unlink(f"{self._directory}/{state_name(index)}"))

    def sweep(self) -> None:
        """Delete what the log does not name: left over from an earlier process. Blocks."""
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
            # Before anything is created under these names: a companion that came back would not be its own.
            self._files.sync_directory(self._directory)


class IncomingSnapshot:
    """An image being received, in order, into its final place. One call at a time."""

    def __init__(self, store: SnapshotStore, path: str, file: File) -> None:
        self._store = store
        self._path = path
        self._file = file
        self._digest = hashlib.sha256()
        """Of the first `offset` bytes."""
        self.offset = 0
        """Bytes written; where the transfer goes on."""

    async def write(self, data: bytes) -> None:
        """Add the next bytes."""
        await self._store._background.run(lambda: self._write(data))

    def _write(self, data: bytes) -> None:
        self._file.pwrite(data, self.offset)
        self._digest.update(data)
        self.offset += len(data)

    async def finish(self, sha256: bytes) -> Checkpoint:
        """Verify and adopt what was received; its mark. Durable, name included, when this returns.

        Raises Damaged when it is not what was sent, and what StateFormat.adopt raises.
        """
        return await self._store._background.run(lambda: self._finish(sha256))

    def _finish(self, sha256: bytes) -> Checkpoint:
        store = self._store
        if self._digest.digest() != sha256:
            raise Damaged("the image received is not the one that was sent", self._path)
        self._file.datasync()
        mark = store._format.adopt(self._path, store._identity)
        self._file.sync()
        self.close()
        store._files.sync_directory(store._directory)
        return mark

    def close(self) -> None:
        """Close the file. The store's `abandon` deletes it."""
        self._file.close()

"""The only access to the disk: few operations, each with its durability spelled out.

Nothing is durable by itself. Bytes need `datasync` (or `sync`); names - new, renamed or removed - need
`sync_directory` of their directory. The fake in `memory_files` loses everything else at a crash, so code
that passes on it syncs everything it relies on. Every method may raise OSError; callers decide what that
means.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Protocol

from raft.storage.storage_errors import DirectoryLocked


def directory_locked(lock_path: str) -> DirectoryLocked:
    """The refusal, for the lock file at `lock_path`."""
    return DirectoryLocked(f"{lock_path.rpartition('/')[0]}: data directory is in use by another process")


class File(Protocol):
    """One open file, read and written at explicit offsets."""

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end of the file."""

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all of `data`, extending the file if needed. Not durable until a sync."""

    def allocate(self, size: int) -> None:
        """Make the file at least `size` bytes long, zero-filled, its blocks reserved."""

    def datasync(self) -> None:
        """Make the bytes and the length durable; not the name."""

    def sync(self) -> None:
        """As `datasync`, with every attribute."""

    def size(self) -> int: ...

    def close(self) -> None: ...


class Lock(Protocol):
    """An exclusive lock, held until it is released or the process exits."""

    def release(self) -> None: ...


class FileSystem(Protocol):
    """Names. Paths are plain strings with `/`."""

    def open(self, path: str, *, create: bool = False) -> File:
        """Open for reading and writing. `create` makes a new file and fails if the name exists."""

    def exists(self, path: str) -> bool: ...

    def list(self, directory: str) -> list[str]:
        """Names in the directory, sorted."""

    def make_directory(self, path: str) -> None:
        """Create a directory and what is missing above it, private to the user; no error if it exists."""

    def rename(self, source: str, target: str) -> None:
        """Atomically, replacing `target`."""

    def unlink(self, path: str) -> None: ...

    def sync_directory(self, path: str) -> None:
        """Make all names in the directory durable."""

    def lock(self, path: str) -> Lock:
        """Take the exclusive lock named by the file `path`, or raise DirectoryLocked at once."""


class RealFile:
    __slots__ = ("_fd", "_path")

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        """Open descriptor, or -1 once closed."""
        self._path = path

    def pread(self, size: int, offset: int) -> bytes:
        chunks = []
        while size > 0:
            chunk = os.pread(self._fd, size, offset)
            if not chunk:
                break
            chunks.append(chunk)
            size -= len(chunk)
            offset += len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def pwrite(self, data: bytes, offset: int) -> None:
        written = os.pwrite(self._fd, data, offset)
        if written != len(data):
            # A regular file takes all, or the device is failing; which part was written is unknown.
            raise OSError(errno.EIO, "short write", self._path)

    def allocate(self, size: int) -> None:
        os.posix_fallocate(self._fd, 0, size)

    def datasync(self) -> None:
        os.fdatasync(self._fd)

    def sync(self) -> None:
        os.fsync(self._fd)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class RealLock:
    """flock on an open descriptor: the kernel releases it however the process exits."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class RealFiles:
    """The operating system's file system."""

    def open(self, path: str, *, create: bool = False) -> RealFile:
        flags = os.O_RDWR | os.O_CLOEXEC
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        return RealFile(os.open(path, flags, 0o600), path)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def list(self, directory: str) -> list[str]:
        return sorted(os.listdir(directory))

    def make_directory(self, path: str) -> None:
        os.makedirs(path, 0o700, exist_ok=True)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def lock(self, path: str) -> RealLock:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise directory_locked(path) from None
        except BaseException:
            os.close(fd)
            raise
        return RealLock(fd)

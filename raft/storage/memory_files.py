"""An in-memory file system whose crash loses unsynced data in every way a disk may lose it.

At a crash, of each file's unsynced writes any subset of 512 B sectors survives (of several writes to one
sector, a prefix); of the unsynced changes of names in a directory, any subset (of several to one name, a
prefix). The caller makes every choice, so a seed repeats a crash and an enumeration visits all. Faults can be
injected at the nth call. Deterministic; single-threaded by intent.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from raft.storage.files import directory_locked
from raft.storage.records import SECTOR_BYTES

Choose = Callable[[int], int]
"""choose(n): a number from 0 to n - 1."""

Fault = Callable[[int, str, str], BaseException | None]
"""fault(call, operation, path): an exception to raise instead of running the call, or None."""


class PowerCut(Exception):
    """Injected by tests to stop a member between two operations; handles from before a crash raise it too."""


def fail_at(call: int, code: int) -> Fault:
    """A fault: an OSError with errno `code` at call number `call`, counted from 1, and ever after."""

    def fault(number: int, operation: str, path: str) -> BaseException | None:
        return OSError(code, os.strerror(code), path) if number >= call else None

    return fault


@dataclass(slots=True)
class _Inode:
    """One file's bytes, independent of its names."""

    current: bytearray = field(default_factory=bytearray)
    """What a reader sees."""
    durable: bytearray = field(default_factory=bytearray)
    """What every crash keeps."""
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    """Writes since the last sync, oldest first, split at sector boundaries."""

    def sync(self) -> None:
        _resize(self.durable, len(self.current))
        for offset, data in self.pending:
            self.durable[offset : offset + len(data)] = data
        self.pending.clear()

    def crash(self, choose: Choose) -> None:
        if len(self.current) != len(self.durable) and choose(2):
            _resize(self.durable, len(self.current))
        by_sector: dict[int, list[tuple[int, bytes]]] = {}
        for offset, data in self.pending:
            by_sector.setdefault(offset // SECTOR_BYTES, []).append((offset, data))
        for pieces in by_sector.values():
            for offset, data in pieces[: choose(len(pieces) + 1)]:
                kept = data[: max(0, len(self.durable) - offset)]
                self.durable[offset : offset + len(kept)] = kept
        self.pending.clear()
        self.current = bytearray(self.durable)


def _resize(content: bytearray, size: int) -> None:
    if size > len(content):
        content.extend(bytes(size - len(content)))
    else:
        del content[size:]


_Change = tuple[str, _Inode | None]
"""One name set to a file, or removed."""


@dataclass(slots=True)
class _Directory:
    """Names in one directory. A rename within it is one change (two names at once)."""

    current: dict[str, _Inode] = field(default_factory=dict)
    durable: dict[str, _Inode] = field(default_factory=dict)
    pending: list[list[_Change]] = field(default_factory=list)
    """Changes since the last sync, oldest first; each is atomic."""

    def change(self, *changes: _Change) -> None:
        _apply(self.current, list(changes))
        self.pending.append(list(changes))

    def sync(self) -> None:
        self.durable = dict(self.current)
        self.pending.clear()

    def crash(self, choose: Choose) -> None:
        lost: set[str] = set()
        for changes in self.pending:
            names = {name for name, _ in changes}
            if lost & names or not choose(2):
                lost |= names  # a change that builds on a lost name is lost with it
            else:
                _apply(self.durable, changes)
        self.pending.clear()
        self.current = dict(self.durable)


def _apply(names: dict[str, _Inode], changes: list[_Change]) -> None:
    for name, inode in changes:
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


class MemoryFiles:
    """Implements `FileSystem`. Directories, once made, are durable; names in them are not."""

    def __init__(self, *, sync_works: bool = True) -> None:
        self.sync_works = sync_works
        """False makes every sync a no-op: the negative control of power-cut tests."""
        self.fault: Fault | None = None
        """Consulted before each counted call; see `fail_at`."""
        self.calls = 0
        """Operations so far (reads, `exists` and `list` do not count)."""
        self.life = 0
        """Number of crashes and restarts so far. Handles of an earlier life raise PowerCut."""
        self._directories: dict[str, _Directory] = {}
        self._locks: dict[str, MemoryLock] = {}

    # ---- FileSystem

    def open(self, path: str, *, create: bool = False) -> MemoryFile:
        self.count("open", path)
        directory, name = self._locate(path)
        if create:
            if name in directory.current:
                raise FileExistsError(errno.EEXIST, "file exists", path)
            directory.change((name, _Inode()))
        elif name not in directory.current:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return MemoryFile(self, path, directory.current[name])

    def exists(self, path: str) -> bool:
        if path in self._directories:
            return True
        parent, _, name = path.rpartition("/")
        return parent in self._directories and name in self._directories[parent].current

    def list(self, directory: str) -> list[str]:
        below = [
            path.rpartition("/")[2] for path in self._directories if path.rpartition("/")[0] == directory
        ]
        return sorted([*self._directory(directory).current, *below])

    def make_directory(self, path: str) -> None:
        self.count("make_directory", path)
        self._directories.setdefault(path, _Directory())

    def rename(self, source: str, target: str) -> None:
        self.count("rename", source)
        directory, name = self._locate(source)
        target_directory, target_name = self._locate(target)
        if directory is not target_directory:
            raise OSError(errno.EXDEV, "rename between directories", source)
        directory.change((name, None), (target_name, directory.current[name]))

    def unlink(self, path: str) -> None:
        self.count("unlink", path)
        directory, name = self._locate(path)
        if name not in directory.current:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        directory.change((name, None))

    def sync_directory(self, path: str) -> None:
        self.count("sync_directory", path)
        if self.sync_works and path in self._directories:
            self._directories[path].sync()

    def lock(self, path: str) -> MemoryLock:
        if path in self._locks:
            raise directory_locked(path)
        lock = self._locks[path] = MemoryLock(self, path)
        return lock

    # ---- for tests and simulations

    def crash(self, choose: Choose) -> None:
        """Lose power and restart: keep what `choose` lets survive; locks and handles are gone."""
        for path in sorted(self._directories):
            directory = self._directories[path]
            inodes = {
                id(inode): inode for inode in [*directory.current.values(), *directory.durable.values()]
            }
            directory.crash(choose)
            for inode in inodes.values():
                inode.crash(choose)
        self.restart()

    def restart(self) -> None:
        """Kill and restart the process only: all written bytes and names stay; locks and handles are gone."""
        self.life += 1
        self.fault = None
        self._locks.clear()

    def damage(self, path: str, edit: Callable[[bytearray], None]) -> None:
        """Corrupt a file's bytes durably, without a counted operation."""
        directory, name = self._locate(path)
        inode = directory.current[name]
        inode.sync()
        edit(inode.current)
        inode.durable = bytearray(inode.current)

    def count(self, operation: str, path: str) -> None:
        """Count one operation; raise the fault injected at it, if any."""
        self.calls += 1
        if self.fault is not None:
            error = self.fault(self.calls, operation, path)
            if error is not None:
                raise error

    def unlock(self, lock: MemoryLock) -> None:
        """Release a lock, unless an earlier life took it."""
        if self._locks.get(lock.path) is lock:
            del self._locks[lock.path]

    def _directory(self, path: str) -> _Directory:
        if path not in self._directories:
            raise FileNotFoundError(errno.ENOENT, "no such directory", path)
        return self._directories[path]

    def _locate(self, path: str) -> tuple[_Directory, str]:
        parent, _, name = path.rpartition("/")
        return self._directory(parent), name


class MemoryLock:
    """Implements `Lock`."""

    def __init__(self, files: MemoryFiles, path: str) -> None:
        self._files = files
        self.path = path

    def release(self) -> None:
        self._files.unlock(self)


class MemoryFile:
    """Implements `File`."""

    def __init__(self, files: MemoryFiles, path: str, inode: _Inode) -> None:
        self._files = files
        self._path = path
        self._inode = inode
        self._life = files.life

    def pread(self, size: int, offset: int) -> bytes:
        return bytes(self._inode.current[offset : offset + size])

    def pwrite(self, data: bytes, offset: int) -> None:
        self._count("pwrite")
        inode = self._inode
        if offset + len(data) > len(inode.current):
            _resize(inode.current, offset + len(data))
        inode.current[offset : offset + len(data)] = data
        position = 0
        while position < len(data):
            end = min(len(data), position + SECTOR_BYTES - (offset + position) % SECTOR_BYTES)
            inode.pending.append((offset + position, data[position:end]))
            position = end

    def allocate(self, size: int) -> None:
        self._count("allocate")
        if size > len(self._inode.current):
            _resize(self._inode.current, size)

    def datasync(self) -> None:
        self._count("datasync")
        if self._files.sync_works:
            self._inode.sync()

    def sync(self) -> None:
        self._count("sync")
        if self._files.sync_works:
            self._inode.sync()

    def size(self) -> int:
        return len(self._inode.current)

    def close(self) -> None:
        """Closing makes nothing durable."""

    def _count(self, operation: str) -> None:
        if self._life != self._files.life:
            raise PowerCut(f"{self._path}: this handle belongs to a previous incarnation")
        self._files.count(operation, self._path)

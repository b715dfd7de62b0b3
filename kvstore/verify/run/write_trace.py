"""From a recorded trace of system calls to any state that a power cut could have left on the disk.

The trace (strace with paths and whole data) is replayed into a model of the member's directory: what
each file held at its last completed sync, and what was done to it since; which names their directory's
last sync covered, and what was done to names since. A power cut keeps everything synced and, of the rest, at
random: nothing, all, a prefix, or any subset of 512-byte sectors.

A write is covered by a sync only if it had returned before the sync began. SQLite's shared-memory
index is not durable state and is left out, as is the lock file.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

TRACED = (
    "openat,open,creat,pwrite64,ftruncate,fallocate,rename,renameat,renameat2,unlink,unlinkat,fsync,fdatasync"
)
"""The calls with which members change files and names, or make them durable. Should they ever use another,
`compare` finds that the trace does not explain the disk. (`write` would double the trace: pipes use it.)"""

DATA_BYTES_MAX = 1 << 24
"""Of one write, in the trace: above the largest frame of the log and the largest page batch of SQLite."""

SECTOR_BYTES = 512
IGNORED_SUFFIXES = ("-shm", "/lock")

_CALL = re.compile(r"^(\d+)\s+(\w+)\((.*)$", re.DOTALL)
_RESUMED = re.compile(r"^(\d+)\s+<\.\.\. (\w+) resumed>(.*)$", re.DOTALL)
_RESULT = re.compile(r"\)\s+= (-?\d+|\?)")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"^(\d+)<((?:\\x[0-9a-f]{2})*)>")


class TraceError(Exception):
    """The trace cannot be understood, or does not explain what is on the disk."""


class Change(NamedTuple):
    """One thing done to a file."""

    offset: int
    data: bytes
    """Written at the offset; empty for a change of length."""
    length: int = -1
    """New length of the file, or -1."""
    is_sure: bool = True
    """False for a write that its process did not live to see the end of."""


@dataclass(slots=True)
class TracedFile:
    """One file's content, durable and not."""

    synced: bytearray = field(default_factory=bytearray)
    """As of the last completed sync."""
    pending: list[Change] = field(default_factory=list)
    """Done since, in order."""


class NameChange(NamedTuple):
    """One thing done to a name; `file` None takes it away."""

    path: str
    file: TracedFile | None


class TracedDirectory:
    """A member's directory: files by name, durable and not."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self.names: dict[str, TracedFile] = {}
        """As they are now, un-synced changes included."""
        self.durable_names: dict[str, TracedFile] = {}
        """As of their directory's last sync."""
        self.name_changes: list[NameChange] = []
        """Done since, in order."""
        self._syncing: dict[str, tuple[TracedFile, int]] = {}
        """By thread: the file being synced, and how many of its changes the sync will cover."""

    def load_from(self, base: Path) -> None:
        """Begin with a copy of the directory as it was before the first trace, all of it durable."""
        for path in sorted(base.rglob("*")):
            if path.is_file() and not str(path).endswith(IGNORED_SUFFIXES):
                name = f"{self._root}/{path.relative_to(base)}"
                self.names[name] = self.durable_names[name] = TracedFile(bytearray(path.read_bytes()))

    def replay(self, trace: Path) -> None:
        """Go through one process's trace. Raises TraceError."""
        started: dict[str, tuple[str, str]] = {}
        with trace.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                found = _CALL.match(line)
                if found is not None:
                    thread, call, rest = found.groups()
                    if rest.rstrip().endswith("<unfinished ...>"):
                        rest = rest.rstrip().removesuffix("<unfinished ...>")
                        started[thread] = (call, rest)
                        self._begun(thread, call, rest)
                    else:
                        self._begun(thread, call, rest)
                        self._done(thread, call, rest, rest)
                    continue
                resumed = _RESUMED.match(line)
                if resumed is not None and resumed.group(1) in started:
                    call, rest = started.pop(resumed.group(1))
                    self._done(resumed.group(1), call, rest, resumed.group(3))
        for call, rest in started.values():
            self._interrupted(call, rest)
        self._syncing.clear()

    def _interrupted(self, call: str, rest: str) -> None:
        """A call the process did not live to see the end of: it may have been carried out."""
        if call == "pwrite64":
            self._write_at(rest, None)

    def _ours(self, path: str) -> bool:
        return path.startswith(self._root + "/") and not path.endswith(IGNORED_SUFFIXES)

    def _begun(self, thread: str, call: str, rest: str) -> None:
        if call in ("fsync", "fdatasync"):
            file = self.names.get(_path_of(rest))
            if file is not None:
                self._syncing[thread] = (file, len(file.pending))

    def _done(self, thread: str, call: str, rest: str, end: str) -> None:
        result = _RESULT.search(end)
        syncing = self._syncing.pop(thread, None)
        if result is None or result.group(1) == "?":
            self._interrupted(call, rest)
            return
        if int(result.group(1)) < 0:
            return
        count = int(result.group(1))
        if call in ("fsync", "fdatasync"):
            self._synced(_path_of(rest), syncing)
        elif call == "pwrite64":
            self._write_at(rest, count)
        elif call in ("openat", "open", "creat"):
            if "O_CREAT" in rest or call == "creat":
                self._created(_last_string(rest), truncated="O_TRUNC" in rest or call == "creat")
        elif call == "ftruncate":
            self._sized(_path_of(rest), int(rest.split(", ")[1].split(")")[0]), grow_only=False)
        elif call == "fallocate":
            _, _, offset, size = rest.split(")")[0].split(", ")
            self._sized(_path_of(rest), int(offset) + int(size), grow_only=True)
        elif call.startswith("rename"):
            source, target = _strings(rest)[:2]
            self._renamed(source, target)
        elif call.startswith("unlink"):
            path = _last_string(rest)
            if self.names.pop(path, None) is not None:
                self.name_changes.append(NameChange(path, None))

    def _write_at(self, rest: str, count: int | None) -> None:
        path = _path_of(rest)
        if not self._ours(path):
            return
        data = _data(rest)
        offset = int(rest.rsplit(", ", 1)[1].split(")")[0])
        done = data if count is None else data[:count]
        self._file(path).pending.append(Change(offset, done, is_sure=count is not None))

    def _file(self, path: str) -> TracedFile:
        file = self.names.get(path)
        if file is None:
            raise TraceError(f"{path} was written and never created")
        return file

    def _created(self, path: str, truncated: bool) -> None:
        if not self._ours(path):
            return
        if path in self.names:
            if truncated:
                self.names[path].pending.append(Change(0, b"", 0))
            return
        self.names[path] = TracedFile()
        self.name_changes.append(NameChange(path, self.names[path]))

    def _sized(self, path: str, length: int, *, grow_only: bool) -> None:
        if not self._ours(path):
            return
        file = self._file(path)
        if grow_only and length <= len(content(file.synced, file.pending)):
            return
        file.pending.append(Change(0, b"", length))

    def _renamed(self, source: str, target: str) -> None:
        if not self._ours(source):
            return
        file = self.names.pop(source, None)
        if file is None:
            raise TraceError(f"{source} was renamed and never created")
        self.names[target] = file
        self.name_changes += [NameChange(target, file), NameChange(source, None)]

    def _synced(self, path: str, syncing: tuple[TracedFile, int] | None) -> None:
        if syncing is not None:
            file, covered = syncing
            _apply(file.synced, file.pending[:covered])
            del file.pending[:covered]
            return
        inside = [change for change in self.name_changes if os.path.dirname(change.path) == path]
        for change in inside:
            _rename(self.durable_names, change)
        self.name_changes = [change for change in self.name_changes if change not in inside]

    def compare(self) -> None:
        """Raise TraceError unless everything done, synced or not, is exactly what is on the disk."""
        for path, file in self.names.items():
            held = bytearray(Path(path).read_bytes())
            expected = content(file.synced, [change for change in file.pending if change.is_sure])
            for change in file.pending:
                if not change.is_sure:  # whatever of it is there, is there
                    part = slice(change.offset, change.offset + len(change.data))
                    expected.extend(bytes(max(0, min(len(held), part.stop) - len(expected))))
                    expected[part] = held[part]
            if held != expected:
                position = next(
                    (n for n, (a, b) in enumerate(zip(held, expected, strict=False)) if a != b), -1
                )
                raise TraceError(
                    f"{path}: {len(held)} bytes on disk, {len(expected)} traced, difference at {position}"
                )

    def pending_bytes(self) -> int:
        """How much was not synced."""
        return sum(len(change.data) for file in self.names.values() for change in file.pending)

    def after_power_cut(self, rng: random.Random) -> dict[str, bytearray]:
        """One state that a power cut at this moment could leave: content by path."""
        names = dict(self.durable_names)
        keep = rng.choice((0, len(self.name_changes), rng.randint(0, len(self.name_changes))))
        for change in self.name_changes[:keep]:  # names go through a journal: in order or not at all
            _rename(names, change)
        mode = rng.choice(("nothing", "nothing", "a beginning", "sectors", "sectors", "everything"))
        return {
            path: content(file.synced, _survivors(file.pending, mode, rng)) for path, file in names.items()
        }


def _survivors(pending: list[Change], mode: str, rng: random.Random) -> Iterable[Change]:
    if mode == "nothing":
        return ()
    if mode == "everything":
        return pending
    if mode == "a beginning":
        return pending[: rng.randint(0, len(pending))]
    return _sectors(pending, rng)


def _sectors(pending: list[Change], rng: random.Random) -> Iterator[Change]:
    """Any subset of what was written, in sectors that are whole or not there."""
    for change in pending:
        if not change.data:
            if rng.random() < 0.5:
                yield change
            continue
        position = 0
        while position < len(change.data):
            size = SECTOR_BYTES - (change.offset + position) % SECTOR_BYTES
            if rng.random() < 0.5:
                yield Change(change.offset + position, change.data[position : position + size])
            position += size


def content(synced: bytearray, changes: Iterable[Change]) -> bytearray:
    """A file's content after some changes."""
    held = bytearray(synced)
    _apply(held, changes)
    return held


def _apply(held: bytearray, changes: Iterable[Change]) -> None:
    for offset, data, length, _ in changes:
        if length >= 0:
            if length < len(held):
                del held[length:]
            else:
                held.extend(bytes(length - len(held)))
            continue
        if offset > len(held):
            held.extend(bytes(offset - len(held)))
        held[offset : offset + len(data)] = data


def _rename(names: dict[str, TracedFile], change: NameChange) -> None:
    if change.file is None:
        names.pop(change.path, None)
    else:
        names[change.path] = change.file


def _unhex(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _path_of(rest: str) -> str:
    """The path of the descriptor a call begins with; empty when it has none."""
    found = _DESCRIPTOR.match(rest)
    return "" if found is None else _unhex(found.group(2)).decode("utf-8", "replace")


def _strings(rest: str) -> list[str]:
    return [_unhex(text).decode("utf-8", "replace") for text in _STRING.findall(rest)]


def _last_string(rest: str) -> str:
    return (_strings(rest) or [""])[-1]


def _data(rest: str) -> bytes:
    found = _STRING.search(rest)
    return b"" if found is None else _unhex(found.group(1))

"""Power cuts of a real process, SQLite included: its calls are traced once and replayed on `MemoryFiles`.

A power cut at each call of the trace leaves a subset of the unsynced writes (in sectors of 512 bytes) and
names. The survivors are laid out as real files and opened by the real recovery. Each call is tried with
nothing, with everything, and with a bounded number of drawn subsets.
"""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import run as run_process

from raft.storage import MemoryFiles
from tests.storage.faults.injection import ROOT, RUN_TIMEOUT_S, Outcome, judge_disk, scratch

TRACED = "pwrite64,fdatasync,fsync,fallocate,ftruncate,openat,unlink,rename,mkdir,write"
STRING_MAX = 100_000
"""Bytes of a write that strace prints: more than the life writes at once."""
MEMBER = "/member"
SKIPPED = ("/lock", "-shm")
"""No data: a lock, and an index that SQLite makes anew."""

_START = re.compile(r"^(\d+) +(\w+)\((.*?)(?: <unfinished \.\.\.>)?$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)$")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_FD = re.compile(r"^(\d+)<((?:\\x[0-9a-f]{2})*)>")


@dataclass(frozen=True)
class Call:
    """One call of the traced process on its data directory, or a line it said."""

    name: str
    path: str
    data: bytes = b""
    number: int = 0
    """Offset or length."""
    target: str = ""
    creates: bool = False


def trace() -> list[Call]:
    """The calls of one undisturbed life, in the order they completed."""
    with tempfile.TemporaryDirectory(dir=scratch()) as name:
        data, log = Path(name) / "member", Path(name) / "trace"
        strace = ["strace", "-f", "-y", "-xx", "-s", str(STRING_MAX), "-e", "trace=" + TRACED, "-o", str(log)]
        worker = [sys.executable, "-m", "tests.storage.faults.worker", str(data)]
        done = run_process(strace + worker, cwd=ROOT, capture_output=True, timeout=RUN_TIMEOUT_S, check=True)
        assert done.stdout.endswith(b"done\n"), done.stdout
        return list(_parse(log.read_text("ascii"), str(data)))


def _parse(text: str, data: str) -> Iterator[Call]:
    begun: dict[str, str] = {}
    for line in text.splitlines():
        if resumed := _RESUMED.match(line):
            thread, name, rest = resumed.groups()
            arguments = begun.pop(thread) + rest
        elif start := _START.match(line):
            thread, name, arguments = start.groups()
            if line.endswith("<unfinished ...>"):
                begun[thread] = arguments
                continue
        else:
            continue
        call = _call(name, arguments, data)
        if call is not None and not call.path.endswith(SKIPPED):
            yield call


def _text(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _call(name: str, arguments: str, data: str) -> Call | None:
    assert " = -1 " not in arguments or name in ("openat", "mkdir", "unlink"), (name, arguments[-60:])
    strings = [_text(found) for found in _STRING.findall(arguments)]
    if " = -1 " in arguments:
        return None
    if fd := _FD.match(arguments):
        path = _text(fd[2]).decode()
        if name == "write":
            return Call("say", "", strings[0]) if fd[1] == "1" else None
        numbers = [int(number) for number in re.findall(r", (\d+)(?=[,)])", arguments)]
    else:
        path, numbers = strings[0].decode(), []
    if not path.startswith(data):
        return None
    target = MEMBER + strings[1].decode().removeprefix(data) if name == "rename" else ""
    return Call(
        name,
        MEMBER + path.removeprefix(data),
        strings[0] if name == "pwrite64" else b"",
        numbers[-1] if numbers else 0,
        target,
        creates="O_CREAT" in arguments,
    )


class Replay:
    """A `MemoryFiles` after a number of calls, and the lines that the process had printed by then."""

    def __init__(self, *, sync_works: bool = True) -> None:
        self.files = MemoryFiles(sync_works=sync_works)
        self.files.make_directory("")
        self.lines: list[str] = []

    def do(self, call: Call) -> None:
        files, path = self.files, call.path
        if call.name == "say":
            self.lines += call.data.decode().splitlines()
        elif call.name == "mkdir":
            files.make_directory(path)
        elif call.name == "openat":
            if call.creates and not files.exists(path):
                files.open(path, create=True)
        elif call.name == "rename":
            files.rename(path, call.target)
        elif call.name == "unlink":
            files.unlink(path)
        elif path in files._directories:
            files.sync_directory(path)
        elif call.name == "ftruncate":
            directory, name = files._locate(path)
            content = directory.current[name].current
            content[call.number :] = bytes(max(0, call.number - len(content)))
        else:
            self._on_file(call)

    def _on_file(self, call: Call) -> None:
        file = self.files.open(call.path)
        if call.name == "pwrite64":
            file.pwrite(call.data, call.number)
        elif call.name == "fallocate":
            file.allocate(call.number)
        else:
            assert call.name in ("fdatasync", "fsync"), call.name
            file.datasync()

    def lay_out(self, folder: Path) -> None:
        """Write the current contents as real files."""
        for path in sorted(self.files._directories):
            directory = folder / path.lstrip("/")
            directory.mkdir(exist_ok=True)
            for name, inode in self.files._directories[path].current.items():
                (directory / name).write_bytes(inode.current)


def power_cut_after(
    calls: list[Call], at: int, choose: Callable[[int], int], *, sync_works: bool = True
) -> str:
    """A power cut after `at` calls; '' or the guarantee that was violated."""
    replay = Replay(sync_works=sync_works)
    for call in calls[:at]:
        replay.do(call)
    replay.files.crash(choose)
    with tempfile.TemporaryDirectory(dir=scratch()) as name:
        replay.lay_out(Path(name))
        try:
            return asyncio.run(judge_disk(Path(name) / "member", Outcome(replay.lines, -9), torn=True))
        finally:
            shutil.rmtree(Path(name) / "member", ignore_errors=True)


def campaign(calls: list[Call], subsets: int, seed: int, every: int = 1) -> tuple[int, list[str]]:
    """A power cut at every call, or every nth: nothing survives, all, and `subsets` drawn parts of it.

    Returns the states tried and the guarantees that were violated.
    """
    rng = random.Random(seed)
    choices: list[Callable[[int], int]] = [lambda n: 0, lambda n: n - 1, *[rng.randrange] * subsets]
    broken = []
    states = 0
    for at in range(1, len(calls) + 1, every):
        if calls[at - 1].name == "say":
            continue
        for number, choose in enumerate(choices):
            states += 1
            wrong = power_cut_after(calls, at, choose)
            if wrong:
                broken.append(f"power cut after call {at} ({calls[at - 1].name}), subset {number}: {wrong}")
    return states, broken

"""Faults of disks, by way of strace: power cuts rebuilt from a trace, failing syncs, a full disk.

strace starts beside the member and needs no privilege: a process may trace its own children.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

from kvstore.verify.run.cluster import Wrapping
from kvstore.verify.run.faults import FaultMissedError, Field, Missing
from kvstore.verify.run.write_trace import DATA_BYTES_MAX, TRACED, TracedDirectory, TraceError

FLUSH_TIMEOUT_S = 10.0
"""For strace to write the last lines after its process was killed."""

SYNCS_BEFORE_ERROR = (20, 200)
"""How many syncs of a thread succeed before one fails: it fails under load, not at start."""

TAIL_BYTES = 16_384
"""End of a trace that holds the ends of all threads."""

FAILURE_TIMEOUT_S = 25.0
NO_STRACE = "strace is not installed"


def _strace(*arguments: str) -> tuple[str, ...]:
    found = shutil.which("strace")
    if found is None:
        raise Missing(NO_STRACE)
    # -D: the tracer is the grandchild, so that the process we started, and signal, is the member itself
    return (found, "-D", "-f", "--seccomp-bpf", "-q", *arguments)


class PowerCut:
    """All members lose power at once, or a minority; each comes back with a disk it could have had then."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.nodes: tuple[int, ...] = ()
        self._traces: dict[int, list[Path]] = {}
        """By member: the trace of each start since its directory was last rebuilt."""
        self._lost = 0
        self._cut = 0
        self._base: dict[int, bool] = {}
        """Members whose directory was rebuilt: their traces begin with what was on the disk."""

    def prepare(self) -> None:
        folder = self.field.directory / "traces"
        folder.mkdir(parents=True, exist_ok=True)
        for number in self.field.cluster.numbers:
            self._traces[number] = []
            self.field.cluster.wrappings.setdefault(number, Wrapping())
        self.field.cluster.before_start.append(self._renew)
        _strace()

    def _renew(self, number: int) -> None:
        """Give the next start of a member a trace of its own."""
        traces = self._traces[number]
        trace = self.field.directory / "traces" / f"node{number}-{time.monotonic_ns()}"
        traces.append(trace)
        arguments = ("-y", "-xx", "-s", str(DATA_BYTES_MAX), "-e", f"trace={TRACED}", "-o", str(trace))
        self.field.cluster.wrappings[number].before = _strace(*arguments)

    async def begin(self) -> str:
        field, cluster = self.field, self.field.cluster
        chosen = sorted(cluster.alive) if field.rng.random() < 0.7 else field.minority()
        self.nodes, self._cut, self._lost = tuple(chosen), 0, 0
        await asyncio.gather(*(cluster.kill(number) for number in chosen))
        for number in chosen:
            try:
                await self._rebuild(number)
            except TraceError as error:
                raise FaultMissedError(f"node{number}: {error}") from None
            self._cut += 1
        for number in chosen:
            await cluster.restart(number)
        return "power cut of " + ", ".join(f"node{number}" for number in chosen)

    async def _rebuild(self, number: int) -> None:
        """Replace a member's directory by one that a power cut could have left."""
        data = self.field.cluster.data_of(number)
        await self._flushed(self._traces[number][-1])
        traced = TracedDirectory(data)
        base = data.with_name("data.base")
        if self._base.get(number):
            traced.load_from(base)
        for trace in self._traces[number]:
            traced.replay(trace)
        traced.compare()
        self._lost += traced.pending_bytes()
        left = traced.cut(self.field.rng)
        _write(left, data, base)
        self._base[number] = True
        for trace in self._traces[number]:
            trace.unlink()
        self._traces[number].clear()

    async def _flushed(self, trace: Path) -> None:
        """Wait until the tracer has written the end of the process."""
        deadline = time.monotonic() + FLUSH_TIMEOUT_S
        while not _has_ended(trace):
            if time.monotonic() > deadline:
                raise TraceError("the tracer did not end")
            await asyncio.sleep(0.05)

    async def end(self) -> str:
        if not self._cut:
            raise FaultMissedError("no power was cut")
        return f"{self._cut} disks rebuilt from their traces, {self._lost} bytes had not been synced"


def _write(left: dict[str, bytearray], data: Path, base: Path) -> None:
    """Make a member's directory hold exactly this, and keep a copy for the next cut."""
    shutil.rmtree(data)
    shutil.rmtree(base, ignore_errors=True)
    data.mkdir(mode=0o700)
    for path, held in left.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        Path(path).write_bytes(held)
    shutil.copytree(data, base)


def _has_ended(trace: Path) -> bool:
    with trace.open("rb") as file:
        file.seek(max(0, trace.stat().st_size - TAIL_BYTES))
        return b"+++ killed by" in file.read()


class _Injected:
    """One member is started again with errors injected into some of its calls."""

    what = ""
    """What the fault is called."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.nodes: tuple[int, ...] = ()
        self._trace: Path | None = None

    def prepare(self) -> None:
        _strace()

    def arguments(self, number: int) -> tuple[str, ...]:
        """What strace is told to inject."""
        raise NotImplementedError

    async def begin(self) -> str:
        cluster = self.field.cluster
        number = await self.field.pick()
        self.nodes = (number,)
        self._trace = self.field.directory / f"injected-node{number}-{time.monotonic_ns()}"
        cluster.may_end[number] = True
        await cluster.kill(number)
        wrapping = cluster.wrappings.setdefault(number, Wrapping())
        wrapping.before = _strace("-o", str(self._trace), *self.arguments(number))
        await cluster.restart(number)
        await self._wait_injected(time.monotonic() + FAILURE_TIMEOUT_S)
        return f"{self.what} on node{number}"

    async def _wait_injected(self, deadline: float) -> None:
        while not self._injections():
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(0.2)

    def _injections(self) -> int:
        trace = self._trace
        return trace.read_bytes().count(b"(INJECTED)") if trace is not None and trace.exists() else 0

    async def end(self) -> str:
        cluster = self.field.cluster
        if not self.nodes:
            raise FaultMissedError("no member was chosen")
        (number,) = self.nodes
        ended = "its process ended" if number not in cluster.alive else "it went on"
        count = self._injections()
        cluster.wrappings[number].before = ()
        if number in cluster.alive:
            await cluster.kill(number)
        await cluster.restart(number)
        cluster.may_end[number] = False
        self.nodes = ()
        if not count:
            raise FaultMissedError("no error was injected")
        return f"{count} errors injected into node{number}; {ended}"


class SyncError(_Injected):
    """A sync fails with EIO: the outcome is unknown and the member must promise nothing more."""

    what = "EIO from fdatasync"

    def arguments(self, number: int) -> tuple[str, ...]:
        when = self.field.rng.randint(*SYNCS_BEFORE_ERROR)
        return ("-e", "trace=fdatasync", "-e", f"inject=fdatasync:error=EIO:when={when}+")


class DiskFull(_Injected):
    """No room for the state file's pages nor for the next segment of the log."""

    what = "ENOSPC"

    def arguments(self, number: int) -> tuple[str, ...]:
        data = self.field.cluster.data_of(number)
        state = sorted(str(path) for path in data.glob("state*.db"))
        paths = [path for name in state for path in ("-P", name, "-P", f"{name}-wal")]
        trace = ("-e", "trace=pwrite64,fallocate,ftruncate")
        return (*paths, *trace, "-e", "inject=pwrite64,fallocate:error=ENOSPC:when=3+")

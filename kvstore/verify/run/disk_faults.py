"""Faults of disks, by way of strace: power cuts rebuilt from a trace, failing syncs, a full disk.

strace starts beside the member and needs no privilege: a process may trace its own children.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import grpc.aio

from kvstore.verify.run.cluster_under_test import Wrapping
from kvstore.verify.run.nemesis_runner import FaultMissedError, Field, Missing
from kvstore.verify.run.write_trace import DATA_BYTES_MAX, TRACED, TracedDirectory, TraceError
from kvstore.wire import rpc_pb2

FLUSH_TIMEOUT_S = 10.0
"""For strace to write the last lines after its process was killed."""

SYNCS_BEFORE_ERROR = (20, 200)
"""How many syncs of a thread succeed before one fails: it fails under load, not at start."""

TAIL_BYTES = 16_384
"""End of a trace that holds the ends of all threads."""

FAILURE_TIMEOUT_S = 25.0
PAGES_BEFORE_FULL = 2
"""Writes of a thread to the backend that still succeed, so that it can be opened."""

DISARM_TIMEOUT_S = 15.0
STATE_NAME = "state"
LOG_NAME = "wal"
UNFINISHED_NAME = "next.tmp"
SEGMENT_SUFFIX = ".wal"
SECTOR_BYTES = 512
"""The layout of a member's directory, as seen from outside: a segment's records follow its first sector."""

_ALARMS = rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.GET)
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
        self._rebuilt = 0
        self._base: dict[int, bool] = {}
        """Members whose directory was rebuilt: their traces begin with what was on the disk."""

    def prepare(self) -> None:
        folder = self.field.directory / "traces"
        folder.mkdir(parents=True, exist_ok=True)
        for number in self.field.cluster.numbers:
            self._traces[number] = []
            self.field.cluster.wrappings.setdefault(number, Wrapping())
        self.field.cluster.before_start.append(self._new_trace)
        _strace()

    def _new_trace(self, number: int) -> None:
        traces = self._traces[number]
        trace = self.field.directory / "traces" / f"node{number}-{time.monotonic_ns()}"
        traces.append(trace)
        arguments = ("-y", "-xx", "-s", str(DATA_BYTES_MAX), "-e", f"trace={TRACED}", "-o", str(trace))
        self.field.cluster.wrappings[number].before = _strace(*arguments)

    async def begin(self) -> str:
        field, cluster = self.field, self.field.cluster
        chosen = sorted(cluster.alive) if field.rng.random() < 0.7 else field.minority()
        self.nodes, self._rebuilt, self._lost = tuple(chosen), 0, 0
        await asyncio.gather(*(cluster.kill(number) for number in chosen))
        for number in chosen:
            try:
                await self._rebuild(number)
            except TraceError as error:
                raise FaultMissedError(f"node{number}: {error}") from None
            self._rebuilt += 1
        for number in chosen:
            await cluster.restart(number)
        return "power cut of " + ", ".join(f"node{number}" for number in chosen)

    async def _rebuild(self, number: int) -> None:
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
        left = traced.after_power_cut(self.field.rng)
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
        if not self._rebuilt:
            raise FaultMissedError("no disk was rebuilt")
        return f"{self._rebuilt} disks rebuilt from their traces, {self._lost} bytes had not been synced"


def _write(left: dict[str, bytearray], data: Path, base: Path) -> None:
    """Make a member's directory hold exactly this, and keep a copy for the next power cut."""
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
    targets: tuple[str, ...] = ()
    """Parts of the calls' text; each must show in an injected one, or the fault did not take hold."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.nodes: tuple[int, ...] = ()
        self._trace: Path | None = None

    def prepare(self) -> None:
        _strace()

    def arguments(self, number: int) -> tuple[str, ...]:
        """strace's options for the errors to inject."""
        raise NotImplementedError

    def before_restart(self, number: int) -> None:
        """Make the member's directory ready for the fault; its process is dead."""

    async def after_restart(self) -> None:
        """Take back what the fault leaves behind; the member has been started again without it."""

    async def begin(self) -> str:
        cluster = self.field.cluster
        number = await self.field.pick()
        self.nodes = (number,)
        self._trace = self.field.directory / f"injected-node{number}-{time.monotonic_ns()}"
        cluster.may_end[number] = True
        await cluster.kill(number)
        self.before_restart(number)
        wrapping = cluster.wrappings.setdefault(number, Wrapping())
        wrapping.before = _strace("-o", str(self._trace), *self.arguments(number))
        await cluster.restart(number)
        await self._wait_injected(time.monotonic() + FAILURE_TIMEOUT_S)
        return f"{self.what} on node{number}"

    async def _wait_injected(self, deadline: float) -> None:
        while not all(self._injections().values()):
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(0.2)

    def _injections(self) -> dict[str, int]:
        """How many errors were injected, by target."""
        trace = self._trace
        text = trace.read_text(errors="replace") if trace is not None and trace.exists() else ""
        injected = [line for line in text.splitlines() if "(INJECTED)" in line]
        return {target: sum(target in line for line in injected) for target in self.targets}

    async def end(self) -> str:
        cluster = self.field.cluster
        if not self.nodes:
            raise FaultMissedError("no member was chosen")
        (number,) = self.nodes
        ended = "its process ended" if number not in cluster.alive else "it went on"
        counts = self._injections()
        cluster.wrappings[number].before = ()
        if number in cluster.alive:
            await cluster.kill(number)
        await cluster.restart(number)
        cluster.may_end[number] = False
        self.nodes = ()
        await self.after_restart()
        if missed := [target for target, count in counts.items() if not count]:
            raise FaultMissedError(f"no error was injected for {' nor '.join(missed)}")
        counted = " and ".join(f"{count} for {target}" for target, count in counts.items())
        return f"errors injected into node{number}: {counted}; {ended}"


class SyncError(_Injected):
    """A sync fails with EIO: the outcome is unknown and the member must acknowledge nothing more."""

    what = "EIO from fdatasync"
    targets = ("fdatasync",)

    def arguments(self, number: int) -> tuple[str, ...]:
        when = self.field.rng.randint(*SYNCS_BEFORE_ERROR)
        return ("-e", "trace=fdatasync", "-e", f"inject=fdatasync:error=EIO:when={when}+")


class DiskFull(_Injected):
    """No space for the backend's pages, nor for the next segment of the log, which is allocated ahead."""

    what = "ENOSPC"
    targets = (STATE_NAME, UNFINISHED_NAME)

    def arguments(self, number: int) -> tuple[str, ...]:
        data = self.field.cluster.data_of(number)
        state = sorted(str(path) for path in data.glob(f"{STATE_NAME}*.db"))
        paths = [*state, *(f"{name}-wal" for name in state), str(data / LOG_NAME / UNFINISHED_NAME)]
        chosen = [argument for path in paths for argument in ("-P", path)]
        space = ("-e", "inject=fallocate:error=ENOSPC")
        pages = ("-e", f"inject=pwrite64:error=ENOSPC:when={PAGES_BEFORE_FULL + 1}+")
        return ("-y", *chosen, "-e", "trace=pwrite64,fallocate", *space, *pages)

    def before_restart(self, number: int) -> None:
        """Take away the segment prepared in reserve, as if the member had died before it was.

        A run never writes enough to use up a segment, so the log would not allocate one.
        """
        segments = sorted((self.field.cluster.data_of(number) / LOG_NAME).glob(f"*{SEGMENT_SUFFIX}"))
        with segments[-1].open("rb") as newest:
            newest.seek(SECTOR_BYTES)
            is_spare = len(segments) > 1 and not any(newest.read(SECTOR_BYTES))
        if is_spare:
            segments[-1].unlink()

    async def after_restart(self) -> None:
        """Disarm the alarm, under which nothing is written: as an operator does after freeing space."""
        cluster = self.field.cluster
        deadline = time.monotonic() + DISARM_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                status = await cluster.call(cluster.numbers[0], "Maintenance/Alarm", _ALARMS, timeout_s=2.0)
                if not status.alarms:
                    return
                for alarm in status.alarms:
                    disarm = rpc_pb2.AlarmRequest(
                        action=rpc_pb2.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm
                    )
                    await cluster.call(cluster.numbers[0], "Maintenance/Alarm", disarm, timeout_s=2.0)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.2)  # no leader yet, or the member is just starting
        raise FaultMissedError("the alarm could not be disarmed")

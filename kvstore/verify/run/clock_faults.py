"""Wall clocks that jump and shake, one member's apart from the others'; the monotonic clock is left alone.

Members are started through libfaketime where it is found: it stands before the C library, so that gRPC's own
threads read the false clock as well. Elsewhere a module of Python's own start-up does the same to what a
Python process reads (`skewed_clock/sitecustomize.py`). Which of the two is written to the configuration of
the run. Either way the evidence is the member's own log: a line whose time is off.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from datetime import datetime
from pathlib import Path

import grpc.aio

from kvstore.devcluster.plan import child_environment
from kvstore.verify.run.api_faults import Transfer
from kvstore.verify.run.cluster_under_test import Wrapping
from kvstore.verify.run.nemesis_runner import FaultMissedError, Field

LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/local/lib/faketime/libfaketimeMT.so.1")
"""Where Debian's package and its own `make install` put the one for programs with threads."""

SKEW_S_MAX = 3600
"""An hour either way, as in Jepsen's tests."""

SKEW_S_MIN = 60
"""Far more than a fault takes: a line written before or after it cannot pass for one under it."""

STROBE_S = 0.05
STROBE_SHARE = 0.3
"""How often a clock shakes instead of standing wrong."""

LINE_TIMEOUT_S = 5.0
"""For a member to write a line after leadership has changed."""

SKEW_FILE_VARIABLE = "KVSTORE_SKEW_FILE"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  where libfaketime puts what it shares with children
NOTHING_CHANGED = "the member logged no line that shows its clock"


def find_library() -> Path | None:
    """libfaketime for programs with threads, or None."""
    for pattern in LIBRARIES:
        found = sorted(Path("/").glob(pattern.removeprefix("/")))
        if found:
            return found[0]
    return None


def skewed_environment(library: Path | None, skew: Path) -> dict[str, str]:
    """Variables that make a process read a wall clock off by what a file says, whenever it says so.

    Without a library only processes of Python are fooled.
    """
    if library is not None:
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(skew),
            "FAKETIME_NO_CACHE": "1",  # the cache lasts ten seconds, longer than a fault
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # else waits of threads never end
        }
    here = str(Path(__file__).parent / "skewed_clock")
    return {
        SKEW_FILE_VARIABLE: str(skew),
        "PYTHONPATH": os.pathsep.join((here, child_environment()["PYTHONPATH"])),
    }


def write_skew(skew: Path, seconds: float) -> None:
    """Put a wall clock off by so many seconds from now on; 0 puts it right."""
    scratch = skew.with_name(f"{skew.name}.new")
    scratch.write_text(f"{seconds:+.3f}\n")
    scratch.replace(skew)  # atomic: a concurrent reader sees a whole number


def remove_shared(pid: int) -> None:
    """Remove what libfaketime leaves of a killed process; the next one of that id would refuse to start."""
    for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
        (SHARED_MEMORY / name).unlink(missing_ok=True)


class Clock:
    """One member's wall clock jumps by up to an hour, or shakes, while leadership changes."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.nodes: tuple[int, ...] = ()
        self._library = find_library()
        self._task: asyncio.Task[None] | None = None
        self._began_s = 0.0
        """True wall-clock time when the fault began."""
        self._read_from = 0
        """Size of the member's log at that moment."""

    def prepare(self) -> None:
        cluster = self.field.cluster
        self.field.means["clock"] = str(self._library or "sitecustomize in the members")
        for number in cluster.numbers:
            write_skew(self._file(number), 0)
            wrapping = cluster.wrappings.setdefault(number, Wrapping())
            wrapping.environment |= skewed_environment(self._library, self._file(number))
        if self._library is not None:
            cluster.before_start.append(self._tidy)
            cluster.after_stop.append(self._tidy_all)

    def _tidy(self, number: int) -> None:
        remove_shared(self.field.cluster.last_pid(number))

    def _tidy_all(self) -> None:
        for number in self.field.cluster.numbers:
            self._tidy(number)

    def _file(self, number: int) -> Path:
        return self.field.directory / f"skew-node{number}"

    async def begin(self) -> str:
        rng = self.field.rng
        number = await self.field.pick()
        self.nodes = (number,)
        self._began_s = time.time()
        self._read_from = self.field.cluster.log_of(number).stat().st_size
        if rng.random() < STROBE_SHARE:
            self._task = asyncio.get_running_loop().create_task(self._strobe(number))
            return f"wall clock of node{number} shakes"
        seconds = self._draw()
        write_skew(self._file(number), seconds)
        return f"wall clock of node{number} off by {seconds:+.0f} s"

    def _draw(self) -> float:
        rng = self.field.rng
        return rng.choice((-1, 1)) * rng.uniform(SKEW_S_MIN, SKEW_S_MAX)

    async def _strobe(self, number: int) -> None:
        while True:
            write_skew(self._file(number), self._draw())
            await asyncio.sleep(STROBE_S)

    async def end(self) -> str:
        nodes, self.nodes = self.nodes, ()
        if not nodes:
            raise FaultMissedError("no member was chosen")
        (number,) = nodes
        try:
            off_s = await self._provoke(number)
        finally:
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])
                self._task = None
            write_skew(self._file(number), 0)
        if not off_s:
            raise FaultMissedError(NOTHING_CHANGED)
        return f"node{number} wrote a line {off_s:+.0f} s off"

    async def _provoke(self, number: int) -> float:
        """Transfer leadership, which every member logs; returns by how many seconds the line is off."""
        if not (off_s := self._seen_off(number)):
            with contextlib.suppress(FaultMissedError, grpc.aio.AioRpcError):
                await Transfer(self.field).begin()  # one that was too slow may have changed it all the same
            deadline = time.monotonic() + LINE_TIMEOUT_S
            while time.monotonic() < deadline:
                if off_s := self._seen_off(number):
                    return off_s
                await asyncio.sleep(0.1)
        return off_s

    def _seen_off(self, number: int) -> float:
        """By how many seconds the first wrong line since the fault began is off; 0 without any."""
        with self.field.cluster.log_of(number).open("rb") as log:
            log.seek(self._read_from)
            lines = log.read().decode(errors="replace").splitlines()
        now_s = time.time()
        for line in lines:
            try:
                logged_s = datetime.fromisoformat(line.split(maxsplit=1)[0]).timestamp()
            except (ValueError, IndexError):
                continue  # a traceback's line, or what another library says
            if not self._began_s - SKEW_S_MIN / 2 < logged_s < now_s + SKEW_S_MIN / 2:
                return logged_s - now_s
        return 0.0

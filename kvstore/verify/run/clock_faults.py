"""Wall clocks that jump and shake, one member's apart from the others'; the monotonic clock is left alone.

Members are started through libfaketime where it is found. Elsewhere a module of Python's own start-up
does the same to what a Python process reads (`skewed_clock/sitecustomize.py`).
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from kvstore.devcluster.plan import child_environment
from kvstore.verify.run.cluster import Wrapping
from kvstore.verify.run.faults import FaultMissedError, Field

LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/local/lib/faketime/libfaketimeMT.so.1")
SKEW_S_MAX = 3600
"""An hour either way, as in Jepsen's tests."""

STROBE_S = 0.05
SKEW_FILE_VARIABLE = "KVSTORE_SKEW_FILE"


def find_library() -> Path | None:
    """libfaketime for programs with threads, or None."""
    for pattern in LIBRARIES:
        found = sorted(Path("/").glob(pattern.removeprefix("/")))
        if found:
            return found[0]
    return None


class Clock:
    """One member's wall clock jumps by up to an hour, or shakes."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.nodes: tuple[int, ...] = ()
        self._task: asyncio.Task[None] | None = None
        self._library: Path | None = None

    def prepare(self) -> None:
        self._library = find_library()
        for number in self.field.cluster.numbers:
            skew = self._file(number)
            self._set(number, 0)
            wrapping = self.field.cluster.wrappings.setdefault(number, Wrapping())
            if self._library is not None:
                wrapping.environment |= {
                    "LD_PRELOAD": str(self._library),
                    "FAKETIME_TIMESTAMP_FILE": str(skew),
                    "FAKETIME_NO_CACHE": "1",
                    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                }
            else:
                wrapping.environment[SKEW_FILE_VARIABLE] = str(skew)
                here = str(Path(__file__).parent / "skewed_clock")
                wrapping.environment["PYTHONPATH"] = os.pathsep.join(
                    (here, child_environment()["PYTHONPATH"])
                )

    def _file(self, number: int) -> Path:
        return self.field.directory / f"skew-node{number}"

    def _set(self, number: int, seconds: float) -> None:
        self._file(number).write_text(f"{seconds:+.3f}\n")

    async def begin(self) -> str:
        rng = self.field.rng
        number = await self.field.pick()
        self.nodes = (number,)
        if rng.random() < 0.3:
            self._task = asyncio.get_running_loop().create_task(self._strobe(number))
            return f"wall clock of node{number} shakes"
        seconds = rng.uniform(-SKEW_S_MAX, SKEW_S_MAX)
        self._set(number, seconds)
        return f"wall clock of node{number} off by {seconds:+.0f} s"

    async def _strobe(self, number: int) -> None:
        while True:
            self._set(number, self.field.rng.uniform(-SKEW_S_MAX, SKEW_S_MAX))
            await asyncio.sleep(STROBE_S)

    async def end(self) -> str:
        if not self.nodes:
            raise FaultMissedError("no member was chosen")
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        (number,) = self.nodes
        evidence = self._evidence(number)
        self._set(number, 0)
        if not evidence:
            raise FaultMissedError(f"node{number} read no clock")
        return evidence

    def _evidence(self, number: int) -> str:
        """What shows that the member reads the false clock; empty when nothing does."""
        if self._library is not None:
            maps = Path(f"/proc/{self.field.cluster.pids.get(number, 0)}/maps")
            mapped = maps.exists() and self._library.name in maps.read_text()
            return f"{self._library.name} answers the member" if mapped else ""
        seen = Path(f"{self._file(number)}.seen")
        shown = float(seen.read_text() or 0) if seen.exists() else 0.0
        seen.unlink(missing_ok=True)
        return f"node{number} read a clock off by {shown:+.0f} s" if shown else ""

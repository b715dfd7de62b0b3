"""The file interface, on `MemoryFiles`: every call fails; every state that a power cut can leave is visited.

A call fails once or for ever, with EIO or ENOSPC. At a power cut any subset of the unsynced sectors and
names survives; all subsets are visited, up to a bound at each call.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

from raft.storage import MemoryFiles, StorageError
from raft.storage.memory_files import PowerCut
from tests.storage.faults.injection import Outcome
from tests.storage.faults.life import make_life
from tests.storage.faults.worker import live, make_snapshot, open_directory

PATH = "/member"
PREPARING = " (the next segment)"
CODES = (errno.EIO, errno.ENOSPC)


class Enumeration:
    """Visits every sequence of choices: call `choose` freely, then `advance` until it says False."""

    def __init__(self) -> None:
        self._path: list[list[int]] = []
        self._depth = 0

    def choose(self, count: int) -> int:
        if self._depth == len(self._path):
            self._path.append([0, count])
        choice = self._path[self._depth]
        assert choice[1] == count
        self._depth += 1
        return choice[0]

    def advance(self) -> bool:
        self._depth = 0
        while self._path:
            self._path[-1][0] += 1
            if self._path[-1][0] < self._path[-1][1]:
                return True
            self._path.pop()
        return False


async def undisturbed() -> int:
    """Calls of a life."""
    files = MemoryFiles()
    lines: list[str] = []
    await live(PATH, make_life(), await make_snapshot(PATH, MemoryFiles()), lines.append, files)
    assert lines[-1] == "done", lines
    return files.calls


def _ignore_stopped_writers() -> None:
    """A timer of a writer that a fault or a power cut has stopped is no error of the loop."""

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), PowerCut):
            loop.default_exception_handler(context)

    asyncio.get_running_loop().set_exception_handler(handle)


async def fail(call: int, code: int, *, lasting: bool, rng: random.Random) -> tuple[Outcome, str]:
    """One life with one fault, then a power cut: the outcome, and the guarantee that was violated."""
    files = MemoryFiles()
    lines: list[str] = []
    hits: list[str] = []
    before = ""

    def fault(number: int, operation: str, path: str) -> BaseException | None:
        nonlocal before
        # A handle keeps the name it was opened under; what follows the allocation prepares a segment.
        preparing = operation in ("open", "allocate", "sync", "rename") or before == "allocate"
        before = operation
        needs_space = operation == "allocate" or (operation == "pwrite" and "state.db" in path)
        later = lasting and number > call and (code != errno.ENOSPC or needs_space)
        if number == call or later:
            hits.append(f"{operation} {path}" + (PREPARING if preparing and "next.tmp" in path else ""))
            return OSError(code, os.strerror(code), path)
        return None

    snapshot = await make_snapshot(PATH, MemoryFiles())
    files.fault = fault
    _ignore_stopped_writers()
    await live(PATH, make_life(), snapshot, lines.append, files)
    outcome = Outcome(lines, 0, hits)
    outcome.wrong = _words(outcome, code, lasting=lasting)
    files.crash(rng.randrange)
    return outcome, outcome.wrong or await _disk(files, outcome)


def _words(outcome: Outcome, code: int, *, lasting: bool) -> str:
    lines, hits = outcome.lines, outcome.hits
    stopped = lines[-1].startswith(("refused", "fatal"))
    if [line for line in lines[:-1] if line.startswith(("refused", "fatal"))]:
        return "went on after a stop"
    if not stopped and lines[-1] != "done":
        return f"neither stopped nor done: {lines[-1]}"
    if "begun 1" not in lines:
        return "" if stopped else f"started on a disk that failed: {hits[0]}"
    full = code == errno.ENOSPC
    if "state-" in hits[0]:
        return ""  # a snapshot that cannot be received is abandoned; here that ends the life
    if "state.db" in hits[0]:
        if full and stopped and not lasting and not hits[0].startswith("unlink"):
            return "a full disk under the backend stopped the log"
        return "" if full or stopped else "a failed backend was not detected"
    if full and hits[0].endswith(PREPARING):
        if "full" not in lines:
            return "no space for the next segment, and no report of it"
        return "stopped although there was space again" if stopped and not lasting else ""
    return "" if stopped or hits[0].startswith("unlink") else f"went on after {hits[0]}"


async def _disk(files: MemoryFiles, outcome: Outcome) -> str:
    life = make_life()
    try:
        member = await open_directory(PATH, files)
    except StorageError as error:
        return f"refused after the fault is gone: {error}"
    low, high = outcome.last("acked"), outcome.last("begun")
    models = [model for at in range(low, high + 1) for model in life.models()[at]]
    if all(model.differs(member.recovered) for model in models):
        return f"the log is not as after {low} to {high} steps"
    mark = await member.state.mark()
    rows = {key: value async for chunk in member.state.scan(b"", None) for key, value in chunk}
    if mark.index < outcome.last("state") or life.backend_rows().get(mark.index) != rows:
        return f"the backend holds other rows at {mark.index}"
    return ""


async def power_cut_before(call: int, states_max: int) -> tuple[int, str]:
    """A power cut before one call: the states visited, at most `states_max`, and the guarantee violated."""
    files = MemoryFiles()
    lines: list[str] = []

    def fault(number: int, operation: str, path: str) -> BaseException | None:
        return PowerCut(operation) if number >= call else None

    snapshot = await make_snapshot(PATH, MemoryFiles())
    files.fault = fault
    _ignore_stopped_writers()
    with contextlib.suppress(PowerCut):
        await live(PATH, make_life(), snapshot, lines.append, files)
    files.fault = None
    enumeration = Enumeration()
    states = 0
    while states < states_max:
        left = copy.deepcopy(files)
        left.crash(enumeration.choose)
        states += 1
        wrong = await _disk(left, Outcome(lines, 0))
        if wrong:
            return states, f"power cut before call {call}, state {states}: {wrong}"
        if not enumeration.advance():
            break
    return states, ""


def power_cut_everywhere(states_max: int) -> tuple[int, int, list[str]]:
    """Power cuts at every call: states visited, calls at which the bound was met, guarantees violated."""
    total = bounded = 0
    broken = []
    for call in range(1, asyncio.run(undisturbed()) + 1):
        states, wrong = asyncio.run(power_cut_before(call, states_max))
        total += states
        bounded += states == states_max
        broken += [wrong] if wrong else []
    return total, bounded, broken


def campaign(seed: int) -> tuple[Counter[str], list[str]]:
    """Every fault at every call: how the lives ended, and the guarantees that were violated."""
    rng = random.Random(seed)
    ends: Counter[str] = Counter()
    broken = []

    def cases() -> Iterator[tuple[int, int, bool]]:
        for call in range(1, asyncio.run(undisturbed()) + 1):
            for code in CODES:
                yield call, code, False
                yield call, code, True

    for call, code, lasting in cases():
        outcome, wrong = asyncio.run(fail(call, code, lasting=lasting, rng=rng))
        ends[f"{errno.errorcode[code]}{' for ever' if lasting else ''}: {outcome.end}"] += 1
        if wrong:
            broken.append(f"{errno.errorcode[code]} at call {call} ({outcome.hits[:1]}): {wrong}")
    return ends, broken

"""Fault injection into a real process by strace: one system call fails, or is the last before SIGKILL.

A plan is one fault at one call. The process runs the life (`worker.py`); the recovery must find what it
acknowledged on stdout. Calls are counted per thread and system call, on the files of the data directory only.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from raft.storage import StorageError
from raft.storage.snapshot_store import STATE_NAME, state_name
from tests.storage.faults.life import INSTALLED, make_life
from tests.storage.faults.worker import BUG_CODE, FATAL_CODE, open_directory

ROOT = Path(__file__).resolve().parents[3]
CALLS = ("pwrite64", "fdatasync", "fsync", "fallocate", "ftruncate", "openat", "unlink", "rename", "mkdir")
PARTS = ("log", "state")
FAULTS = ("EIO", "ENOSPC", "EIO for ever", "ENOSPC for ever", "kill")
RUN_TIMEOUT_S = 60.0
SEGMENTS = 8
"""More than the life fills."""

_TRACED = re.compile(r"^(\d+) +(\w+)\((.*)$")
_INJECTED = re.compile(r"\(INJECTED\)")


@dataclass(frozen=True)
class Plan:
    """One fault at the `number`th of one system call, from 1, on one part of the directory."""

    part: str
    call: str
    number: int
    fault: str

    @property
    def injection(self) -> str:
        if self.fault == "kill":
            return f"inject={self.call}:signal=KILL:when={self.number}"
        code, _, lasting = self.fault.partition(" ")
        return f"inject={self.call}:error={code}:when={self.number}{'+' if lasting else ''}"

    def __str__(self) -> str:
        return f"{self.fault} at {self.call} number {self.number} of the {self.part}"


@dataclass
class Outcome:
    """The lines of a run, and the verdict on what the recovery found after it."""

    lines: list[str]
    code: int
    hits: list[str] = field(default_factory=list)
    """The calls that were made to fail, as traced."""
    wrong: str = ""
    """The guarantee that was violated, or ''."""

    @property
    def end(self) -> str:
        """How the process ended, in a word."""
        if self.code < 0 or self.code > 128:
            return "killed"
        last = self.lines[-1].split()[0] if self.lines else "nothing"
        return {"fatal": "stopped", "refused": "refused", "done": "went on"}.get(last, last)

    def last(self, word: str) -> int:
        """The number in the last line of this kind, 0 for none."""
        return max([int(line.split()[1]) for line in self.lines if line.startswith(word + " ")], default=0)


def strace_works() -> bool:
    """Whether strace is here and may trace."""
    strace = shutil.which("strace")
    if strace is None:
        return False
    tried = subprocess.run(
        [strace, "-f", "-e", "trace=none", sys.executable, "-c", ""],
        capture_output=True,
        check=False,
        timeout=30,
    )
    return tried.returncode == 0


def scratch() -> str | None:
    """A folder in memory where there is one: faults are injected, so the disk's own speed adds nothing."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  # a file system, not a file


def paths(data: Path, part: str) -> list[Path]:
    """The files of a part, by all the names they will have: strace wants them beforehand."""
    if part == "log":
        wal = data / "wal"
        segments = [wal / f"{sequence:016x}.wal" for sequence in range(1, SEGMENTS)]
        return [data, data / "lock", wal, wal / "next.tmp", *segments]
    names = (STATE_NAME, state_name(INSTALLED.index))
    return [data / (name + suffix) for name in names for suffix in ("", "-wal", "-shm", "-journal")]


def run(folder: Path, part: str, extra: list[str]) -> tuple[list[str], int, str]:
    """One life under strace, which sees one part of the directory: its lines, its exit code, the trace."""
    data, trace = folder / "member", folder / "trace"
    command = ["strace", "-f", "-y", "-o", str(trace), "-e", "trace=" + ",".join(CALLS), *extra]
    for path in paths(data, part):
        command += ["-P", str(path)]
    worker = [sys.executable, "-m", "tests.storage.faults.worker", str(data)]
    done = subprocess.run(
        command + worker, cwd=ROOT, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
    )
    return done.stdout.splitlines(), done.returncode, trace.read_text("utf-8", "replace")


def plans() -> list[Plan]:
    """Every fault at every call of an undisturbed life; a count is per thread, so parts go separately."""
    found = []
    for part in PARTS:
        with tempfile.TemporaryDirectory(dir=scratch()) as name:
            lines, code, trace = run(Path(name), part, [])
            assert lines[-1:] == ["done"], (code, lines)
        counts: Counter[tuple[str, str]] = Counter()
        for line in trace.splitlines():
            if match := _TRACED.match(line):
                counts[match[1], match[2]] += 1
        for call in CALLS:
            most = max([n for (_, c), n in counts.items() if c == call], default=0)
            found += [Plan(part, call, n, fault) for n in range(1, most + 1) for fault in FAULTS]
    return found


def execute(plan: Plan) -> Outcome:
    """Run the life with the fault, restart, and judge."""
    with tempfile.TemporaryDirectory(dir=scratch()) as name:
        folder = Path(name)
        lines, code, trace = run(folder, plan.part, ["-e", plan.injection, "-e", "signal=none"])
        hits = [line for line in trace.splitlines() if _INJECTED.search(line)]
        outcome = Outcome(lines, code, hits)
        outcome.wrong = judge_words(plan, outcome) or asyncio.run(judge_disk(folder / "member", outcome))
    return outcome


# ---------------------------------------------------------------------- the guarantees


def judge_words(plan: Plan, outcome: Outcome) -> str:
    """Whether the process ended as its errors demand; '' or what is wrong."""
    lines = outcome.lines
    stops = [at for at, line in enumerate(lines) if line.startswith(("fatal", "refused"))]
    if stops and stops[0] != len(lines) - 1:
        return f"went on after {lines[stops[0]]!r}"
    if outcome.code == BUG_CODE:
        return "a traceback"
    if plan.fault == "kill" or not outcome.hits:
        return "" if outcome.end in ("killed", "went on") else f"ended as {outcome.end} ({outcome.code})"
    if bool(stops) != (outcome.code == FATAL_CODE):
        return f"exit code {outcome.code} after {lines[-1:]}"
    if not stops and lines[-1:] != ["done"]:
        return f"neither stopped nor done: {lines[-1:]}"
    return _judge_ending(plan, outcome, stopped=bool(stops))


def _judge_ending(plan: Plan, outcome: Outcome, *, stopped: bool) -> str:
    full = plan.fault.startswith("ENOSPC")
    lasting = plan.fault.endswith("for ever")
    in_log = [hit for hit in outcome.hits if "/wal" in hit]
    started = "begun 1" in outcome.lines
    if not in_log:
        # SQLite reports a full disk for writes only; other calls fail with another error, here too.
        # A snapshot that cannot be received is abandoned; here that ends the life.
        own = all("pwrite64(" in hit and "state.db" in hit for hit in outcome.hits)
        if full and started and stopped and own:
            return "a full disk under the backend stopped the process"
        return ""
    preparing = all("next.tmp" in hit or "fallocate" in hit for hit in in_log)
    if preparing and full and started:
        if "full" not in outcome.lines:
            return "no space for the next segment, and no report of it"
        if stopped and not lasting:
            return "stopped although there was space again"
        return ""
    if not stopped and not any("unlink" in hit or "openat" in hit for hit in in_log):
        return f"went on after a failed call on the log: {in_log[0]}"
    return ""


async def judge_disk(path: Path, outcome: Outcome, *, torn: bool = False) -> str:
    """'' if the recovery finds what was acknowledged, or what is wrong. `torn`: after a power cut."""
    life = make_life()
    try:
        member = await open_directory(str(path))
    except StorageError as error:
        return f"refused after the fault is gone: {error}"
    try:
        found = member.recovered
        low, high = outcome.last("acked"), outcome.last("begun")
        models = life.models()
        differences = [[model.differs(found) for model in models[at]] for at in range(low, high + 1)]
        if not any("" in each for each in differences):
            return f"the log is not as after {low} to {high} steps: {differences}"
        if found.tail_truncated and not torn:
            return "a tail was truncated that no power cut tore"
        mark = await member.state.mark()
        rows = {key: value async for chunk in member.state.scan(b"", None) for key, value in chunk}
        if mark.index < outcome.last("state"):
            return f"the backend went back from {outcome.last('state')} to {mark.index}"
        if life.backend_rows().get(mark.index) != rows:
            return f"the backend at {mark.index} holds other rows"
        return ""
    finally:
        member.log.close()
        await member.state.close()
        member.release()

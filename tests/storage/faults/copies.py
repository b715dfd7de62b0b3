"""Old copies of parts of a data directory, restored: each is refused, harmless, or of the same moment.

The parts are the log's folder, the backend with its journal, and each of those two alone. Pairs of moments
of one traced life are mixed in every way, up to the installation of a snapshot, which replaces the backend by
a file of another name.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from raft.storage.snapshot_store import state_name
from tests.storage.faults.injection import Outcome, judge_disk, scratch
from tests.storage.faults.life import INSTALLED
from tests.storage.faults.power import Call, Replay

PARTS = (("wal",), ("state.db", "state.db-wal"), ("state.db",), ("state.db-wal",))


def moments(calls: list[Call], folder: Path, every: int) -> list[tuple[Path, list[str]]]:
    """The directory after each `every`th acknowledgement, and all lines reported by then."""
    replay = Replay()
    found = []
    acknowledged = 0
    for call in calls:
        if call.path.endswith(state_name(INSTALLED.index)):
            break
        replay.do(call)
        if call.name == "say" and not call.data.startswith(b"begun"):
            acknowledged += 1
            if acknowledged % every == 0:
                target = folder / f"at{acknowledged}"
                target.mkdir()
                replay.lay_out(target)
                found.append((target / "member", list(replay.lines)))
    return found


def campaign(calls: list[Call], every: int) -> tuple[Counter[str], list[str]]:
    """Mix every two moments: how the starts ended, and the guarantees that were violated."""
    ends: Counter[str] = Counter()
    broken = []
    with tempfile.TemporaryDirectory(dir=scratch()) as name:
        folder = Path(name)
        for (now, said), (then, said_then) in itertools.permutations(moments(calls, folder, every), 2):
            for parts in PARTS:
                target = folder / "mixed"
                shutil.copytree(now, target)
                for part in parts:
                    _put_back(then / part, target / part)
                end = _judge(target, said, said_then if "wal" in parts else said)
                shutil.rmtree(target)
                ends[f"{' and '.join(parts)}: {end.partition(' ')[0]}"] += 1
                if end.startswith("broken"):
                    broken.append(f"{' and '.join(parts)} of {then.parent.name} in {now.parent.name}: {end}")
    return ends, broken


def _put_back(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    elif target.exists():
        target.unlink()
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copyfile(source, target)


def _judge(path: Path, said: list[str], said_of_log: list[str]) -> str:
    """`refused`, `harmless`, `old` (a whole log of another moment that no file contradicts), or `broken`."""
    log_lines = [line for line in said if not line.startswith("state ")]
    wrong = asyncio.run(judge_disk(path, Outcome(log_lines, -9)))
    if wrong.startswith("refused"):
        return "refused" if "new member" in wrong and "\n" not in wrong else f"broken: {wrong}"
    if not wrong:
        return "harmless"
    log_lines = [line for line in said_of_log if not line.startswith("state ")]
    wrong_of_log = asyncio.run(judge_disk(path, Outcome(log_lines, -9)))
    return "old" if said_of_log != said and not wrong_of_log else f"broken: {wrong}"

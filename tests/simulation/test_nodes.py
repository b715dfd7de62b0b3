"""Whole members under every kind of fault, and broken members that the same runs must catch.

The seeds here are a short, fixed selection; `make simulate` goes on from there. See README.md.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kvstore.testing.disks import FaultyDisk
from kvstore.testing.fault_schedule import CLASSES
from kvstore.testing.nodes import SimulationFailed, run_seed
from kvstore.testing.virtual_loop import run_virtual
from raft.core.read_index import ReadRounds, Round
from raft.core.ready import Ready
from raft.core.types import ConfState
from raft.node.node import Node
from raft.storage import BackendFailed, memory_backend
from raft.storage.memory_backend import MemoryBackend, MemoryBackendOpener
from raft.storage.memory_files import MemoryFile, MemoryFiles, PowerCut
from raft.storage.storage_protocol import Checkpoint, Identity

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 12
"""Swarm runs in this suite: about twenty seconds on one core."""

LENGTH_S = 12
"""Virtual seconds of faults in each of them."""

CONTROL_SEEDS = 30
"""A broken member must be caught within so many seeds."""


@pytest.mark.parametrize("seed", range(SEEDS))
def test_guarantees_hold_under_a_swarm_of_faults(seed: int) -> None:
    report = run_seed(seed, length_s=LENGTH_S)
    print(report)
    assert not report.inconclusive
    assert sum(report.faults.values()) > 0


EFFECTS = {
    "hung-disk": "a leader's disk hangs",
    "io-error": "a failed disk ends a process",
    "rot": "a damaged log is refused",
    "wipe": "a replica on an empty disk may not vote",
}
"""What faults of a class must have led to, where that has a name."""


@pytest.mark.parametrize("name", CLASSES)
def test_guarantees_hold_under_each_class(name: str) -> None:
    report = run_seed(1000, classes=(name,), length_s=6)
    print(report)
    assert set(report.faults) == {name}
    if name in EFFECTS:
        assert report.probes.get(EFFECTS[name], 0) > 0, "the fault was injected, without effect"


def test_a_seed_repeats_its_run() -> None:
    first, second = run_seed(3, length_s=LENGTH_S), run_seed(3, length_s=LENGTH_S)
    assert (first.digest, first.faults, first.operations) == (second.digest, second.faults, second.operations)
    assert first.digest != run_seed(4, length_s=LENGTH_S).digest


PROGRAM = """
from kvstore.testing.nodes import run_seed
for seed in (5, 6):
    report = run_seed(seed, length_s=10)
    print(report.digest, report.virtual_s, report.faults, report.operations, report.processes, report.probes)
"""


def test_hash_seeds_change_nothing() -> None:
    """Two interpreters that order their sets differently run the same history, step by step."""
    said = []
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
            timeout=120,
        )
        said.append(done.stdout)
    assert said[0] == said[1]
    assert said[0].count(b"\n") == 2


# ---------------------------------------------------------------------- negative controls


def sync_is_a_no_op(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryFile, "datasync", lambda self: self._count("datasync"))


def reads_skip_the_quorum(patch: pytest.MonkeyPatch) -> None:
    def take_confirmed(self: ReadRounds, conf: object, member_id: int) -> list[Round]:
        done = list(self.rounds)
        self.rounds.clear()
        self.pending -= sum(len(finished.reads) for finished in done)
        return done

    patch.setattr(ReadRounds, "take_confirmed", take_confirmed)


def responses_leave_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    execute = Node._execute

    def eager(self: Node, ready: Ready) -> None:
        if ready.append is not None:
            self._outbox.send(ready.append.responses)
        execute(self, ready)

    patch.setattr(Node, "_execute", eager)


def a_full_disk_ends_the_process(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(memory_backend, "_translate", lambda path, error: BackendFailed(path))


Bug = Callable[[pytest.MonkeyPatch], None]

BUGS: dict[Bug, tuple[Sequence[str], str]] = {
    sync_is_a_no_op: (("crash",), "one batch|starts on"),
    responses_leave_before_the_sync: (("crash", "slow-disk"), "batch|completeness"),
    reads_skip_the_quorum: (("isolate-leader", "pause"), "is linearizable"),
    a_full_disk_ends_the_process: (("no-space",), "no member stops by itself"),
}
"""What is broken, under which faults, and what the judge must say of it. See also `test_mutants.py`."""


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_broken_member_is_caught(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    classes, verdict = BUGS[bug]
    bug(monkeypatch)
    with pytest.raises(SimulationFailed, match=verdict) as caught:
        run_seeds(classes)
    print(caught.value)


EIO, ENOSPC = OSError(errno.EIO, "failed"), OSError(errno.ENOSPC, "full")


@pytest.mark.parametrize(
    ("path", "error", "ends"),
    [
        ("/data/wal/0000000000000001.wal", EIO, True),
        ("/data/wal", EIO, True),
        ("/data/state-0000000000000007.db", EIO, True),
        ("/data/state-0000000000000009.db", EIO, False),
        ("/data/image-1.db", EIO, False),
        ("/data/wal/0000000000000001.wal", ENOSPC, False),
        ("/data/state-0000000000000007.db", ENOSPC, False),
        ("/data/image-1.db", PowerCut("gone"), True),
    ],
)
def test_a_process_may_end_only_for_what_none_outlives(path: str, error: BaseException, ends: bool) -> None:
    disk = FaultyDisk(
        lambda call, operation, path: error if operation == "pwrite" else None,
        log_directory="/data/wal",
        backend_path=lambda: "/data/state-0000000000000007.db",
    )
    assert disk(1, "datasync", path) is None
    assert disk.fatal_calls == 0
    assert disk(2, "pwrite", path) is error
    assert disk.fatal_calls == ends
    assert disk.log_full_calls == (error is ENOSPC and "wal" in path)


def test_faults_of_the_backend_bear_the_name_it_is_known_by() -> None:
    """A fresh one was opened under another name than one found at a start."""

    async def commit_to(opened: MemoryBackend, index: int) -> set[str]:
        seen: set[str] = set()
        files.fault = lambda call, operation, path: seen.add(path)
        await opened.commit(Checkpoint(index, 1, ConfState()), [])
        files.fault = None
        return seen

    async def main() -> None:
        for index in (1, 2):
            opened = await MemoryBackendOpener(files)("/data/state.db", identity)
            assert await commit_to(opened, index) == {opened.opened_as}
            names.append(opened.opened_as)

    identity = Identity(cluster_id=1, member_id=2, disk_id=3)
    names: list[str] = []
    files = MemoryFiles()
    files.make_directory("/data")
    run_virtual(main())
    assert len(set(names)) == 2


def run_seeds(classes: Sequence[str]) -> None:
    for seed in range(CONTROL_SEEDS):
        run_seed(seed, length_s=LENGTH_S, classes=classes)

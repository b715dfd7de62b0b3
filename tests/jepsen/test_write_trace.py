"""What a power cut may leave: everything synced, nothing that was never written, never half a sector."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore.verify.run.member_faults import damage
from kvstore.verify.run.write_trace import SECTOR_BYTES, TRACED, TracedDirectory, TraceError

PROGRAM = """
import os, sys
home = sys.argv[1]
def path(name): return os.path.join(home, name)
def new(name): return os.open(path(name), os.O_RDWR | os.O_CREAT | os.O_EXCL)
def sync_directory():
    fd = os.open(home, os.O_RDONLY); os.fsync(fd); os.close(fd)
log = new("log.new")
os.posix_fallocate(log, 0, 8192)
os.pwrite(log, b"A" * 1000, 0)
os.fdatasync(log)
os.rename(path("log.new"), path("log"))
sync_directory()
os.pwrite(log, b"B" * 2000, 1000)
os.fdatasync(log)
os.pwrite(log, b"C" * 3000, 3000)
other = new("other")
os.pwrite(other, b"D" * 10, 0)
os.fdatasync(other)
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def traced(tmp_path: Path) -> tuple[Path, Path]:
    """A directory, and the trace of the process that filled it and was killed."""
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    tracer = ["strace", "-f", "-q", "-y", "-xx", "-s", "100000", "-e", f"trace={TRACED}", "-o", str(trace)]
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    subprocess.run([*tracer, sys.executable, "-c", PROGRAM, str(home)], check=False, timeout=60)
    return home, trace


def test_the_trace_explains_the_disk_and_no_power_cut_loses_synced_data(traced: tuple[Path, Path]) -> None:
    home, trace = traced
    model = TracedDirectory(home)
    model.replay(trace)
    model.compare()
    log = str(home / "log")
    kept_tail, names = set(), set()
    for seed in range(200):
        left = model.after_power_cut(random.Random(seed))
        assert left[log][:3000] == b"A" * 1000 + b"B" * 2000
        tail = bytes(left[log][3000:6000])
        assert len(left[log]) == 8192
        assert set(tail) <= set(b"C\0")
        for position in range(0, 3000, SECTOR_BYTES):
            start = (3000 + position) // SECTOR_BYTES * SECTOR_BYTES
            sector = left[log][max(3000, start) : min(6000, start + SECTOR_BYTES)]
            assert len(set(sector)) == 1, "half a sector"
        kept_tail.add(tail.count(b"C"))
        names.add(str(home / "other") in left)
    assert {0, 3000} < kept_tail, "all, nothing, and something in between"
    assert names == {True, False}, "a name without its directory's sync may be lost, synced bytes or not"


def test_a_trace_that_does_not_explain_the_disk_is_refused(traced: tuple[Path, Path]) -> None:
    home, trace = traced
    with (home / "log").open("r+b") as file:
        file.seek(500)
        file.write(b"?")
    model = TracedDirectory(home)
    model.replay(trace)
    with pytest.raises(TraceError, match="difference at 500"):
        model.compare()


def test_a_second_life_begins_with_the_base(traced: tuple[Path, Path], tmp_path: Path) -> None:
    home, trace = traced
    model = TracedDirectory(home)
    model.replay(trace)
    shutil.copytree(home, tmp_path / "base")
    again = TracedDirectory(home)
    again.load_from(tmp_path / "base")
    again.compare()
    assert again.pending_bytes() == 0
    assert again.after_power_cut(random.Random(1)) == {
        str(home / name): bytearray((home / name).read_bytes()) for name in ("log", "other")
    }


def test_damage_changes_one_file_and_little_of_it(tmp_path: Path) -> None:
    kinds = set()
    for seed in range(20):
        home = tmp_path / str(seed)
        home.mkdir()
        (home / "log").write_bytes(b"x" * 50_000 + bytes(50_000))
        what = damage(home, random.Random(seed))
        now = (home / "log").read_bytes()
        changed = sum(a != b for a, b in zip(now, b"x" * 50_000 + bytes(50_000), strict=False))
        assert (len(now) < 100_000) == ("truncated" in what)
        assert len(now) >= 100_000 - 1024
        assert 0 < changed < 1000 or len(now) < 100_000
        assert not any(now[50_000:]), "zeros beyond what was written are left alone"
        kinds.add("truncated" in what)
    assert kinds == {True, False}

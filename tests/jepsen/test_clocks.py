"""Both ways to put a wall clock wrong: what they change, what they leave alone, and what shows it."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvstore.devcluster.plan import ClusterPlan, child_environment, free_nodes
from kvstore.verify.run.clock_faults import (
    SHARED_MEMORY,
    SKEW_S_MIN,
    Clock,
    find_library,
    remove_shared,
    skewed_environment,
    write_skew,
)
from kvstore.verify.run.cluster_under_test import ClusterUnderTest
from kvstore.verify.run.nemesis_runner import FaultMissedError, Field
from kvstore.verify.run.run_settings import Settings

READ_CLOCKS = """
import sys, threading, time
for _ in sys.stdin:
    began = time.monotonic()
    threading.Event().wait(0.02)
    waited = time.monotonic() - began
    print(time.time(), time.time_ns() / 1e9, time.monotonic(), time.perf_counter(), waited, flush=True)
"""

TOLERANCE_S = 30.0
"""Of readings in two processes on a busy machine; every skew here is far beyond it."""


@pytest.fixture(params=["libfaketime", "sitecustomize"])
def library(request: pytest.FixtureRequest) -> Path | None:
    found = find_library() if request.param == "libfaketime" else None
    if request.param == "libfaketime" and found is None:
        pytest.skip("libfaketime is not installed")
    return found


@pytest.mark.timeout(120)
def test_a_wall_clock_moves_under_a_running_process_and_its_monotonic_clock_does_not(
    library: Path | None, tmp_path: Path
) -> None:
    skew = tmp_path / "skew"
    write_skew(skew, 0)
    with subprocess.Popen(
        [sys.executable, "-c", READ_CLOCKS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**child_environment(), **skewed_environment(library, skew)},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for seconds in (0.0, 3000.5, -1800.25, 0.0):
            write_skew(skew, seconds)
            process.stdin.write("read\n")
            process.stdin.flush()
            read = [float(word) for word in process.stdout.readline().split()]
            true = (time.time(), time.time(), time.monotonic(), time.perf_counter())
            off = [one - other for one, other in zip(read[:4], true, strict=True)]
            assert off == pytest.approx([seconds, seconds, 0, 0], abs=TOLERANCE_S)
            assert 0.01 < read[4] < TOLERANCE_S, "a wait ends by the monotonic clock"
        process.stdin.close()
        assert process.wait(30) == 0


def test_what_a_killed_process_leaves_in_shared_memory_is_removed(tmp_path: Path) -> None:
    library = find_library()
    if library is None:
        pytest.skip("libfaketime is not installed")
    skew = tmp_path / "skew"
    write_skew(skew, 0)
    process = subprocess.Popen(
        [sys.executable, "-c", READ_CLOCKS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**child_environment(), **skewed_environment(library, skew)},
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"read\n")
        process.stdin.flush()
        process.stdout.readline()
        process.kill()
    left = [path for path in SHARED_MEMORY.iterdir() if path.name.endswith(f"_{process.pid}")]
    assert len(left) == 2, "else there is nothing to remove"
    remove_shared(process.pid)
    assert not any(path.exists() for path in left)


@pytest.mark.asyncio
@pytest.mark.timeout(240)
async def test_the_fault_takes_hold_of_members_and_is_taken_back(
    library: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore.verify.run.clock_faults.find_library", lambda: library)
    monkeypatch.setattr("kvstore.verify.run.clock_faults.LINE_TIMEOUT_S", 2.0)
    plan = ClusterPlan(directory=tmp_path / "cluster", nodes=free_nodes(3), token=tmp_path.name)
    cluster = ClusterUnderTest(plan)
    field = Field(
        cluster=cluster,
        settings=Settings(workload="register", nemeses=("clock",), directory=tmp_path, seed=1),
        rng=random.Random(1),
        directory=tmp_path,
        client_pids=[],
    )
    clock = Clock(field)
    clock.prepare()
    assert field.means == {"clock": str(library or "sitecustomize in the members")}
    try:
        await cluster.start()
        await cluster.wait_ready(60)
        for share in (0.0, 1.0):  # wrong, and shaking
            monkeypatch.setattr("kvstore.verify.run.clock_faults.STROBE_SHARE", share)
            await clock.begin()
            evidence = await clock.end()
            assert abs(float(evidence.split()[-3])) > SKEW_S_MIN / 2
        assert await cluster.leader(), "elections went on"
        monkeypatch.setattr("kvstore.verify.run.clock_faults.write_skew", lambda skew, seconds: None)
        await clock.begin()
        with pytest.raises(FaultMissedError):
            await clock.end()  # no clock was put wrong, so no line is wrong
    finally:
        await cluster.stop()
    pids = {cluster.last_pid(number) for number in cluster.numbers}
    assert not [path for path in SHARED_MEMORY.iterdir() if path.name.rpartition("_")[2] in map(str, pids)]

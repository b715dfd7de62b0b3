"""A full disk counts only when both the backend and the log failed a write."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvstore.verify.run import disk_faults
from kvstore.verify.run.cluster_under_test import Wrapping
from kvstore.verify.run.disk_faults import DiskFull
from kvstore.verify.run.nemesis_runner import FaultMissedError, Field
from kvstore.verify.run.run_settings import Settings
from kvstore.wire import rpc_pb2
from raft.storage import directory, log_recovery, records

STATE = '9 pwrite64(12</d/state.db-wal>, "", 24, 0) = -1 ENOSPC (No space left on device) (INJECTED)\n'
SEGMENT = "9 fallocate(13</d/wal/next.tmp>, 0, 0, 16) = -1 ENOSPC (No space left on device) (INJECTED)\n"
SEGMENT_ALLOWED = "9 fallocate(13</d/wal/next.tmp>, 0, 0, 16) = 0\n"


class OneMember:
    """A cluster of one, with an alarm that can be disarmed."""

    numbers = (1,)
    alive = (1,)

    def __init__(self, data: Path) -> None:
        self.data = data
        self.wrappings = {1: Wrapping(before=("strace",))}
        self.may_end: dict[int, bool] = {}
        self.alarms = [1]

    def data_of(self, number: int) -> Path:
        return self.data

    async def kill(self, number: int) -> None:
        """It was never there."""

    async def restart(self, number: int) -> None:
        """Nor is it now."""

    async def call(self, number: int, method: str, request: Any, *, timeout_s: float) -> Any:
        if request.action == rpc_pb2.AlarmRequest.DEACTIVATE:
            self.alarms.remove(request.memberID)
        return SimpleNamespace(alarms=[SimpleNamespace(memberID=one, alarm=1) for one in self.alarms])


def disk_full(tmp_path: Path) -> tuple[DiskFull, OneMember]:
    cluster = OneMember(tmp_path)
    settings = Settings(workload="register", nemeses=("disk-full",), directory=tmp_path, seed=1)
    field = Field(
        cluster=cluster,  # type: ignore[arg-type]  # all the fault asks of it is here
        settings=settings,
        rng=random.Random(1),
        directory=tmp_path,
        client_pids=[],
    )
    fault = DiskFull(field)
    fault.nodes, fault._trace = (1,), tmp_path / "trace"
    return fault, cluster


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("trace", "missed"),
    [
        (STATE + SEGMENT, ""),
        (STATE + SEGMENT_ALLOWED, "next.tmp"),
        (SEGMENT, "state"),
        (SEGMENT_ALLOWED, "state nor next.tmp"),
    ],
)
async def test_a_full_disk_takes_hold_of_both_or_not_at_all(trace: str, missed: str, tmp_path: Path) -> None:
    fault, cluster = disk_full(tmp_path)
    (tmp_path / "trace").write_text(trace)
    if missed:
        with pytest.raises(FaultMissedError, match=f"for {missed}$"):
            await fault.end()
    else:
        assert "1 for state and 1 for next.tmp" in await fault.end()
    assert (cluster.alarms, cluster.wrappings[1].before) == ([], ())


@pytest.mark.parametrize(("written", "left"), [(b"", 1), (b"start", 2)])
def test_only_a_segment_without_a_record_is_taken_away(written: bytes, left: int, tmp_path: Path) -> None:
    fault, _ = disk_full(tmp_path)
    (tmp_path / "wal").mkdir()
    for number, start in ((1, b"start"), (2, written)):
        segment = b"header".ljust(512, b"\0") + start.ljust(4096, b"\0")
        (tmp_path / "wal" / f"{number:016x}.wal").write_bytes(segment)
    fault.before_restart(1)
    assert len(list((tmp_path / "wal").iterdir())) == left
    fault.before_restart(1)
    assert len(list((tmp_path / "wal").iterdir())) == left, "the last one stays"


def test_the_layout_of_a_members_directory_is_as_the_fault_takes_it() -> None:
    assert (disk_faults.LOG_NAME, disk_faults.SECTOR_BYTES) == (directory.LOG_NAME, records.SECTOR_BYTES)
    assert disk_faults.UNFINISHED_NAME == log_recovery.UNFINISHED_NAME
    assert disk_faults.SEGMENT_SUFFIX == log_recovery.SEGMENT_SUFFIX

"""Disks of a simulated member that are slow, faulty or full."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from typing import Any

from raft.storage import InlineLogWriter
from raft.storage.memory_files import Fault, PowerCut
from raft.storage.records import SECTOR_BYTES
from raft.storage.wal import Log


class SlowLogWriter(InlineLogWriter):
    """A log writer whose syncs take time; jobs that arrive during one share the next, as in a real member.

    The bytes reach the disk at the beginning or at the end of a sync, at random: a crash in between finds
    them there and unacknowledged, or not there at all.
    """

    def __init__(
        self,
        log: Log,
        *,
        loop: asyncio.AbstractEventLoop,
        fatal: Callable[[str], None],
        on_space: Callable[[bool], None],
        duration_s: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        """`duration_s` is called before each sync; 0.0 means at once. `draw` is `Random.random`."""
        super().__init__(log, loop=loop, fatal=fatal, on_space=on_space)
        self._duration_s = duration_s
        self._draw = draw
        self._queue: list[Any] = []
        """Arrived during the sync in progress."""
        self._syncing: list[Any] | None = None
        """The group being synced, None while the disk is idle."""
        self._written = False
        """The bytes of `_syncing` are on the disk already."""
        self._began_s = 0.0
        self.jobs_per_sync_max = 0
        """Most jobs that shared one sync."""

    @property
    def busy(self) -> bool:
        return self._syncing is not None

    def stalled_seconds(self) -> float:
        return 0.0 if self._syncing is None else self._loop.time() - self._began_s

    async def close(self) -> None:
        while self._syncing is not None and not self._failed and not self._closing:
            self._end()
        await super().close()

    def _enqueue(self, job: Any) -> None:
        if self._failed or self._closing:
            return
        self._queue.append(job)
        if self._syncing is None:
            self._begin()

    def _begin(self) -> None:
        duration_s = self._duration_s()
        group, self._queue = self._queue, []
        self.jobs_per_sync_max = max(self.jobs_per_sync_max, len(group))
        if duration_s <= 0.0:
            if self._write(group):
                self._loop.call_soon(self._deliver, group)
                self._maintain_files()
            return
        self._syncing, self._began_s = group, self._loop.time()
        self._written = self._draw() < 0.5
        if not self._written or self._write(group):
            self._loop.call_later(duration_s, self._end)

    def _end(self) -> None:
        group, self._syncing = self._syncing, None
        if group is None or self._failed or self._closing:
            return
        if self._written or self._write(group):
            self._deliver(group)
            self._maintain_files()
            if self._queue and self._syncing is None:
                self._begin()


class FaultyDisk:
    """One fault of a member's disk; set it as `MemoryFiles.fault`."""

    def __init__(
        self,
        fault: Callable[[int, str, str], BaseException | None],
        *,
        log_directory: str,
        backend_path: Callable[[], str],
    ) -> None:
        """`backend_path` returns the file of the backend in use; snapshot files lie beside it."""
        self._fault = fault
        self._log_directory = log_directory
        self._backend_path = backend_path
        self.fatal_calls = 0
        """Failed calls that must end the process: at a power cut, or with an unknown outcome on the log or
        on the backend in use. A member waits while its disk is full, and discards a snapshot that it cannot
        write."""
        self.log_full_calls = 0
        """Calls that found no space for another segment. A process survives them until its last one is
        full."""

    def __call__(self, call: int, operation: str, path: str) -> BaseException | None:
        error = self._fault(call, operation, path)
        if error is not None:
            in_log = f"{path}/".startswith(f"{self._log_directory}/")
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            self.log_full_calls += full and in_log
            is_own_state = in_log or path == self._backend_path()
            self.fatal_calls += isinstance(error, PowerCut) or (is_own_state and not full)
        return error


def io_error(first_call: int, operations: Sequence[str]) -> Fault:
    """From the `first_call`th call on, these operations fail with EIO."""

    def fault(call: int, operation: str, path: str) -> BaseException | None:
        if call >= first_call and operation in operations:
            return OSError(errno.EIO, os.strerror(errno.EIO), path)
        return None

    return fault


def no_space(call: int, operation: str, path: str) -> BaseException | None:
    """A full disk: no new segment of the log, no growth of the backend."""
    if operation == "allocate" or (operation == "pwrite" and "/wal/" not in path):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    return None


def power_cut(first_call: int, *, at_sync: bool) -> Fault:
    """The disk stops at an operation; with `at_sync` at the next sync: written, but not yet durable."""
    stopped = False

    def fault(call: int, operation: str, path: str) -> BaseException | None:
        nonlocal stopped
        if not stopped and (call < first_call or (at_sync and operation != "datasync")):
            return None
        stopped = True
        return PowerCut("power cut")

    return fault


def flip(share: float, bit: int) -> Callable[[bytearray], None]:
    """Corruption: flips one bit of the byte at `share` (0 to 1) of the newest record's last sector."""

    def edit(data: bytearray) -> None:
        end = len(data.rstrip(b"\0"))
        start = max(SECTOR_BYTES, (end - 1) // SECTOR_BYTES * SECTOR_BYTES)
        data[start + int(share * (end - start))] ^= 1 << bit

    return edit

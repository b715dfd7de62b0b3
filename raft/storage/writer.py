"""The writers of the log: group commit on one thread, or inline when that is cheaper.

`_pending` and every callback belong to the loop. The log, with `_lazy`, belongs to the holder of `_lock`: the
writer thread for each group and its maintenance, or the loop for one inline sync. Completions always run on
the loop in a later iteration, in the order of submission, never from inside `submit`.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence

from raft.core.ready import AppendWork
from raft.core.types import HardState, SnapshotMeta
from raft.storage.inline_policy import InlinePolicy
from raft.storage.storage_errors import LogFailed, StorageError
from raft.storage.storage_protocol import SYNC_BOUNDS_S, WriterStatistics
from raft.storage.wal import Log, NoSpace

SYNCED_THROUGH_AFTER_S = 0.1
"""Idle time after which the newest work is marked as synced: short, so that a crash long after the last write
leaves no ambiguous frame, and long enough not to compete with work."""

SPACE_RETRY_S = 5.0
"""Time between attempts to prepare the log's next segment on a full disk."""

GROUP_JOBS_MAX = 1024
"""Far above what one sync gathers; keeps completions flowing if the loop submits as fast as we write."""

Done = Callable[[], None]
_Job = tuple[
    Callable[[Log], None] | None, AppendWork | None, Callable[[AppendWork], None] | None, Done | None
]
"""Either (None, work, done, None) or (stage, None, None, done or None)."""


def count_entries(work: AppendWork) -> int:
    """The default `operations` of the inline rule."""
    return len(work.entries)


def _is_lazy(work: AppendWork) -> bool:
    """Whether it completes without a sync: at most a commit index, which is a hint."""
    return not work.entries and work.snapshot is None and (work.hard_state is None or not work.must_sync)


class _WriterBase:
    """What both writers share: the loop side's bookkeeping and the completions."""

    def __init__(
        self,
        log: Log,
        *,
        loop: asyncio.AbstractEventLoop,
        fatal: Callable[[str], None],
        on_space: Callable[[bool], None] | None = None,
    ) -> None:
        """`fatal(message)` is called once, on the loop, when the outcome of a write is unknown.

        `on_space(False)` is called on the loop when the disk has no space for the log's next segment (the
        rest of the current one is the reserve), and again at each failed attempt; `on_space(True)` when an
        attempt succeeds.
        """
        self._log = log
        self._loop = loop
        self._fatal_hook = fatal
        self._on_space = on_space
        self._lazy: HardState | None = None
        """A commit index that waits for the next frame; it needs no sync of its own.
        Losing one is allowed: the commit index on disk is a hint."""
        self._space = True
        """False between on_space(False) and on_space(True)."""
        self._space_retry_at = 0.0
        self._dirty = False
        """Work was committed since the last synced-through mark."""
        self._last_commit = 0.0
        """Monotonic time of the last commit of work."""
        self._failed = False
        """A write failed; nothing is accepted and nothing completes any more."""
        self._closing = False
        self._sync_began = 0.0
        """Monotonic start of the disk operation in progress, 0.0 when there is none."""
        self._appends = 0
        self._syncs_inline = 0
        self._sync_seconds = 0.0
        self._sync_buckets: list[int] = []
        """See WriterStatistics; written under `_lock` only."""

    def stalled_seconds(self) -> float:
        """Age of the disk operation in progress, 0.0 when none is. Safe on any thread."""
        began = self._sync_began
        return time.monotonic() - began if began else 0.0

    def statistics(self) -> WriterStatistics:
        return WriterStatistics(
            syncs=self._log.syncs,
            syncs_inline=self._syncs_inline,
            appends=self._appends,
            bytes_written=self._log.bytes_written,
            sync_seconds=self._sync_seconds,
            sync_buckets=tuple(self._sync_buckets),
        )

    def record_vote_eligible(self) -> None:
        self._enqueue((Log.stage_vote_eligible, None, None, None))

    def record_peer_disk(self, member_id: int, disk_id: int, done: Done) -> None:
        self._enqueue((lambda log: log.stage_peer_disk(member_id, disk_id), None, None, done))

    def compact(self, snapshot: SnapshotMeta) -> None:
        self._enqueue((lambda log: log.stage_compaction(snapshot), None, None, None))

    def _enqueue(self, job: _Job) -> None:
        raise NotImplementedError

    def _stage(self, job: _Job) -> None:
        stage, work, _, _ = job
        if work is not None and _is_lazy(work):
            self._lazy = work.hard_state or self._lazy
            return
        self._stage_lazy()
        if work is not None:
            self._log.stage_work(work)
        elif stage is not None:
            stage(self._log)

    def _stage_lazy(self) -> None:
        lazy = self._lazy
        if lazy is not None:
            self._lazy = None
            self._log.stage_hard_state(lazy)

    def _deliver(self, group: list[_Job]) -> None:
        if self._failed:
            return
        try:
            for _, work, work_done, done in group:
                if work is not None and work_done is not None:
                    work_done(work)
                elif done is not None:
                    done()
        except Exception as error:
            # No completion may be lost: the core would wait for it for ever.
            self._fail(f"completion of a log write failed: {error!r}")
            raise

    def _fail(self, message: str) -> None:
        if not self._failed:
            self._failed = True
            self._fatal_hook(message)

    def _set_space(self, space: bool) -> None:
        if self._on_space is not None and not self._failed:
            self._on_space(space)

    def _maintain(self, now: float) -> bool | None:
        """Maintain the files; return True or False for `on_space`, or None for nothing to report."""
        if not self._log.needs_maintenance or (not self._space and now < self._space_retry_at):
            return None
        try:
            self._log.maintain()
        except NoSpace:
            self._space_retry_at = now + SPACE_RETRY_S
            self._space = False
            return False
        if self._space:
            return None
        self._space = True
        return True


class ThreadedLogWriter(_WriterBase):
    """The writer of a real node. Implements `LogWriter`."""

    def __init__(
        self,
        log: Log,
        *,
        loop: asyncio.AbstractEventLoop,
        fatal: Callable[[str], None],
        on_space: Callable[[bool], None] | None = None,
        operations: Callable[[AppendWork], int] = count_entries,
        inline: bool = True,
    ) -> None:
        """`operations(work)` counts client operations in a work for the inline rule.

        `inline=False` sends all work through the thread. Takes over `log`, and starts the thread.
        """
        super().__init__(log, loop=loop, fatal=fatal, on_space=on_space)
        self._sync_buckets = [0] * (len(SYNC_BOUNDS_S) + 1)
        self._operations = operations
        self._policy = InlinePolicy()
        self._inline = inline
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        """Work for the thread; None ends it. Bounded by what the core keeps in flight."""
        self._pending = 0
        """Jobs queued for the thread and not yet delivered; loop side only.
        Inline commits run only at 0, so that completions keep their order."""
        self._lock = threading.Lock()
        self._stopped: asyncio.Future[None] = loop.create_future()
        """Done once the thread has closed the log."""
        self._thread = threading.Thread(target=self._run, name="raft-log-writer", daemon=True)
        self._thread.start()

    # ---- loop side

    def submit(self, work: AppendWork, done: Callable[[AppendWork], None]) -> None:
        """See LogWriter. Never blocks, except on one sync under the inline rule."""
        if self._failed or self._closing:
            return
        self._appends += 1
        job: _Job = (None, work, done, None)
        if self._pending == 0:
            if _is_lazy(work):
                self._stage(job)
                self._loop.call_soon(self._deliver, [job])
                return
            if (
                self._inline
                and self._policy.allows(time.monotonic(), self._operations(work))
                and self._lock.acquire(blocking=False)
            ):
                self._commit_inline(job)
                return
        self._enqueue(job)

    async def close(self) -> None:
        """Commit and deliver all submitted work, then close the files."""
        if not self._closing:
            self._closing = True
            self._queue.put(None)
        await asyncio.shield(self._stopped)
        self._thread.join()

    def _enqueue(self, job: _Job) -> None:
        if self._failed or self._closing:
            return
        self._pending += 1
        self._queue.put(job)

    def _commit_inline(self, job: _Job) -> None:
        """Commit one work on the loop; the lock is held on entry."""
        try:
            self._stage(job)
            self._timed_commit()
        except StorageError as error:
            self._loop.call_soon(self._fail, str(error))
            return
        finally:
            self._lock.release()
        self._syncs_inline += 1
        self._loop.call_soon(self._deliver, [job])

    def _deliver_group(self, group: list[_Job]) -> None:
        self._pending -= len(group)
        self._deliver(group)

    # ---- thread side (all but `_timed_commit` run on the thread only)

    def _timed_commit(self) -> None:
        """Commit under the lock, watched by policy and watchdog."""
        began = time.monotonic()
        self._sync_began = began
        try:
            self._log.commit()
        finally:
            self._sync_began = 0.0
        now = time.monotonic()
        self._policy.observe(now, now - began)
        self._sync_seconds += now - began
        self._sync_buckets[bisect_left(SYNC_BOUNDS_S, now - began)] += 1
        self._dirty = True
        self._last_commit = now

    def _run(self) -> None:
        try:
            with self._lock:
                self._maintain_files()
            while self._iterate():
                pass
        except StorageError as error:
            self._call_loop(self._fail, str(error))
        except BaseException as error:
            self._call_loop(self._fail, f"log writer failed: {error!r}")
            raise
        finally:
            self._sync_began = 0.0
            try:
                self._log.close()
            except OSError as error:
                self._call_loop(self._fail, f"the log cannot be closed: {error}")
            finally:
                self._call_loop(self._set_stopped)  # in any case: `close` waits for it

    def _iterate(self) -> bool:
        """Commit one group, or mark an idle log as synced. False when the writer is closing."""
        try:
            job = self._queue.get(timeout=SYNCED_THROUGH_AFTER_S)
        except queue.Empty:
            with self._lock:
                self._idle()
                self._maintain_files()
            return True
        group: list[_Job] = []
        with self._lock:
            # All work that queued while the last sync ran shares the next one.
            while job is not None:
                group.append(job)
                self._stage(job)
                if len(group) == GROUP_JOBS_MAX or self._log.needs_maintenance:
                    # After a rotation the next segment is prepared before more work is staged.
                    break
                try:
                    job = self._queue.get_nowait()
                except queue.Empty:
                    break
            if self._log.staged:
                self._timed_commit()
            if group:
                self._call_loop(self._deliver_group, group)
            if job is None:
                self._idle()
                return False
            self._maintain_files()
        return True

    def _idle(self) -> None:
        """Mark the newest work as synced after SYNCED_THROUGH_AFTER_S without more."""
        if not self._closing and time.monotonic() - self._last_commit < SYNCED_THROUGH_AFTER_S:
            return
        self._stage_lazy()
        if self._dirty or self._log.staged:
            self._log.stage_synced_through()
            self._timed_commit()
            self._dirty = False

    def _maintain_files(self) -> None:
        self._sync_began = now = time.monotonic()
        change = self._maintain(now)
        self._sync_began = 0.0
        if change is not None:
            self._call_loop(self._set_space, change)

    def _call_loop(self, callback: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            # The loop is closed, and no callback can run any more. The log on disk stays valid.
            self._failed = True

    def _set_stopped(self) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)


class InlineLogWriter(_WriterBase):
    """A writer without a thread, for simulation: every submit is one synchronous commit.

    Implements `LogWriter`; completions still run in a later iteration of the loop.
    """

    def __init__(
        self,
        log: Log,
        *,
        loop: asyncio.AbstractEventLoop,
        fatal: Callable[[str], None],
        on_space: Callable[[bool], None] | None = None,
    ) -> None:
        super().__init__(log, loop=loop, fatal=fatal, on_space=on_space)
        self._timer: asyncio.TimerHandle | None = None
        """Runs `_on_timer`, while there is work to mark as synced or a full disk to retry."""
        self._loop.call_soon(self._maintain_files)

    def submit(self, work: AppendWork, done: Callable[[AppendWork], None]) -> None:
        self._appends += 1
        self._enqueue((None, work, done, None))

    async def close(self) -> None:
        """Mark the newest work as synced and close the files; completions already due still run."""
        if self._closing:
            return
        if not self._failed:
            self._on_idle()
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._log.close()
        await asyncio.sleep(0)  # lets the completions scheduled before run

    def _enqueue(self, job: _Job) -> None:
        if self._failed or self._closing:
            return
        if self._write([job]):
            self._loop.call_soon(self._deliver, [job])
            self._maintain_files()

    def _write(self, group: Sequence[_Job]) -> bool:
        """Make a group durable; False when that failed, which stops the writer."""
        try:
            for job in group:
                self._stage(job)
            if self._log.staged:
                self._log.commit()
                self._dirty = True
                self._last_commit = self._loop.time()
        except LogFailed as error:
            self._die(error)
            return False
        return True

    def _die(self, error: LogFailed) -> None:
        self._closing = True
        self._loop.call_soon(self._fail, str(error))

    def _maintain_files(self) -> None:
        """Maintain the files now, and arm the timer for the next time."""
        if self._failed or self._closing:
            return
        try:
            change = self._maintain(self._loop.time())
        except LogFailed as error:
            self._die(error)
            return
        if change is not None:
            self._loop.call_soon(self._set_space, change)
        if self._timer is None and (self._dirty or not self._space):
            delay = SYNCED_THROUGH_AFTER_S if self._dirty else SPACE_RETRY_S
            self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._failed or self._closing:
            return
        if self._loop.time() - self._last_commit >= SYNCED_THROUGH_AFTER_S:
            self._on_idle()
        self._maintain_files()

    def _on_idle(self) -> None:
        try:
            self._stage_lazy()
            if self._dirty or self._log.staged:
                self._log.stage_synced_through()
                self._log.commit()
                self._dirty = False
        except LogFailed as error:
            self._die(error)

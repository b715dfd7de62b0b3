"""Checkpointing: the backend follows behind the log, in large transactions off the request path.

The backend always equals the state at one applied index: the changes are drained between two entries. One
commit is in flight at a time. A commit that met a full disk keeps its rows and retries later with what came
since; until then the log holds everything.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence

from raft.node.applying import Applier
from raft.node.replica import Replica
from raft.node.state_machine import StateMachine
from raft.storage import BackendFailed, BackendFull
from raft.storage.storage_protocol import Backend, Checkpoint, Row

logger = logging.getLogger(__name__)

STATE_COMMIT_BOUNDS_S = tuple(0.001 * 2**step for step in range(14))
"""Upper bounds of the duration counts, 1 ms to 8.192 s: those of etcd's disk histograms."""


async def load(machine: StateMachine, backend: Backend) -> None:
    """Read everything that the backend holds into an empty machine."""
    async for rows in backend.scan(b"", None):
        machine.load(rows)
    machine.load_done()


class Checkpointer:
    """How far the backend lags behind the applied index, and the task that catches it up."""

    def __init__(
        self,
        replica: Replica,
        machine: StateMachine,
        applier: Applier,
        backend: Backend,
        durable: Checkpoint,
        fatal: Callable[[str], None],
    ) -> None:
        self._config = replica.config
        self._machine = machine
        self._applier = applier
        self.backend = backend  # the one in use; read-only outside
        self._loop = replica.loop
        self._fatal = fatal
        self.durable = durable
        """The checkpoint of the backend. Invariant: durable.index <= applied index."""
        self.durable_position = 0  # bytes applied since start that `durable` covers
        self._not_before_s = 0.0  # after a full disk: no commit before this time
        self._kept: list[Row] = []
        """Rows drained for a commit that failed; older than anything drained since."""
        self._task: asyncio.Task[None] | None = None  # the commit in flight, awaited by `close`
        self._failed = False  # `fatal` was called
        self.commits = 0
        self.buckets = [0] * (len(STATE_COMMIT_BOUNDS_S) + 1)  # by duration, and beyond the last bound
        self.seconds = 0.0

    async def load(self) -> None:
        await load(self._machine, self.backend)

    @property
    def undurable_bytes(self) -> int:
        """Bytes of the applied entries that `durable` does not cover."""
        return self._applier.nbytes - self.durable_position

    def due(self, now_s: float) -> bool:
        """Whether a commit should begin now."""
        oldest_s = self._applier.oldest_unsaved_s
        return (
            oldest_s is not None
            and self._task is None
            and now_s >= self._not_before_s
            and (
                self.undurable_bytes >= self._config.checkpoint_bytes
                or now_s >= oldest_s + self._config.checkpoint_ms / 1000
            )
        )

    @property
    def full(self) -> bool:
        """Whether so much is applied but not durable that proposals must be refused."""
        return self._applier.nbytes - self.durable_position >= self._config.undurable_bytes_max

    def begin(self) -> None:
        self._task = self._loop.create_task(self._commit(), name="checkpoint")

    async def reach(self, index: int) -> None:
        """Wait for a checkpoint at or beyond `index`, which is applied. Raises BackendFull, BackendFailed."""
        while self.durable.index < index:
            if self._task is None:
                self.begin()
            assert self._task is not None
            await asyncio.wait([self._task])
            if self._failed:
                raise BackendFailed("the backend cannot be written")
            if self.durable.index < index and self._loop.time() < self._not_before_s:
                raise BackendFull("no space left for the backend")

    def replace(self, backend: Backend, mark: Checkpoint) -> tuple[Backend, asyncio.Task[None] | None]:
        """The state is now that of another backend, whose checkpoint is `mark`.

        Returns the one used so far and the commit in flight to it, whose result no longer matters.
        """
        before, task = self.backend, self._task
        self.backend, self.durable = backend, mark
        self.durable_position = self._applier.nbytes
        self._applier.oldest_unsaved_s = None
        self._not_before_s = 0.0
        self._kept = []
        self._task = None
        return before, task

    async def close(self, *, flush: bool) -> None:
        """Wait for the commit in flight; `flush` also commits up to the applied index, if it can."""
        if self._task is not None:
            await self._task
        if flush and self._applier.oldest_unsaved_s is not None:
            await self._commit()

    def _mark(self) -> Checkpoint:
        return self._applier.checkpoint()

    async def _commit(self) -> None:
        mark, backend, applier = self._mark(), self.backend, self._applier
        position = applier.nbytes
        rows: Sequence[Row] = self._kept + self._machine.drain_changes()
        oldest_s, applier.oldest_unsaved_s = applier.oldest_unsaved_s, None
        begun_s = self._loop.time()
        error: Exception | None = None
        try:
            if mark.index > self.durable.index:
                await backend.commit(mark, rows)
        except Exception as caught:  # noqa: BLE001  # whatever broke the backend, answering on without it is worse
            error = caught
        if self.backend is not backend:
            return  # a snapshot was installed meanwhile
        self._task = None
        if isinstance(error, BackendFull):
            logger.warning("no space left for the backend; will try again")
            self._kept = list(rows)
            applier.oldest_unsaved_s = oldest_s
            self._not_before_s = self._loop.time() + self._config.backend_retry_ms / 1000
            return
        if error is not None:
            self._failed = True
            self._fatal(f"the backend cannot be written: {error}")
            return
        self._kept = []
        self.durable = mark
        self.durable_position = position
        self.commits += 1
        took_s = self._loop.time() - begun_s
        self.seconds += took_s
        self.buckets[bisect_left(STATE_COMMIT_BOUNDS_S, took_s)] += 1

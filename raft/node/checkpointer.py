"""Bringing the state file up to date behind the log, in large transactions off the request path.

The image always equals the state at one applied index: the changes are drained between two entries.
One commit is in flight at a time. A commit that met a full disk keeps its rows and tries again
later, together with what came since; until then the log holds everything.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence

from raft.node.node_config import NodeConfig
from raft.node.state_machine import StateMachine
from raft.storage import BackendFailed, BackendFull
from raft.storage.storage_protocol import Backend, Checkpoint, Row

logger = logging.getLogger(__name__)

STATE_COMMIT_BOUNDS_S = tuple(0.001 * 2**step for step in range(14))
"""Upper bounds of the duration counts, 1 ms to 8.192 s: those of etcd's disk histograms."""


class Checkpointer:
    """How far the state file lags, and the task that shortens it."""

    def __init__(
        self,
        *,
        config: NodeConfig,
        machine: StateMachine,
        state: Backend,
        durable: Checkpoint,
        loop: asyncio.AbstractEventLoop,
        mark: Callable[[], Checkpoint],
        fatal: Callable[[str], None],
    ) -> None:
        self._config = config
        self._machine = machine
        self.state = state
        """The file in use. Read-only outside."""
        self._loop = loop
        self._mark = mark
        """The applied index as a mark."""
        self._fatal = fatal
        self.durable = durable
        """What the file holds. Invariant: durable.index <= applied index."""
        self.undurable_bytes = 0
        """Bytes of the applied entries that `durable` does not cover."""
        self._oldest_s: float | None = None
        """When the first entry after the last drain was applied; None when there is none."""
        self._not_before_s = 0.0
        """After a full disk: no commit before this time."""
        self._kept: list[Row] = []
        """Rows drained for a commit that failed; older than anything drained since."""
        self._task: asyncio.Task[None] | None = None
        """The commit in flight. Kept here, awaited by `close`."""
        self._failed = False
        """`fatal` was called."""
        self.commits = 0
        self.buckets = [0] * (len(STATE_COMMIT_BOUNDS_S) + 1)
        """Commits by duration, and beyond the last bound."""
        self.seconds = 0.0

    def applied(self, nbytes: int, now_s: float) -> None:
        """An entry was applied."""
        self.undurable_bytes += nbytes
        if self._oldest_s is None:
            self._oldest_s = now_s

    def due(self, now_s: float) -> bool:
        """Whether a commit should begin now."""
        return (
            self._oldest_s is not None
            and self._task is None
            and now_s >= self._not_before_s
            and (
                self.undurable_bytes >= self._config.checkpoint_bytes
                or now_s >= self._oldest_s + self._config.checkpoint_ms / 1000
            )
        )

    @property
    def full(self) -> bool:
        """Whether so much is applied but not durable that proposals must be refused."""
        return self.undurable_bytes >= self._config.undurable_bytes_max

    def begin(self) -> None:
        """Drain the changes and commit them in a task."""
        self._task = self._loop.create_task(self._commit(), name="write behind")

    async def reach(self, index: int) -> None:
        """Wait until the file stands at `index`, which is applied, or beyond.

        Raises BackendFull or BackendFailed.
        """
        while self.durable.index < index:
            if self._task is None:
                self.begin()
            assert self._task is not None
            await asyncio.wait([self._task])
            if self._failed:
                raise BackendFailed("the state file cannot be written")
            if self.durable.index < index and self._loop.time() < self._not_before_s:
                raise BackendFull("no space left for the state file")

    def replace(self, state: Backend, mark: Checkpoint) -> tuple[Backend, asyncio.Task[None] | None]:
        """The state is now that of another file, which stands at `mark`.

        Returns the file used so far and the commit in flight to it, whose end no longer matters.
        """
        before, task = self.state, self._task
        self.state, self.durable = state, mark
        self.undurable_bytes = 0
        self._oldest_s = None
        self._not_before_s = 0.0
        self._kept = []
        self._task = None
        return before, task

    async def close(self, *, flush: bool) -> None:
        """Wait for the commit in flight; `flush` also brings the file up to the applied index, if it can."""
        if self._task is not None:
            await self._task
        if flush and self._oldest_s is not None:
            await self._commit()

    async def _commit(self) -> None:
        mark, state = self._mark(), self.state
        nbytes = self.undurable_bytes
        rows: Sequence[Row] = self._kept + self._machine.drain_changes()
        oldest_s, self._oldest_s = self._oldest_s, None
        begun_s = self._loop.time()
        error: Exception | None = None
        try:
            if mark.index > self.durable.index:
                await state.commit(mark, rows)
        except Exception as caught:  # noqa: BLE001  # whatever broke the image, answering on without it is worse
            error = caught
        if self.state is not state:
            return  # an image has taken its place meanwhile
        self._task = None
        if isinstance(error, BackendFull):
            logger.warning("no space left for the state file; will try again")
            self._kept = list(rows)
            self._oldest_s = oldest_s
            self._not_before_s = self._loop.time() + self._config.backend_retry_ms / 1000
            return
        if error is not None:
            self._failed = True
            self._fatal(f"the state file cannot be written: {error}")
            return
        self._kept = []
        self.durable = mark
        self.undurable_bytes -= nbytes
        self.commits += 1
        took_s = self._loop.time() - begun_s
        self.seconds += took_s
        self.buckets[bisect_left(STATE_COMMIT_BOUNDS_S, took_s)] += 1

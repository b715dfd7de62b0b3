"""The state file with a clock beside it: how long its commits take is one of etcd's metrics."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence

from kvstore.server.metrics import Histogram
from raft.storage.protocol import SYNC_BOUNDS_S, Row, StateFile, StateMark


class TimedStateFile:
    """See `StateFile`, which this passes everything on to."""

    def __init__(self, state: StateFile) -> None:
        self._state = state
        self.commits = Histogram(SYNC_BOUNDS_S)
        """Durations of the commits that succeeded."""

    async def mark(self) -> StateMark:
        return await self._state.mark()

    async def commit(self, mark: StateMark, rows: Sequence[Row]) -> None:
        began = time.monotonic()
        await self._state.commit(mark, rows)
        self.commits.observe(time.monotonic() - began)

    def scan(self, low: bytes, high: bytes | None) -> AsyncIterator[Sequence[tuple[bytes, bytes]]]:
        return self._state.scan(low, high)

    def size_bytes(self) -> int:
        return self._state.size_bytes()

    async def close(self) -> None:
        await self._state.close()

"""The two ends of a snapshot's pipe in memory: frames travel with the network's delays, or not at all.

A connection is like TCP: nothing on it is lost, repeated or reordered. While its link is blocked nothing
arrives, until both ends time out; a reset ends both at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from raft.transport.transport_protocol import SnapshotChunk, SnapshotFailed, SnapshotOpening, SnapshotStatus

BLOCKED_RETRY_S = 0.1
"""Time after an unblock within which the bytes arrive, as by a retransmission."""

T = TypeVar("T")


class OneWay(Generic[T]):
    """Frames in flight in one direction, in order."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, delay_s: Callable[[], float], blocked: Callable[[], bool]
    ) -> None:
        self._loop = loop
        self._delay_s = delay_s
        self._blocked = blocked
        self._under_way: deque[tuple[float, T]] = deque()
        """Due time and frame; due times never decrease. Bounded by what a sender may have in flight."""
        self._timer: asyncio.TimerHandle | None = None
        """For the first of them."""
        self._arrived: deque[T] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._ended = ""
        """Why the connection has ended; empty while it is open."""

    def write(self, frame: T) -> None:
        if self._ended:
            raise SnapshotFailed(self._ended)
        due_s = self._loop.time() + self._delay_s()
        if self._under_way:
            due_s = max(due_s, self._under_way[-1][0])
        self._under_way.append((due_s, frame))
        self._plan(due_s)

    def _plan(self, due_s: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_at(due_s, self._arrive)

    def _arrive(self) -> None:
        self._timer = None
        if self._ended:
            return
        if self._blocked():
            self._plan(self._loop.time() + BLOCKED_RETRY_S)
            return
        self._arrived.append(self._under_way.popleft()[1])
        self._wake()
        if self._under_way:
            self._plan(self._under_way[0][0])

    async def read(self) -> T:
        while not self._arrived:
            if self._ended:
                raise SnapshotFailed(self._ended)
            self._reader = self._loop.create_future()
            await self._reader
        return self._arrived.popleft()

    def end(self, reason: str) -> None:
        self._ended = self._ended or reason
        self._arrived.clear()
        self._under_way.clear()
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class SnapshotConnection:
    """One connection from a sender to a receiver of a snapshot."""

    def __init__(self, there: OneWay[SnapshotOpening | SnapshotChunk], back: OneWay[SnapshotStatus]) -> None:
        self.sender = MemorySenderPipe(there, back)
        self.receiver = MemoryReceiverPipe(there, back)
        self._ways = (there, back)

    def end(self, reason: str) -> None:
        for way in self._ways:
            way.end(reason)


class MemorySenderPipe:
    """See `SenderPipe`."""

    def __init__(self, there: OneWay[SnapshotOpening | SnapshotChunk], back: OneWay[SnapshotStatus]) -> None:
        self._there = there
        self._back = back

    async def write(self, frame: SnapshotOpening | SnapshotChunk) -> None:
        self._there.write(frame)

    async def read(self) -> SnapshotStatus:
        return await self._back.read()


class MemoryReceiverPipe:
    """See `ReceiverPipe`."""

    def __init__(self, there: OneWay[SnapshotOpening | SnapshotChunk], back: OneWay[SnapshotStatus]) -> None:
        self._there = there
        self._back = back

    async def read(self) -> SnapshotOpening | SnapshotChunk:
        return await self._there.read()

    async def write(self, status: SnapshotStatus) -> None:
        self._back.write(status)

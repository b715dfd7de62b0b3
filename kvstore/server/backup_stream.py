"""Backups streamed to clients: each is a snapshot of the backend, deleted after it was sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

from kvstore.errors import KVError, NoSpace, TooManyRequests, Unavailable
from raft.storage import BackendFull, Snapshot, SnapshotStore, StorageError

logger = logging.getLogger("kvstore.server")

BACKUPS_MAX = 2
"""At once: each needs as much disk space as the backend itself."""

PIECE_BYTES = 256 * 1024
"""In one message. etcd's have 32 KiB; fewer and larger ones cost less, far below any client's limit."""


class Copies(Protocol):
    """The part of the node's snapshots (`raft.node.snapshots`) that backups use."""

    snapshot_store: SnapshotStore

    async def copy_state(self) -> Snapshot: ...


class BackupCall(Protocol):
    def send_piece(self, data: bytes, remaining_bytes: int) -> None: ...
    async def wait_for_space(self) -> None:
        """Wait until more may be sent."""

    def finish(self) -> None: ...
    def fail(self, error: KVError) -> None: ...


class Backups:
    """The backups in progress, one task each."""

    def __init__(self, copies: Callable[[], Copies]) -> None:
        self._copies = copies
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, call: BackupCall) -> Callable[[], None]:
        """Send a backup of the state applied now; returns its cancellation. Raises TooManyRequests."""
        if len(self._tasks) >= BACKUPS_MAX:
            raise TooManyRequests
        task = asyncio.get_running_loop().create_task(self._send(call), name="backup")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def give_up() -> None:
            task.cancel()

        return give_up

    async def close(self) -> None:
        """Cancel every backup: the member stops."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, call: BackupCall) -> None:
        try:
            async with aclosing(self._pieces()) as pieces:  # deletes the snapshot, also when cancelled
                async for data, remaining_bytes in pieces:
                    await call.wait_for_space()
                    call.send_piece(data, remaining_bytes)
        except BackendFull:
            call.fail(NoSpace())
        except (StorageError, OSError) as error:
            logger.warning("a backup failed: %s", error)
            call.fail(Unavailable("etcdserver: the state cannot be copied"))
        else:
            call.finish()

    async def _pieces(self) -> AsyncGenerator[tuple[bytes, int], None]:
        copies = self._copies()
        snapshot = await copies.copy_state()
        try:
            offset = 0
            while offset < snapshot.size_bytes:
                data = await copies.snapshot_store.read(snapshot, offset, PIECE_BYTES)
                offset += len(data)
                yield data, snapshot.size_bytes - offset
            yield snapshot.sha256, 0
        finally:
            await copies.snapshot_store.discard(snapshot)

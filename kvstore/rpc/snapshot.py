"""etcdserverpb.Maintenance/Snapshot: the whole state as a stream, in etcd's frame.

Pieces in order, `remaining_bytes` counting down, then the SHA-256 of them all as the last. What is in
them is our own (`raft.storage.backup`).
"""

from __future__ import annotations

import asyncio

from kvstore.errors import KVError
from kvstore.rpc.call import Call, Method
from kvstore.server.backups import Backups
from kvstore.wire import rpc_pb2 as pb


class SnapshotService:
    """Backups of this member's state."""

    def __init__(self, backups: Backups) -> None:
        self._backups = backups

    def methods(self) -> tuple[Method, ...]:
        """The rows of this service."""
        return (
            Method(
                service="etcdserverpb.Maintenance",
                name="Snapshot",
                request_type=pb.SnapshotRequest,
                handler=self.snapshot,
                streaming=True,
            ),
        )

    def snapshot(self, _request: pb.SnapshotRequest, call: Call) -> None:
        """Stream a copy of what is applied here now."""
        call.on_gone(self._backups.begin(_Sending(call)))


class _Sending:
    """A call that is sent a backup."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._drained = asyncio.Event()
        call.on_drained(self._drained.set)

    def send_piece(self, data: bytes, remaining_bytes: int) -> None:
        self._call.send(pb.SnapshotResponse(remaining_bytes=remaining_bytes, blob=data))

    async def wait_for_space(self) -> None:
        while not self._call.has_room:
            self._drained.clear()
            await self._drained.wait()

    def finish(self) -> None:
        self._call.finish()

    def fail(self, error: KVError) -> None:
        self._call.fail(error)

"""The leader's side of snapshots: builds one for every member that the core requests it for, and sends it.

A request names a member and the newest state the core knew applied. The snapshot is a copy of the backend,
made once that has come as far as the request; one made a moment ago for another member serves too, if the
log still follows on it. It is sent chunk by chunk beside everything else, resumes from where it stopped,
and leads to one report to the core: delivered, or not.

Bounds: one copy is made at a time, and at most two exist (the newest, and one that is still being sent);
at most SNAPSHOT_STREAMS_MAX are sent at once. Meanwhile the log is kept behind them (`held_index`), so that
the receiver can go on from there.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace

from raft.core.confchange import members_of
from raft.core.messages import Message
from raft.core.types import Role, SnapshotMeta
from raft.node.checkpointer import Checkpointer
from raft.node.replica import Replica
from raft.storage import StorageError
from raft.storage.snapshot_store import Snapshot, SnapshotStore
from raft.transport.transport_protocol import SnapshotFailed, SnapshotOffer

logger = logging.getLogger(__name__)

SNAPSHOT_STREAMS_MAX = 2
"""Snapshots sent at once; more would only share one disk and one network."""

SNAPSHOT_ATTEMPTS_MAX = 5
"""Attempts in a row that deliver not one byte more, before the failure is reported to the core."""

SNAPSHOT_RETRY_S = 0.5
"""Wait between attempts: after a broken stream, the process or the network mostly comes back."""

SNAPSHOT_KEEP_S = 10.0
"""How long a copy is kept after its last use: members that fell behind together need it together."""


@dataclass(slots=True)
class _Copy:
    """A copy on our disk."""

    snapshot: Snapshot
    users: int = 0
    idle_since_s: float = 0.0
    """Loop time of the last release; counts while `users` is 0."""


@dataclass(slots=True)
class _Transfer:
    """One member's snapshot, from the request to the report."""

    request: Message
    held_index: int
    """The log is kept after this index: that of the snapshot, or a lower bound of it while it is made."""
    task: asyncio.Task[None] | None = None
    copy: _Copy | None = None
    offset: int = 0
    """Bytes the receiver has."""


@dataclass(slots=True)
class SenderCounters:
    """Since start."""

    built: int = 0
    sent: int = 0
    failed: int = 0
    sent_bytes: int = 0
    sending: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Member to (bytes it has, bytes of the snapshot), of the transfers under way."""


class SnapshotSender:
    """Its tasks touch the core through the inbox only."""

    def __init__(self, replica: Replica, snapshot_store: SnapshotStore, checkpointer: Checkpointer) -> None:
        self._core = replica.core
        self._transport = replica.transport
        self._loop = replica.loop
        self._post = replica.inbox.post
        self._snapshot_store = snapshot_store
        self._checkpointer = checkpointer
        self._transfers: dict[int, _Transfer] = {}
        """By member; at most one each."""
        self._newest: _Copy | None = None
        self._making = asyncio.Lock()
        """Held while a copy is looked for or made."""
        self._streams = asyncio.Semaphore(SNAPSHOT_STREAMS_MAX)
        self._ending: set[asyncio.Task[None]] = set()
        """Tasks that were cancelled or only delete a file; awaited by `close`."""
        self._closed = False
        self._counters = SenderCounters()

    @property
    def held_index(self) -> int | None:
        """The log must be kept after this index for snapshots under way; None for none."""
        return min((transfer.held_index for transfer in self._transfers.values()), default=None)

    def counters(self) -> SenderCounters:
        sending = {
            member: (transfer.offset, transfer.copy.snapshot.size_bytes)
            for member, transfer in self._transfers.items()
            if transfer.copy is not None
        }
        return replace(self._counters, sending=sending)

    def request(self, message: Message) -> None:
        if self._closed:
            return
        running = self._transfers.get(message.to)
        if running is not None:
            if running.request.term == message.term and running.held_index + 1 >= self._core.first_index:
                return  # the one under way is new enough
            self._cancel(message.to)
        transfer = _Transfer(message, self._checkpointer.durable.index)
        self._transfers[message.to] = transfer
        task = transfer.task = self._loop.create_task(
            self._transfer(transfer), name=f"snapshot for member {message.to:x}"
        )
        task.add_done_callback(lambda ended: self._ended(transfer, ended))

    def tick(self) -> None:
        """Cancel transfers of a term that is no longer led, and discard an idle copy."""
        core = self._core
        for member, transfer in list(self._transfers.items()):
            leads = core.role is Role.LEADER and core.term == transfer.request.term
            if not leads or member not in members_of(core.conf):
                self._cancel(member)
        copy = self._newest
        if copy is not None and not copy.users and self._loop.time() > copy.idle_since_s + SNAPSHOT_KEEP_S:
            self._newest = None
            self._discard(copy)

    def cancel(self) -> None:
        """The member stops: cancel everything."""
        self._closed = True
        for member in list(self._transfers):
            self._cancel(member)

    async def close(self) -> None:
        """After `cancel`. Discards the copies."""
        if self._newest is not None and not self._newest.users:
            self._discard(self._newest)
            self._newest = None
        while self._ending:
            await asyncio.wait(list(self._ending))

    def _cancel(self, member: int) -> None:
        transfer = self._transfers.pop(member)
        if transfer.task is not None and not transfer.task.done():
            self._ending.add(transfer.task)
            transfer.task.cancel()

    def _ended(self, transfer: _Transfer, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        member = transfer.request.to
        if self._transfers.get(member) is not transfer:
            return  # another superseded it, or no member waits for it
        del self._transfers[member]
        fault = None if task.cancelled() else task.exception()
        if isinstance(fault, (SnapshotFailed, StorageError, OSError)):
            self._counters.failed += 1
            logger.warning("member %x could not be sent a snapshot: %s", member, fault)
        elif fault is not None:
            context = {"message": "sending a snapshot failed", "exception": fault, "task": task}
            self._loop.call_exception_handler(context)
        else:
            self._counters.sent += 1
        delivered = fault is None and not task.cancelled()
        self._post(lambda: self._core.report_snapshot(member, delivered))

    async def _transfer(self, transfer: _Transfer) -> None:
        member = transfer.request.to
        async with self._streams:
            copy = await self._take_copy(transfer)
            try:
                snapshot = copy.snapshot
                logger.info(
                    "sending member %x a snapshot at index %d (%d bytes)",
                    member,
                    snapshot.mark.index,
                    snapshot.size_bytes,
                )
                began_s = self._loop.time()
                await self._send(transfer, snapshot)
                took_s = self._loop.time() - began_s
                logger.info(
                    "member %x has the snapshot at index %d after %.1f s", member, snapshot.mark.index, took_s
                )
            finally:
                self._release(copy)

    async def _send(self, transfer: _Transfer, snapshot: Snapshot) -> None:
        message = replace(transfer.request, snapshot=SnapshotMeta(*snapshot.mark))
        offer = SnapshotOffer(message, snapshot.size_bytes, snapshot.sha256)

        async def read(offset: int, size: int) -> bytes:
            return await self._snapshot_store.read(snapshot, offset, size)

        def progress(offset: int) -> None:
            self._counters.sent_bytes += max(0, offset - transfer.offset)
            transfer.offset = offset

        attempts, reached = 0, 0
        while True:
            try:
                await self._transport.send_snapshot(message.to, offer, read, progress)
            except SnapshotFailed as failure:
                if transfer.offset > reached:
                    attempts, reached = 0, transfer.offset
                attempts += 1
                if attempts == SNAPSHOT_ATTEMPTS_MAX:
                    raise
                logger.info("the snapshot for member %x is interrupted: %s", message.to, failure)
                await asyncio.sleep(SNAPSHOT_RETRY_S)
            else:
                return

    async def _take_copy(self, transfer: _Transfer) -> _Copy:
        async with self._making:
            copy = self._newest
            if copy is None or not self._serves(copy, transfer.request.to):
                copy = await self._make_copy(transfer)
            copy.users += 1
            transfer.copy, transfer.held_index = copy, copy.snapshot.mark.index
            return copy

    def _serves(self, copy: _Copy, member: int) -> bool:
        """Whether the log follows on the copy, and its configuration knows the member."""
        mark = copy.snapshot.mark
        return mark.index + 1 >= self._core.first_index and member in members_of(mark.conf)

    async def _make_copy(self, transfer: _Transfer) -> _Copy:
        wanted = transfer.request.snapshot
        assert wanted is not None
        await self._checkpointer.reach(wanted.index)
        transfer.held_index = self._checkpointer.durable.index
        copy = _Copy(await self._snapshot_store.build(self._checkpointer.backend))
        self._counters.built += 1
        before, self._newest = self._newest, copy
        if before is not None and not before.users:
            self._discard(before)
        return copy

    def _release(self, copy: _Copy) -> None:
        copy.users -= 1
        copy.idle_since_s = self._loop.time()
        if not copy.users and (copy is not self._newest or self._closed):
            self._discard(copy)

    def _discard(self, copy: _Copy) -> None:
        task = self._loop.create_task(self._delete(copy.snapshot), name="discard a snapshot")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _delete(self, snapshot: Snapshot) -> None:
        try:
            await self._snapshot_store.discard(snapshot)
        except OSError as error:
            logger.warning("%s cannot be deleted, it will be at the next start: %s", snapshot.path, error)

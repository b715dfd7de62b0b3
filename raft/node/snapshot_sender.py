"""The leader's side of images: what the core wishes to be brought to a member is built and brought there.

A wish names a member and the newest state the core knew applied. The image that is brought is a copy of
the state file, made once that has come as far as the wish; one that was made a moment ago for somebody
else serves too, if the log still follows on it. It goes out chunk by chunk beside everything else, is
tried again from where it stopped, and ends in one report to the core: delivered, or not.

Bounds: one copy is made at a time, and at most two exist (the newest, and one that still travels);
SNAPSHOT_STREAMS_MAX leave at once. While an image travels the log is kept behind it (`held_index`), so that
its receiver can go on from there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from raft.core import RaftCore
from raft.core.confchange import members_of
from raft.core.messages import Message
from raft.core.types import Role, SnapshotMeta
from raft.node.checkpointer import Checkpointer
from raft.storage import StorageError
from raft.storage.snapshot_store import Snapshot, SnapshotStore
from raft.transport.transport_protocol import SnapshotFailed, SnapshotOffer, Transport

logger = logging.getLogger(__name__)

SNAPSHOT_STREAMS_MAX = 2
"""Images leaving at once; more share one disk and one network to nobody's gain."""

SNAPSHOT_ATTEMPTS_MAX = 5
"""Attempts in a row that bring not one byte more, before the core is told that it failed."""

SNAPSHOT_RETRY_S = 0.5
"""Wait between attempts: a stream that breaks is mostly a process or a network that comes back."""

SNAPSHOT_KEEP_S = 10.0
"""How long a copy outlives its last use: members that fell behind together ask together."""


@dataclass(slots=True)
class _Copy:
    """A copy on our disk."""

    snapshot: Snapshot
    users: int = 0
    idle_since_s: float = 0.0
    """Loop time of the last release; counts while `users` is 0."""


@dataclass(slots=True)
class _Transfer:
    """One member's image, from the wish to the report."""

    request: Message
    held_index: int
    """The log is kept after this index: that of the image, or a lower bound of it while it is made."""
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
    """Member to (bytes it has, bytes of the image), of the transfers under way."""


class SnapshotSender:
    """Owned by the core's owner; its tasks touch the core through `post` only."""

    def __init__(
        self,
        *,
        core: RaftCore,
        transport: Transport,
        snapshot_store: SnapshotStore,
        checkpointer: Checkpointer,
        loop: asyncio.AbstractEventLoop,
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self._core = core
        self._transport = transport
        self._snapshot_store = snapshot_store
        self._checkpointer = checkpointer
        self._loop = loop
        self._post = post
        self._transfers: dict[int, _Transfer] = {}
        """By member; at most one each."""
        self._newest: _Copy | None = None
        self._making = asyncio.Lock()
        """Held by whoever looks for a copy or makes one."""
        self._streams = asyncio.Semaphore(SNAPSHOT_STREAMS_MAX)
        self._ending: set[asyncio.Task[None]] = set()
        """Tasks that were cancelled or only delete a file; awaited by `close`."""
        self._closed = False
        self._counters = SenderCounters()

    @property
    def held_index(self) -> int | None:
        """The log must be kept after this index for images under way; None for none."""
        return min((transfer.held_index for transfer in self._transfers.values()), default=None)

    def counters(self) -> SenderCounters:
        """A copy of the counters."""
        sending = {
            member: (transfer.offset, transfer.copy.snapshot.size_bytes)
            for member, transfer in self._transfers.items()
            if transfer.copy is not None
        }
        return replace(self._counters, sending=sending)

    def request(self, message: Message) -> None:
        """The core wishes `message.to` to be brought an image."""
        if self._closed:
            return
        running = self._transfers.get(message.to)
        if running is not None:
            if running.request.term == message.term and running.held_index + 1 >= self._core.first_index:
                return  # what is on its way will do
            self._cancel(message.to)
        transfer = _Transfer(message, self._checkpointer.durable.index)
        self._transfers[message.to] = transfer
        task = transfer.task = self._loop.create_task(
            self._bring(transfer), name=f"image for member {message.to:x}"
        )
        task.add_done_callback(lambda ended: self._ended(transfer, ended))

    def look(self) -> None:
        """Once a tick: give up what is no longer ours to bring, and forget an idle copy."""
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
        """The member ends: give up everything."""
        self._closed = True
        for member in list(self._transfers):
            self._cancel(member)

    async def close(self) -> None:
        """After `cancel`. The copies go."""
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
            return  # another took its place, or nobody waits for it
        del self._transfers[member]
        fault = None if task.cancelled() else task.exception()
        if isinstance(fault, (SnapshotFailed, StorageError, OSError)):
            self._counters.failed += 1
            logger.warning("member %x could not be brought an image of the state: %s", member, fault)
        elif fault is not None:
            context = {"message": "sending an image failed", "exception": fault, "task": task}
            self._loop.call_exception_handler(context)
        else:
            self._counters.sent += 1
        delivered = fault is None and not task.cancelled()
        self._post(lambda: self._core.report_snapshot(member, delivered))

    async def _bring(self, transfer: _Transfer) -> None:
        member = transfer.request.to
        async with self._streams:
            copy = await self._take_copy(transfer)
            try:
                snapshot = copy.snapshot
                logger.info(
                    "bringing member %x an image of the state at index %d (%d bytes)",
                    member,
                    snapshot.mark.index,
                    snapshot.size_bytes,
                )
                began_s = self._loop.time()
                await self._send(transfer, snapshot)
                took_s = self._loop.time() - began_s
                logger.info(
                    "member %x has the image at index %d after %.1f s", member, snapshot.mark.index, took_s
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
                logger.info("the image for member %x is interrupted: %s", message.to, failure)
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
        copy = _Copy(await self._snapshot_store.build(self._checkpointer.state))
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
        task = self._loop.create_task(self._delete(copy.snapshot), name="discard an image")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _delete(self, snapshot: Snapshot) -> None:
        try:
            await self._snapshot_store.discard(snapshot)
        except OSError as error:
            logger.warning("%s cannot be deleted, it will be at the next start: %s", snapshot.path, error)

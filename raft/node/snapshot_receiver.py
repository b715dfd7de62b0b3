"""The receiving side: a snapshot is taken in, verified, loaded, and becomes the state of this member.

    receiving -> verified and durable under its own name -> loaded into a fresh machine beside the present one
      -> the core is stepped -> the log is marked and names the file -> in one step: machine, applied index,
      configuration and backend are those of the snapshot -> the older backend is deleted

So until the last step this member goes on as before, and after it everything is the snapshot's; neither a
reader nor the disk ever sees anything in between. The price is memory for two states while the second one
is loaded.

One snapshot at a time. An offer of a newer one, or from a leader of a later term, supersedes one that is
still being received; a repeated offer of the same one resumes where it stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Protocol

from raft.core.confchange import members_of
from raft.core.messages import Message
from raft.core.types import SnapshotMeta
from raft.node.applying import Applier
from raft.node.checkpointer import load
from raft.node.identity_check import IdentityCheck
from raft.node.replica import Replica
from raft.node.state_machine import StateMachine
from raft.storage import StorageError
from raft.storage.snapshot_store import IncomingSnapshot, SnapshotStore
from raft.storage.storage_protocol import Backend, Checkpoint
from raft.transport.transport_protocol import Handshake, SnapshotOffer, SnapshotRefused, SnapshotSink

logger = logging.getLogger(__name__)

SNAPSHOT_IDLE_S = 60.0
"""How long the bytes of an interrupted snapshot are kept for another attempt."""


class Install(Protocol):
    """The step that makes a loaded snapshot the state of this member."""

    def __call__(self, mark: Checkpoint, machine: StateMachine, backend: Backend) -> None: ...


@dataclass(slots=True, eq=False)
class _Incoming:
    """A snapshot from its first offer until it is the state."""

    offer: SnapshotOffer
    meta: SnapshotMeta
    file: IncomingSnapshot | None = None
    """None until the first attempt opens it."""
    attempt: object | None = None
    """Identifies the attempt that may write; a late one finds another object."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held around what touches the file."""
    idle_since_s: float = 0.0
    """Loop time at which the last attempt stopped; counts while there is none."""
    installing: asyncio.Task[None] | None = None
    """From the moment when all bytes are here."""
    machine: StateMachine | None = None
    backend: Backend | None = None
    """Both from the moment when the snapshot is loaded."""
    completed: asyncio.Future[bool] | None = None
    """Whether it was installed; known when the core and the log have accepted it, or not."""


@dataclass(slots=True)
class ReceiverCounters:
    """Since start."""

    installed: int = 0
    failed: int = 0
    received_bytes: int = 0
    resumed: int = 0
    superseded: int = 0
    receiving: tuple[int, int] | None = None
    """(bytes here, bytes of the snapshot) of the one under way."""


class SnapshotReceiver:
    """Its tasks touch the core through the inbox only."""

    def __init__(
        self,
        replica: Replica,
        snapshot_store: SnapshotStore,
        identity_check: IdentityCheck,
        machine: StateMachine,
        applier: Applier,
        install: Install,
    ) -> None:
        self._id = replica.member_id
        self._core = replica.core
        self._loop = replica.loop
        self._post = replica.inbox.post
        self._snapshot_store = snapshot_store
        self._identity_check = identity_check
        self._machine = machine
        self._applier = applier
        self._apply_install = install
        self._incoming: _Incoming | None = None
        self._names = asyncio.Lock()
        """Held around what creates or deletes a file: snapshots at one index share a name."""
        self._tasks: set[asyncio.Task[None]] = set()
        """Awaited by `close`."""
        self._closed = False
        self._counters = ReceiverCounters()

    def counters(self) -> ReceiverCounters:
        incoming, counted = self._incoming, self._counters
        receiving = None
        if incoming is not None and incoming.file is not None:
            receiving = (incoming.file.offset, incoming.offer.size_bytes)
        return replace(counted, receiving=receiving)

    # -- one attempt after another

    def on_snapshot(self, handshake: Handshake, offer: SnapshotOffer) -> SnapshotSink:
        message, meta = offer.message, offer.message.snapshot
        member = handshake.member_id
        assert meta is not None, "the codec refuses a snapshot without it"
        if self._closed:
            raise SnapshotRefused("this member is stopping")
        if not self._identity_check.is_current(member, handshake.incarnation):
            raise SnapshotRefused(f"member {member:x} is not known by this incarnation")
        if message.from_ != member or message.to != self._id:
            raise SnapshotRefused("the snapshot is not meant for this member")
        if message.term < self._core.term:
            raise SnapshotRefused(f"term {message.term} is over")
        if self._id not in members_of(meta.conf):
            raise SnapshotRefused("its configuration does not contain this member")
        if meta.index <= self._applier.applied:
            return _NothingNeeded(self, offer)
        return _Attempt(self, self._incoming_for(offer, meta))

    def _incoming_for(self, offer: SnapshotOffer, meta: SnapshotMeta) -> _Incoming:
        present = self._incoming
        if present is not None:
            if present.offer.sha256 == offer.sha256 and present.meta == meta:
                present.offer = offer  # perhaps of a later term of the same leader
                return present
            newer = (offer.message.term, meta.index) > (present.offer.message.term, present.meta.index)
            if present.installing is not None:
                raise SnapshotRefused("another snapshot is being installed")
            if not newer:
                raise SnapshotRefused("a newer snapshot is being received")
            logger.info("the snapshot at index %d supersedes that at %d", meta.index, present.meta.index)
            self._counters.superseded += 1
            self._drop(present)
        self._incoming = _Incoming(offer, meta, idle_since_s=self._loop.time())
        return self._incoming

    def tick(self) -> None:
        """Drop a snapshot whose sender does not come back."""
        incoming = self._incoming
        if incoming is None or incoming.attempt is not None or incoming.installing is not None:
            return
        if self._loop.time() > incoming.idle_since_s + SNAPSHOT_IDLE_S:
            logger.warning("the snapshot at index %d was dropped half-way", incoming.meta.index)
            self._counters.failed += 1
            self._drop(incoming)

    def needless(self, message: Message) -> None:
        """A snapshot was offered that holds nothing new: let the core answer how far this member is."""
        self._post(lambda: self._core.step(message))

    async def open(self, incoming: _Incoming, attempt: object) -> int:
        incoming.attempt = attempt
        async with incoming.lock:
            self._check(incoming, attempt)
            if incoming.file is None:
                try:
                    async with self._names:
                        incoming.file = await self._snapshot_store.receive(incoming.meta.index)
                except (OSError, StorageError) as error:
                    raise self._failed(incoming, error) from error
                logger.info(
                    "receiving a snapshot at index %d (%d bytes)",
                    incoming.meta.index,
                    incoming.offer.size_bytes,
                )
            self._counters.resumed += incoming.file.offset > 0
            return incoming.file.offset

    async def write(self, incoming: _Incoming, attempt: object, data: bytes) -> None:
        async with incoming.lock:
            self._check(incoming, attempt)
            assert incoming.file is not None
            try:
                await incoming.file.write(data)
            except OSError as error:
                raise self._failed(incoming, error) from error
            self._counters.received_bytes += len(data)

    def _check(self, incoming: _Incoming, attempt: object) -> None:
        if self._incoming is not incoming or incoming.attempt is not attempt or self._closed:
            raise SnapshotRefused("another snapshot, or another attempt, superseded this one")

    def release(self, incoming: _Incoming, attempt: object) -> None:
        if incoming.attempt is attempt:
            incoming.attempt = None
            incoming.idle_since_s = self._loop.time()

    def _failed(self, incoming: _Incoming, error: Exception) -> SnapshotRefused:
        """This snapshot cannot be used, however much of it is sent."""
        logger.warning("the snapshot at index %d cannot be used: %s", incoming.meta.index, error)
        self._counters.failed += 1
        if self._incoming is incoming:
            self._drop(incoming)
        return SnapshotRefused(str(error))

    def _drop(self, incoming: _Incoming) -> None:
        """Forget a snapshot that the log will never name."""
        self._incoming = None
        incoming.attempt = None
        self._spawn(self._delete(incoming), f"drop the snapshot at index {incoming.meta.index}")

    async def _delete(self, incoming: _Incoming) -> None:
        async with incoming.lock:
            if incoming.backend is not None:
                await incoming.backend.close()
            if incoming.file is None:
                return
            incoming.file.close()
            async with self._names:
                present = self._incoming
                if present is not None and present.meta.index == incoming.meta.index and present.file:
                    return  # it writes under the same name, and has deleted this file
                try:
                    await self._snapshot_store.abandon(incoming.meta.index)
                except OSError as error:
                    logger.warning("a snapshot cannot be deleted, it will be at the next start: %s", error)

    # -- when all bytes are here

    def finish(self, incoming: _Incoming, attempt: object) -> asyncio.Future[None]:
        """Verify and install; the same for every attempt."""
        if incoming.installing is None:
            self._check(incoming, attempt)
            incoming.installing = self._spawn(
                self._install(incoming), f"install the snapshot at index {incoming.meta.index}"
            )
        return incoming.installing

    async def _install(self, incoming: _Incoming) -> None:
        meta = incoming.meta
        try:
            async with incoming.lock:
                await self._prepare(incoming)
            incoming.completed = self._loop.create_future()
            self._post(lambda: self._step(incoming))
            installed = await incoming.completed
        except (OSError, StorageError, ValueError) as error:
            raise self._failed(incoming, error) from error
        except Exception as error:
            self._failed(incoming, error)  # a bug, or the end of the process: the loop's handler reports it
            raise
        if not installed:
            if self._incoming is incoming:
                self._drop(incoming)
            raise SnapshotRefused("it is not needed any more")
        self._incoming = None
        logger.info("the state is now the snapshot at index %d", meta.index)

    async def _prepare(self, incoming: _Incoming) -> None:
        """Verify the bytes, and load them into a machine of their own."""
        meta = incoming.meta
        assert incoming.file is not None
        mark = await incoming.file.finish(incoming.offer.sha256)
        if mark != Checkpoint(*meta):
            raise ValueError(f"it is at {mark[:2]}, not at {meta[:2]} as announced")
        incoming.backend = await self._snapshot_store.open_received(meta.index)
        machine = self._machine.fresh()
        await load(machine, incoming.backend)
        incoming.machine = machine

    def _step(self, incoming: _Incoming) -> None:
        """In a loop iteration: let the core accept it or not."""
        assert incoming.completed is not None
        self._core.step(incoming.offer.message)
        if self._core.restoring != incoming.meta.index:
            incoming.completed.set_result(False)

    def log_names(self, meta: SnapshotMeta) -> None:
        """In a loop iteration: the log is marked, and names the file. Install it."""
        incoming = self._incoming
        assert incoming is not None, "the core only takes a snapshot that was prepared"
        assert incoming.meta == meta, "the core only takes a snapshot that was prepared"
        assert incoming.machine is not None
        assert incoming.backend is not None
        assert incoming.completed is not None
        self._apply_install(Checkpoint(*meta), incoming.machine, incoming.backend)
        incoming.machine = None
        incoming.backend = None
        self._counters.installed += 1
        incoming.completed.set_result(True)

    # -- the end

    def retire(self, backend: Backend, idle: asyncio.Task[None] | None, index: int) -> None:
        """The backend of the snapshot at `index` is in use: close its predecessor once `idle` is done."""
        self._spawn(self._retire(backend, idle, index), "retire a backend")

    async def _retire(self, backend: Backend, idle: asyncio.Task[None] | None, index: int) -> None:
        if idle is not None:
            await asyncio.wait([idle])
        try:
            await backend.close()
            await self._snapshot_store.use(index)
        except (OSError, StorageError) as error:
            logger.warning("the older backend cannot be deleted, it will be at the next start: %s", error)

    def cancel(self) -> None:
        """The member stops: nothing is installed any more."""
        self._closed = True
        if self._incoming is not None and self._incoming.installing is not None:
            self._incoming.installing.cancel()

    async def close(self) -> None:
        """After `cancel`. What the log may name already stays; the next start deletes the rest."""
        incoming, self._incoming = self._incoming, None
        while self._tasks:
            await asyncio.wait(list(self._tasks))
        if incoming is not None:
            if incoming.file is not None:
                incoming.file.close()
            if incoming.backend is not None:
                await incoming.backend.close()

    def _spawn(self, coroutine: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        fault = None if task.cancelled() else task.exception()
        if fault is not None and not isinstance(fault, SnapshotRefused):
            context = {"message": f"{task.get_name()} failed", "exception": fault, "task": task}
            self._loop.call_exception_handler(context)


class _Attempt:
    """See `SnapshotSink`."""

    def __init__(self, receiver: SnapshotReceiver, incoming: _Incoming) -> None:
        self._receiver = receiver
        self._incoming = incoming

    async def open(self) -> int:
        return await self._receiver.open(self._incoming, self)

    async def write(self, data: bytes) -> None:
        await self._receiver.write(self._incoming, self, data)

    def finish(self) -> asyncio.Future[None]:
        return self._receiver.finish(self._incoming, self)

    def release(self) -> None:
        self._receiver.release(self._incoming, self)


class _NothingNeeded:
    """Takes a snapshot older than the applied index: as if it were all here."""

    def __init__(self, receiver: SnapshotReceiver, offer: SnapshotOffer) -> None:
        self._receiver = receiver
        self._offer = offer

    async def open(self) -> int:
        return self._offer.size_bytes

    async def write(self, data: bytes) -> None:
        raise SnapshotRefused("no bytes are needed")

    def finish(self) -> asyncio.Future[None]:
        self._receiver.needless(self._offer.message)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def release(self) -> None:
        """Nothing is held."""

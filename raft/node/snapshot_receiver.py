"""The other side of images: one is taken in, verified, read, and becomes the state of this member.

    receiving -> verified and durable under its own name -> read into a fresh machine beside the present one
      -> the core is stepped -> the log is marked and names the file -> in one step: machine, applied index,
      configuration and state file are those of the image -> the older state file is deleted

So until the last step this member goes on as it was, and after it everything is the image's; nothing is
ever between the two, neither for a reader nor on the disk. The price is memory for two states while the
second one is read.

One image at a time. An offer of a newer one, or from a leader of a later term, takes the place of one
that is still being received; a repeated offer of the same one goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Protocol

from raft.core import RaftCore
from raft.core.confchange import members_of
from raft.core.messages import Message
from raft.core.types import SnapshotMeta
from raft.node.state_machine import StateMachine
from raft.storage import StorageError
from raft.storage.snapshot_store import IncomingSnapshot, SnapshotStore
from raft.storage.storage_protocol import Backend, Checkpoint
from raft.transport.transport_protocol import Handshake, SnapshotOffer, SnapshotRefused, SnapshotSink

logger = logging.getLogger(__name__)

SNAPSHOT_IDLE_S = 60.0
"""How long the bytes of an interrupted image are kept for another attempt."""


class Installed(Protocol):
    """What the owner does in the step that makes an image the state of this member."""

    def __call__(self, mark: Checkpoint, machine: StateMachine, state: Backend) -> None: ...


@dataclass(slots=True, eq=False)
class _Incoming:
    """An image on its way to becoming the state."""

    offer: SnapshotOffer
    meta: SnapshotMeta
    file: IncomingSnapshot | None = None
    """None until the first attempt opens it."""
    attempt: object | None = None
    """Names the attempt that may write; a late one finds another name."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held around what touches the file."""
    idle_since_s: float = 0.0
    """Loop time at which the last attempt ended; counts while there is none."""
    installing: asyncio.Task[None] | None = None
    """From the moment when all bytes are there."""
    machine: StateMachine | None = None
    state: Backend | None = None
    """Both from the moment when the image is read."""
    completed: asyncio.Future[bool] | None = None
    """Whether it was installed; known when the core and the log have spoken."""


@dataclass(slots=True)
class ReceiverCounters:
    """Since start."""

    installed: int = 0
    failed: int = 0
    received_bytes: int = 0
    resumed: int = 0
    superseded: int = 0
    receiving: tuple[int, int] | None = None
    """(bytes here, bytes of the image) of the one under way."""


class SnapshotReceiver:
    """Owned by the core's owner; its tasks touch the core through `post` only."""

    def __init__(
        self,
        *,
        member_id: int,
        core: RaftCore,
        snapshot_store: SnapshotStore,
        machine: StateMachine,
        applied: Callable[[], int],
        process_of: Callable[[int], int | None],
        loop: asyncio.AbstractEventLoop,
        post: Callable[[Callable[[], None]], None],
        installed: Installed,
    ) -> None:
        self._id = member_id
        self._core = core
        self._snapshot_store = snapshot_store
        self._machine = machine
        self._applied = applied
        self._process_of = process_of
        """The newest process of a member whose messages count, None for others."""
        self._loop = loop
        self._post = post
        self._installed = installed
        self._incoming: _Incoming | None = None
        self._names = asyncio.Lock()
        """Held around what creates or deletes a file: images at one index share a name."""
        self._tasks: set[asyncio.Task[None]] = set()
        """Awaited by `close`."""
        self._closed = False
        self._counters = ReceiverCounters()

    def counters(self) -> ReceiverCounters:
        """A copy of the counters."""
        incoming, counted = self._incoming, self._counters
        receiving = None
        if incoming is not None and incoming.file is not None:
            receiving = (incoming.file.offset, incoming.offer.size_bytes)
        return replace(counted, receiving=receiving)

    # -- one attempt after another

    def on_snapshot(self, handshake: Handshake, offer: SnapshotOffer) -> SnapshotSink:
        """See `Receiver`."""
        message, meta = offer.message, offer.message.snapshot
        member = handshake.member_id
        assert meta is not None, "the codec lets no image pass without it"
        if self._closed:
            raise SnapshotRefused("this member is stopping")
        if self._process_of(member) != handshake.incarnation:
            raise SnapshotRefused(f"member {member:x} is not known as this process")
        if message.from_ != member or message.to != self._id:
            raise SnapshotRefused("the image is not meant for this member")
        if message.term < self._core.term:
            raise SnapshotRefused(f"term {message.term} is over")
        if self._id not in members_of(meta.conf):
            raise SnapshotRefused("its configuration does not hold this member")
        if meta.index <= self._applied():
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
                raise SnapshotRefused("another image is being installed")
            if not newer:
                raise SnapshotRefused("a newer image is on its way")
            logger.info("the image at index %d takes the place of that at %d", meta.index, present.meta.index)
            self._counters.superseded += 1
            self._drop(present)
        self._incoming = _Incoming(offer, meta, idle_since_s=self._loop.time())
        return self._incoming

    def look(self) -> None:
        """Once a tick: forget an image whose sender does not come back."""
        incoming = self._incoming
        if incoming is None or incoming.attempt is not None or incoming.installing is not None:
            return
        if self._loop.time() > incoming.idle_since_s + SNAPSHOT_IDLE_S:
            logger.warning("the image at index %d was given up half-way", incoming.meta.index)
            self._counters.failed += 1
            self._drop(incoming)

    def needless(self, message: Message) -> None:
        """An image was offered that holds nothing new: say how far this member is."""
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
                    "receiving an image of the state at index %d (%d bytes)",
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
            raise SnapshotRefused("another image, or another attempt, took the place of this one")

    def release(self, incoming: _Incoming, attempt: object) -> None:
        if incoming.attempt is attempt:
            incoming.attempt = None
            incoming.idle_since_s = self._loop.time()

    def _failed(self, incoming: _Incoming, error: Exception) -> SnapshotRefused:
        """This image will not do, whatever is sent of it."""
        logger.warning("the image at index %d cannot be used: %s", incoming.meta.index, error)
        self._counters.failed += 1
        if self._incoming is incoming:
            self._drop(incoming)
        return SnapshotRefused(str(error))

    def _drop(self, incoming: _Incoming) -> None:
        """Forget an image that the log will never name."""
        self._incoming = None
        incoming.attempt = None
        self._spawn(self._delete(incoming), f"drop the image at index {incoming.meta.index}")

    async def _delete(self, incoming: _Incoming) -> None:
        async with incoming.lock:
            if incoming.state is not None:
                await incoming.state.close()
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
                    logger.warning("an image cannot be deleted, it will be at the next start: %s", error)

    # -- when all bytes are there

    def finish(self, incoming: _Incoming, attempt: object) -> asyncio.Future[None]:
        """Verify and install; the same for every attempt that asks."""
        if incoming.installing is None:
            self._check(incoming, attempt)
            incoming.installing = self._spawn(
                self._install(incoming), f"install the image at index {incoming.meta.index}"
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
            self._failed(incoming, error)  # a bug, or the end of this process: the owner of the loop hears it
            raise
        if not installed:
            if self._incoming is incoming:
                self._drop(incoming)
            raise SnapshotRefused("it is needed no more")
        self._incoming = None
        logger.info("the state is now the image at index %d", meta.index)

    async def _prepare(self, incoming: _Incoming) -> None:
        """Verify the bytes, and read them into a machine of their own."""
        meta = incoming.meta
        assert incoming.file is not None
        mark = await incoming.file.finish(incoming.offer.sha256)
        if mark != Checkpoint(*meta):
            raise ValueError(f"it stands at {mark[:2]}, not at {meta[:2]} as announced")
        incoming.state = await self._snapshot_store.open_received(meta.index)
        machine = self._machine.fresh()
        async for rows in incoming.state.scan(b"", None):
            machine.load(rows)
        machine.load_done()
        incoming.machine = machine

    def _step(self, incoming: _Incoming) -> None:
        """In the owner's turn: let the core judge."""
        assert incoming.completed is not None
        self._core.step(incoming.offer.message)
        if self._core.restoring != incoming.meta.index:
            incoming.completed.set_result(False)

    def log_names(self, meta: SnapshotMeta) -> None:
        """In the owner's turn: the log is marked, and names the file. Install it."""
        incoming = self._incoming
        assert incoming is not None, "the core only takes an image that was prepared"
        assert incoming.meta == meta, "the core only takes an image that was prepared"
        assert incoming.machine is not None
        assert incoming.state is not None
        assert incoming.completed is not None
        self._installed(Checkpoint(*meta), incoming.machine, incoming.state)
        incoming.machine = None
        incoming.state = None
        self._counters.installed += 1
        incoming.completed.set_result(True)

    # -- the end

    def retire(self, state: Backend, idle: asyncio.Task[None] | None, index: int) -> None:
        """The state file of the image at `index` is in use: close its predecessor once `idle` is over."""
        self._spawn(self._retire(state, idle, index), "retire a state file")

    async def _retire(self, state: Backend, idle: asyncio.Task[None] | None, index: int) -> None:
        if idle is not None:
            await asyncio.wait([idle])
        try:
            await state.close()
            await self._snapshot_store.use(index)
        except (OSError, StorageError) as error:
            logger.warning("the older state file cannot be deleted, it will be at the next start: %s", error)

    def cancel(self) -> None:
        """The member ends: nothing is installed any more."""
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
            if incoming.state is not None:
                await incoming.state.close()

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
    """Takes an image that this member is past: as if it were all here."""

    def __init__(self, receiver: SnapshotReceiver, offer: SnapshotOffer) -> None:
        self._receiver = receiver
        self._offer = offer

    async def open(self) -> int:
        return self._offer.size_bytes

    async def write(self, data: bytes) -> None:
        raise SnapshotRefused("nothing was asked for")

    def finish(self) -> asyncio.Future[None]:
        self._receiver.needless(self._offer.message)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def release(self) -> None:
        """Nothing is held."""

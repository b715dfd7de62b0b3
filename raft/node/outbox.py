"""What leaves the core: messages to others, work to the log, and what follows when that is durable.

The order is the promise of `raft.core.ready`: messages leave first, so that others write while we do;
a work's responses leave, and the core hears of it, only when the log holds it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from raft.core import RaftCore
from raft.core.messages import Message, MessageType
from raft.core.ready import AppendWork
from raft.core.types import SnapshotMeta
from raft.node.disk_health import DiskHealth
from raft.node.identity_check import TornTailGuard
from raft.storage.storage_protocol import LogWriter
from raft.transport.transport_protocol import Transport


class Outbox:
    """Called by the core's owner."""

    def __init__(
        self,
        *,
        core: RaftCore,
        log: LogWriter,
        transport: Transport,
        disk: DiskHealth,
        torn_tail_guard: TornTailGuard,
        loop: asyncio.AbstractEventLoop,
        completed: Callable[[AppendWork], None],
        snapshot_request: Callable[[Message], None],
        install: Callable[[SnapshotMeta], None],
    ) -> None:
        self._core = core
        self._log = log
        self._transport = transport
        self._disk = disk
        self._torn_tail_guard = torn_tail_guard
        self._loop = loop
        self._completed = completed
        """Called with each work when the log holds it, in order; leads to `durable`, in the owner's turn."""
        self._snapshot_request = snapshot_request
        """Takes the core's wishes for an image to be brought to a member."""
        self._install = install
        """Makes the image that the log names from now on the state of this member."""
        self._submitting: deque[AppendWork] = deque()
        """Append work that waits for the transport to have its messages on their way. In order."""
        self._closed = False

    def send(self, messages: Sequence[Message]) -> None:
        """Let messages leave, except those that this member must not say now."""
        guarded = self._torn_tail_guard.active
        for message in messages:
            if message.type is MessageType.SNAPSHOT:
                self._snapshot_request(message)
                continue
            if self._disk.drops_outbound(message):
                continue
            leaving = self._torn_tail_guard.outgoing(message) if guarded else message
            if leaving is not None:
                self._transport.send(message.to, leaving)

    def write(self, work: AppendWork, *, after_messages: bool) -> None:
        """Give work to the log, which may sync within the call: what others are to write goes out first."""
        if self._submitting:
            self._submitting.append(work)
        elif after_messages:
            self._submitting.append(work)
            # The transport's own wake-ups for the messages stand before this one.
            self._loop.call_soon(self._submit)
        else:
            self._log.submit(work, self._completed)

    def _submit(self) -> None:
        while self._submitting and not self._closed:
            self._log.submit(self._submitting.popleft(), self._completed)

    def durable(self, work: AppendWork) -> None:
        """The log holds `work`."""
        if self._torn_tail_guard.active:
            self._torn_tail_guard.on_durable(work)
        if work.snapshot is not None:
            self._install(work.snapshot)
        self.send(work.responses)
        self._core.on_append_done(work.token)

    def close(self) -> None:
        """The member ends: nothing more goes to the log."""
        self._closed = True

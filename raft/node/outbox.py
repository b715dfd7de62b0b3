"""What leaves the core: messages to others, work to the log, and what follows when that is durable.

The order is the contract of `raft.core.ready`: messages leave first, so that others write while we do;
a work's responses leave, and the core is notified of it, only when the log holds it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from raft.core.messages import Message, MessageType
from raft.core.ready import AppendWork
from raft.node.commit_broadcast import CommitBroadcast
from raft.node.disk_health import DiskHealth
from raft.node.replica import Replica
from raft.node.snapshots import Snapshots
from raft.node.torn_tail_guard import TornTailGuard
from raft.storage.storage_protocol import LogWriter


class Outbox:
    """Called by the loop iteration."""

    def __init__(
        self,
        replica: Replica,
        log: LogWriter,
        disk: DiskHealth,
        torn_tail_guard: TornTailGuard,
        snapshots: Snapshots,
    ) -> None:
        self._core = replica.core
        self.log = log
        self._transport = replica.transport
        self.disk = disk
        self._torn_tail_guard = torn_tail_guard
        self._loop = replica.loop
        self._completed = replica.inbox.put
        """Called with each work when the log holds it, in order; a loop iteration then calls `durable`."""
        self.snapshots = snapshots
        self.commit_broadcast = CommitBroadcast(replica)
        self._submitting: deque[AppendWork] = deque()
        """Append work that waits for the transport to have its messages on their way. In order."""
        self._closed = False

    def send(self, messages: Sequence[Message]) -> None:
        """Let messages leave, except those that this member must not send now."""
        guarded = self._torn_tail_guard.active
        for message in messages:
            if message.type is MessageType.SNAPSHOT:
                self.snapshots.request(message)
                continue
            if self.disk.drops_outbound(message):
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
            # The transport has already scheduled the sending of the messages, so that comes first.
            self._loop.call_soon(self._submit)
        else:
            self.log.submit(work, self._completed)

    def _submit(self) -> None:
        while self._submitting and not self._closed:
            self.log.submit(self._submitting.popleft(), self._completed)

    def durable(self, work: AppendWork) -> None:
        if self._torn_tail_guard.active:
            self._torn_tail_guard.on_durable(work)
        if work.snapshot is not None:
            self.snapshots.log_names(work.snapshot)
        self.send(work.responses)
        self._core.on_append_done(work.token)

    def close(self) -> None:
        """The member stops: nothing more goes to the log."""
        self._closed = True

"""Snapshots of the state and the log behind them: sent, received, installed, and compacted behind.

The one module that joins the parts which move snapshots with those that hold the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raft.core.messages import Message
from raft.core.types import SnapshotMeta
from raft.node.applying import Applier
from raft.node.checkpointer import Checkpointer
from raft.node.compaction import Compaction
from raft.node.forwarder import Forwarder
from raft.node.identity_check import IdentityCheck
from raft.node.membership import Membership
from raft.node.node_status import SnapshotStatistics
from raft.node.replica import MemberStorage, Replica
from raft.node.snapshot_receiver import SnapshotReceiver
from raft.node.snapshot_sender import SnapshotSender
from raft.node.state_machine import StateMachine
from raft.storage.snapshot_store import Snapshot
from raft.storage.storage_protocol import Backend, Checkpoint
from raft.transport.transport_protocol import Handshake, SnapshotOffer, SnapshotRefused, SnapshotSink


@dataclass(frozen=True, slots=True)
class ReplicatedState:
    """The state machine, and what advances it in memory and on disk."""

    machine: StateMachine
    applier: Applier
    checkpointer: Checkpointer


class Snapshots:
    """Called by the loop iteration and, for backups, by the application."""

    def __init__(
        self,
        replica: Replica,
        storage: MemberStorage,
        state: ReplicatedState,
        identity_check: IdentityCheck,
        membership: Membership,
        forwarder: Forwarder,
    ) -> None:
        self.snapshot_store = storage.snapshot_store
        """Where copies of the state are read and discarded."""
        self._machine = state.machine
        self._identity_check = identity_check
        self._membership = membership
        self._checkpointer = state.checkpointer
        self._applier = state.applier
        self._forwarder = forwarder
        self._sender = SnapshotSender(replica, storage.snapshot_store, state.checkpointer)
        self._receiver = SnapshotReceiver(
            replica, storage.snapshot_store, identity_check, state.machine, state.applier, self._install
        )
        self._compaction = Compaction(
            replica.core, storage.log, replica.config, lambda: self._sender.held_index
        )
        self.listeners: list[Callable[[int], None]] = []
        """Called with the index whenever a snapshot has become the state."""
        self._cancelled = False

    def request(self, message: Message) -> None:
        self._sender.request(message)

    def log_names(self, meta: SnapshotMeta) -> None:
        """The log starts behind this received snapshot from now on: install it."""
        self._receiver.log_names(meta)

    def on_snapshot(self, handshake: Handshake, offer: SnapshotOffer) -> SnapshotSink:
        if self._cancelled or not self._identity_check.vote_eligible:
            raise SnapshotRefused("this member takes no snapshots now")
        return self._receiver.on_snapshot(handshake, offer)

    async def copy_state(self) -> Snapshot:
        """A copy of the whole state, at least of what is applied now, as a file; for a backup.

        Takes as long as the state is large, without disturbing anything. Read it with `snapshot_store.read`,
        and give it to `snapshot_store.discard` in the end. Raises BackendFull, BackendFailed or OSError.
        """
        await self._checkpointer.reach(self._applier.applied)
        return await self.snapshot_store.build(self._checkpointer.backend)

    def tick(self) -> None:
        self._compaction.consider(self._checkpointer.durable, self._checkpointer.durable_position)
        self._sender.tick()
        self._receiver.tick()

    def cancel(self) -> None:
        """The member stops: nothing is begun or installed any more."""
        self._cancelled = True
        self._sender.cancel()
        self._receiver.cancel()

    async def close(self) -> None:
        """After `cancel`: wait for what was under way."""
        await self._sender.close()
        await self._receiver.close()

    def statistics(self) -> SnapshotStatistics:
        out, into = self._sender.counters(), self._receiver.counters()
        return SnapshotStatistics(
            built=out.built,
            sent=out.sent,
            send_failures=out.failed,
            sent_bytes=out.sent_bytes,
            sending=out.sending,
            installed=into.installed,
            resumed=into.resumed,
            superseded=into.superseded,
            receive_failures=into.failed,
            received_bytes=into.received_bytes,
            receiving=into.receiving,
        )

    def _install(self, mark: Checkpoint, machine: StateMachine, backend: Backend) -> None:
        """The log names the snapshot that `machine` and `backend` hold: from now on that is the state."""
        self._machine.replace(machine)
        before, commit = self._checkpointer.replace(backend, mark)
        self._receiver.retire(before, commit, mark.index)
        self._applier.supersede(mark)
        self._forwarder.superseded(mark.term)
        self._membership.installed(mark.conf)
        self._forwarder.reads.applied(mark.index)
        for listener in self.listeners:
            listener(mark.index)

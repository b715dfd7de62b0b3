"""Images of the state and the log they stand for: sent, received, installed, and compacted behind.

The one place that joins the parts which know about images with those that hold the state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from raft.core import RaftCore
from raft.node.applying import Applier
from raft.node.checkpointer import Checkpointer
from raft.node.compaction import Compaction
from raft.node.identity_check import IdentityCheck
from raft.node.membership import Membership
from raft.node.node_config import NodeConfig
from raft.node.node_status import SnapshotStatistics
from raft.node.proposals import Proposals
from raft.node.reads import Reads
from raft.node.snapshot_receiver import SnapshotReceiver
from raft.node.snapshot_sender import SnapshotSender
from raft.node.state_machine import StateMachine
from raft.storage.snapshot_store import Snapshot, SnapshotStore
from raft.storage.storage_protocol import Backend, Checkpoint, LogWriter
from raft.transport.transport_protocol import (
    Handshake,
    SnapshotOffer,
    SnapshotRefused,
    SnapshotSink,
    Transport,
)


class Snapshots:
    """Owned by the core's owner."""

    def __init__(
        self,
        *,
        config: NodeConfig,
        core: RaftCore,
        log: LogWriter,
        snapshot_store: SnapshotStore,
        transport: Transport,
        machine: StateMachine,
        identity_check: IdentityCheck,
        membership: Membership,
        checkpointer: Checkpointer,
        applier: Applier,
        proposals: Proposals,
        reads: Reads,
        loop: asyncio.AbstractEventLoop,
        post: Callable[[Callable[[], None]], None],
        listeners: Sequence[Callable[[int], None]],
    ) -> None:
        """`listeners` are called with the index whenever an image has become the state."""
        self.snapshot_store = snapshot_store
        """Where copies of the state are read and discarded."""
        self._machine = machine
        self._identity_check = identity_check
        self._membership = membership
        self._checkpointer = checkpointer
        self._applier = applier
        self._proposals = proposals
        self._reads = reads
        self._sender = SnapshotSender(
            core=core,
            transport=transport,
            snapshot_store=snapshot_store,
            checkpointer=checkpointer,
            loop=loop,
            post=post,
        )
        self.snapshot_request = self._sender.request
        self._receiver = SnapshotReceiver(
            member_id=config.member_id,
            core=core,
            snapshot_store=snapshot_store,
            machine=machine,
            applied=lambda: self._applier.applied,
            process_of=lambda member: (
                identity_check.incarnation(member) if identity_check.ready(member) else None
            ),
            loop=loop,
            post=post,
            installed=self._install,
        )
        self.log_names = self._receiver.log_names
        self._compaction = Compaction(core, log, config, lambda: self._sender.held_index)
        self._listeners = listeners
        self._cancelled = False

    def on_snapshot(self, handshake: Handshake, offer: SnapshotOffer) -> SnapshotSink:
        """See `Receiver`."""
        if self._cancelled or not self._identity_check.vote_eligible:
            raise SnapshotRefused("this member takes no images now")
        return self._receiver.on_snapshot(handshake, offer)

    async def copy_state(self) -> Snapshot:
        """A copy of the whole state, at least of what is applied now, as a file; for a backup.

        Takes as long as the state is large, without disturbing anything. Read it with `images.read`, and
        give it to `images.discard` in the end. Raises BackendFull, BackendFailed or OSError.
        """
        await self._checkpointer.reach(self._applier.applied)
        return await self.snapshot_store.build(self._checkpointer.state)

    def look(self) -> None:
        """Once a tick."""
        position = self._applier.nbytes - self._checkpointer.undurable_bytes
        self._compaction.consider(self._checkpointer.durable, position)
        self._sender.look()
        self._receiver.look()

    def cancel(self) -> None:
        """The member ends: nothing is begun or installed any more."""
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

    def _install(self, mark: Checkpoint, machine: StateMachine, state: Backend) -> None:
        """The log names the image that `machine` and `state` hold: from now on that is the state."""
        self._machine.replace(machine)
        before, commit = self._checkpointer.replace(state, mark)
        self._receiver.retire(before, commit, mark.index)
        self._applier.supersede(mark)
        self._proposals.superseded(mark.term)
        self._membership.superseded()
        self._membership.refresh(mark.conf)
        self._reads.applied(mark.index)
        for listener in self._listeners:
            listener(mark.index)

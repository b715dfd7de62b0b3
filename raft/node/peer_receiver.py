"""What arrives from other members: handshakes, messages, snapshots, and the ends of streams.

A message waits until the disk id of its sender is durable, then in the inbox; the loop iteration that takes
it passes it to the core or to the part it concerns.
"""

from __future__ import annotations

from dataclasses import dataclass

from raft.core.messages import Message, MessageType
from raft.node.disk_health import DiskHealth
from raft.node.failover import Failover
from raft.node.forwarder import Forwarder
from raft.node.identity_check import IdentityCheck, PeerIncarnations
from raft.node.membership import Membership
from raft.node.node_config import INBOX_MAX
from raft.node.replica import FromPeer, Replica
from raft.node.snapshots import Snapshots
from raft.node.torn_tail_guard import TornTailGuard
from raft.transport.transport_protocol import (
    ChangeReply,
    ChangeRequest,
    ForwardedBatch,
    ForwardRefused,
    Handshake,
    HandshakeReply,
    LeaderReply,
    LeaderRequest,
    PeerMessage,
    ReplicaRecorded,
    SnapshotOffer,
    SnapshotSink,
)

HELD_MESSAGES_MAX = 256
"""Messages of one peer kept while its disk id is being recorded, which takes one sync."""


@dataclass(frozen=True, slots=True)
class Peers:
    """What this member knows of the others, and what may pass between it and them."""

    incarnations: PeerIncarnations
    identity_check: IdentityCheck
    torn_tail_guard: TornTailGuard
    membership: Membership
    failover: Failover


class PeerReceiver:
    """Implements `raft.transport.transport_protocol.Receiver`."""

    def __init__(
        self, replica: Replica, peers: Peers, forwarder: Forwarder, disk: DiskHealth, snapshots: Snapshots
    ) -> None:
        self._id = replica.member_id
        self._core = replica.core
        self._transport = replica.transport
        self._inbox = replica.inbox
        self._incarnations = peers.incarnations
        self._identity_check = peers.identity_check
        self._torn_tail_guard = peers.torn_tail_guard
        self._membership = peers.membership
        self._failover = peers.failover
        self._forwarder = forwarder
        self._disk = disk
        self._snapshots = snapshots
        self._held: dict[int, list[FromPeer]] = {}
        """Messages of members whose disk id is being recorded. At most HELD_MESSAGES_MAX each."""

    # -- from the transport

    def on_handshake(self, handshake: Handshake) -> HandshakeReply:
        return self._identity_check.on_handshake(handshake)

    def on_answer(self, member_id: int, answer: HandshakeReply) -> None:
        if self._inbox.open:
            self._identity_check.on_answer(member_id, answer)

    def on_message(self, member_id: int, incarnation: int, message: PeerMessage) -> None:
        inbox = self._inbox
        if not inbox.open:
            return
        if type(message) is ReplicaRecorded:
            self._identity_check.on_recorded(member_id, message.disk_id)
            self._failover.campaign_if_starting()
        elif not self._identity_check.vote_eligible:
            return
        elif not self._identity_check.ready(member_id):
            held = self._held.setdefault(member_id, [])
            if self._identity_check.recording(member_id) and len(held) < HELD_MESSAGES_MAX:
                held.append((member_id, incarnation, message))
        elif len(inbox.items) < INBOX_MAX:
            inbox.items.append((member_id, incarnation, message))
            inbox.wake()

    def on_snapshot(self, handshake: Handshake, offer: SnapshotOffer) -> SnapshotSink:
        return self._snapshots.on_snapshot(handshake, offer)

    def on_connected(self, member_id: int) -> None:
        def connected() -> None:
            self._report_disk(member_id)
            self._membership.connected(member_id)
            self._forwarder.connected(member_id)
            self._failover.campaign_if_starting()

        self._inbox.post(connected)

    def on_disconnected(self, member_id: int) -> None:
        self._inbox.post(lambda: self._core.report_unreachable(member_id))
        if self._inbox.open:
            self._membership.disconnected(member_id)
            self._failover.stream_ended(member_id)

    def on_dropped(self, member_id: int, message: PeerMessage) -> None:
        if type(message) is Message and message.type is MessageType.APPEND:
            self._inbox.post(lambda: self._core.report_unreachable(member_id))

    # -- from the identity check

    def restarted(self, member_id: int, incarnation: int, known: bool) -> None:
        """The member has another incarnation than before; a known one is no evidence that the other ended."""
        self._torn_tail_guard.restarted(member_id, incarnation)
        if not known:
            self._failover.restarted(member_id)
        self._inbox.post(lambda: self._core.report_restarted(member_id))

    def recorded(self, member_id: int) -> None:
        """The disk id of the member is durable: its messages may go on."""
        self._report_disk(member_id)
        for item in self._held.pop(member_id, ()):
            self._inbox.items.append(item)
        self._inbox.wake()

    def _report_disk(self, member_id: int) -> None:
        """Send the member its disk id on record: when it is recorded, and whenever the stream opens."""
        disk_id = self._identity_check.disk_of(member_id)
        if disk_id is not None:
            self._transport.send(member_id, ReplicaRecorded(disk_id))

    # -- from the inbox

    def take(self, member_id: int, incarnation: int, message: PeerMessage) -> None:
        """Pass a message on, in a loop iteration."""
        if incarnation != self._incarnations.latest(member_id):
            return  # of a previous incarnation: what it acknowledged may be lost with it
        forwarder = self._forwarder
        if type(message) is Message:
            if message.from_ != member_id or message.to != self._id:
                return
            if message.type is MessageType.SNAPSHOT or self._disk.drops_inbound(message):
                return  # the core must not take a snapshot whose bytes are not here: see `snapshot_receiver`
            guard = self._torn_tail_guard
            if not guard.active or guard.may_step(member_id, incarnation, message):
                self._core.step(message)
        elif type(message) is ForwardedBatch:
            forwarder.on_batch(member_id, message)
        elif type(message) is ForwardRefused:
            forwarder.on_refused(member_id, incarnation, message)
        elif type(message) is LeaderRequest:
            forwarder.leader_rpc.on_request(member_id, message)
        elif type(message) is LeaderReply:
            forwarder.leader_rpc.on_reply(message)
        elif type(message) is ChangeRequest:
            if (message.from_, message.to) == (member_id, self._id):
                forwarder.changes.on_request(member_id, message)
        elif type(message) is ChangeReply and (message.from_, message.to) == (member_id, self._id):
            forwarder.changes.on_reply(member_id, incarnation, message)

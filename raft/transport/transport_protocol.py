"""The node's view of the peer transport.

Best effort: a message may be lost, and the loss is reported; messages of one connection keep their order
within each of the two lanes (urgent, bulk). The transport decides nothing. In particular, evidence (a
handshake) distinguishes "dead" from "unreachable", never a timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from raft.core.messages import Message
from raft.core.types import EntryKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshake:
    """The first message on every connection, in both directions."""

    format_version: int
    cluster_id: int
    member_id: int
    disk_id: int
    incarnation: int
    """64 fresh random bits per process start."""
    urls: tuple[str, ...] = ()
    """Where the sender listens for peers, so that a member that does not know it yet can dial back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandshakeReply:
    """The accepting side's handshake, and what it knows of the dialling member."""

    handshake: Handshake
    earlier_disk_known: bool
    """The accepting member has ever recorded another disk id for the dialling member."""
    refusal: str = ""
    """Why the stream is refused, in one line; empty when accepted."""
    removed: bool = False
    """The dialling member was removed from the cluster, for ever. Implies a refusal."""


@dataclass(frozen=True, slots=True)
class ForwardedBatch:
    """Commands that a follower forwards to the leader of `term`, and of no other term."""

    term: int
    incarnation: int
    counter: int
    """Position in the origin's forwarding session of this term, from 1."""
    data: bytes
    """The encoded batch, ready to be the data of one log entry."""


@dataclass(frozen=True, slots=True)
class ForwardRefused:
    """Batches from `counter` on were not appended in `term` and never will be by this member."""

    term: int
    incarnation: int
    counter: int


@dataclass(frozen=True, slots=True)
class ReplicaRecorded:
    """The sender holds durably that the addressed member's disk is this one, and knows no earlier one."""

    disk_id: int


@dataclass(frozen=True, slots=True)
class LeaderRequest:
    """A leader RPC: a request of one application to that of the leader; opaque here."""

    incarnation: int
    """Of the requesting member."""
    number: int
    """Identifies the request within its incarnation."""
    data: bytes


@dataclass(frozen=True, slots=True)
class LeaderReply:
    """The reply to the leader RPC of the same incarnation and number."""

    incarnation: int
    """Of the requesting member."""
    number: int
    data: bytes


class ChangeRefusal(Enum):
    """Why a leader does not append a forwarded membership change."""

    NOT_APPENDED = "not appended"
    """The member does not lead the term: the change is not in its log and never will be in that term."""
    LEARNER_NOT_READY = "learner not ready"
    DOES_NOT_FIT = "does not fit"
    """The configuration of the leader cannot make the change."""


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """A membership change that a member without leadership forwards to the leader of `term`."""

    to: int
    from_: int
    term: int
    kind: EntryKind
    data: bytes
    """The encoded change, ready to be the data of one log entry of this kind."""


@dataclass(frozen=True, slots=True)
class ChangeReply:
    """The refusal of a forwarded membership change; an appended one has no reply but its log entry."""

    to: int
    from_: int
    term: int
    counter: int
    """Identifies the change among those of its origin's incarnation."""
    reason: ChangeRefusal


PeerMessage = (
    Message
    | ForwardedBatch
    | ForwardRefused
    | ReplicaRecorded
    | LeaderRequest
    | LeaderReply
    | ChangeRequest
    | ChangeReply
)


@dataclass(frozen=True, slots=True)
class SnapshotOffer:
    """A snapshot that one member offers another."""

    message: Message
    """Its SNAPSHOT message, with the metadata of the bytes to be sent."""
    size_bytes: int
    sha256: bytes


class SnapshotOpening(NamedTuple):
    """The first frame of a snapshot's sender."""

    handshake: Handshake
    offer: SnapshotOffer


class SnapshotChunk(NamedTuple):
    """The bytes of a snapshot from `offset` on."""

    offset: int
    crc32c: int
    data: bytes


class SnapshotStatus(NamedTuple):
    """The progress of a snapshot's receiver."""

    offset: int
    """Bytes that it has; the sender continues here."""
    done: bool = False
    """The snapshot is installed, or not needed any more."""
    refusal: str = ""
    """Why this attempt ends, in one line."""


class SnapshotFailed(Exception):
    """An attempt to send a snapshot ended early, with the reason. Another attempt may resume there."""


class SnapshotRefused(Exception):
    """The receiver does not accept this snapshot, or not now, with the reason."""


class SnapshotSink(Protocol):
    """Takes the bytes of one attempt, on the receiving side. Raises SnapshotRefused."""

    async def open(self) -> int:
        """Prepare the file; return the offset at which the sender continues."""

    async def write(self, data: bytes) -> None:
        """Write the next bytes to the disk."""

    def finish(self) -> asyncio.Future[None]:
        """Verify and install the complete snapshot. Continues if the attempt ends meanwhile."""

    def release(self) -> None:
        """Called once when the attempt ends, for any reason."""


ReadSnapshot = Callable[[int, int], Awaitable[bytes]]
"""read(offset, size): the bytes there, fewer only at the end."""


class Liveness(Enum):
    """Outcome of a probe: one plain connection with a handshake each way."""

    ALIVE = "alive"
    """Same incarnation as before."""
    DEAD = "dead"
    """Refused, reset before the handshake, or another incarnation: the previous one is dead."""
    UNREACHABLE = "unreachable"
    """Silence: nothing is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatistics:
    """Counters of the traffic with one peer since it was set."""

    sent_messages: int
    sent_bytes: int
    received_bytes: int
    send_failures: int
    """Messages dropped because a lane was full or the stream down."""
    round_trip_seconds: float = 0.0
    """Sum of the measured times from a heartbeat to its answer."""
    round_trip_buckets: tuple[int, ...] = ()
    """Counts of those up to 0.1 ms, 0.2 ms, doubling 15 times, and longer; empty if not measured."""


class Receiver(Protocol):
    """The node's side. All calls run on the event loop, and none may block."""

    def on_handshake(self, handshake: Handshake) -> HandshakeReply:
        """Accept or refuse a peer's stream; a refusal closes it."""

    def on_answer(self, member_id: int, answer: HandshakeReply) -> None:
        """A peer has answered our handshake (accepted or refused)."""

    def on_message(self, member_id: int, incarnation: int, message: PeerMessage) -> None: ...

    def on_snapshot(self, handshake: Handshake, offer: SnapshotOffer) -> SnapshotSink:
        """A peer offers a snapshot. Raises SnapshotRefused."""

    def on_connected(self, member_id: int) -> None:
        """Our outgoing stream to this member is open."""

    def on_disconnected(self, member_id: int) -> None:
        """A stream to or from this member ended; queued messages on it are lost."""

    def on_dropped(self, member_id: int, message: PeerMessage) -> None:
        """A queue was full or the stream is down: this message will not arrive."""


class PeerLink(Protocol):
    """One member's outgoing stream to one peer: queues, dialling, back-off.

    Two lanes: urgent (heartbeats, votes, answers, read rounds) is never behind bulk (appends,
    forwarded batches). Both are bounded in messages and bytes by named constants.
    """

    @property
    def connected(self) -> bool: ...

    def send(self, message: PeerMessage) -> bool:
        """Queue a message; False when it cannot be, and `on_dropped` was called before returning."""

    async def probe(self) -> Liveness:
        """Open one plain connection, exchange handshakes, close it."""

    def close_nowait(self) -> None: ...


class Transport(Protocol):
    """All links of one member, and its listener."""

    async def start(self, handshake: Handshake, receiver: Receiver) -> None: ...

    def set_peer(self, member_id: int, urls: tuple[str, ...]) -> None:
        """Add a peer or move it to new URLs."""

    def remove_peer(self, member_id: int) -> None: ...

    def send(self, member_id: int, message: PeerMessage) -> bool: ...

    async def probe(self, member_id: int) -> Liveness: ...

    async def send_snapshot(
        self, member_id: int, offer: SnapshotOffer, read: ReadSnapshot, progress: Callable[[int], None]
    ) -> None:
        """Send a snapshot to a member, on a connection of its own, until it is installed there.

        Calls `progress(offset)` with each offset that the receiver reports. Raises SnapshotFailed, also
        without a connection; another call resumes where this one stopped.
        """

    def connected_peers(self) -> frozenset[int]: ...

    def statistics(self) -> dict[int, PeerStatistics]:
        """Counters by peer."""

    def reset_connections(self) -> None:
        """Shut down every peer socket at once; safe to call from the watchdog thread."""

    async def close(self) -> None:
        """Close peer sockets first, so that the other members elect a leader at once, then the rest."""

"""How members reach one another, as the driver sees it.

Best effort: a message may be lost, and is then reported; what arrives on one connection keeps
its order within each of the two lanes (urgent, bulk). Nothing here decides; in particular
"dead" and "unreachable" are told apart by evidence only (a hello), never by a timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from raft.core.messages import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshake:
    """First words on every connection, in both directions."""

    format_version: int
    cluster_id: int
    member_id: int
    disk_id: int
    incarnation: int
    """64 fresh random bits per process start."""
    urls: tuple[str, ...] = ()
    """Where the sender listens for peers: a member that has not yet heard of it can answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandshakeReply:
    """The accepting side's hello, and what it knows of the asking member."""

    handshake: Handshake
    earlier_disk_known: bool
    """True when the answering member has ever recorded another disk id for the asking member."""
    refusal: str = ""
    """Why the conversation is refused, in one line; empty when accepted."""
    removed: bool = False
    """The asking member was removed from the cluster, for ever. Implies a refusal."""


@dataclass(frozen=True, slots=True)
class ForwardedBatch:
    """Commands a member without leadership passes to the leader of `term`, and of no other term."""

    term: int
    incarnation: int
    counter: int
    """Position in the origin's window for this term, from 1."""
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
    """Asked by one application of that of the leader; opaque here."""

    incarnation: int
    """The asking process."""
    number: int
    """Names the question among those of its process."""
    data: bytes


@dataclass(frozen=True, slots=True)
class LeaderReply:
    """To the question of the same name."""

    incarnation: int
    """The asking process."""
    number: int
    data: bytes


PeerMessage = Message | ForwardedBatch | ForwardRefused | ReplicaRecorded | LeaderRequest | LeaderReply


@dataclass(frozen=True, slots=True)
class SnapshotOffer:
    """An image of the state that one member brings another."""

    message: Message
    """The SNAPSHOT message it belongs to, with the image's true metadata."""
    size_bytes: int
    sha256: bytes


class SnapshotOpening(NamedTuple):
    """First words of the sender of an image."""

    handshake: Handshake
    offer: SnapshotOffer


class SnapshotChunk(NamedTuple):
    """The bytes of an image from `offset` on."""

    offset: int
    crc32c: int
    data: bytes


class SnapshotStatus(NamedTuple):
    """How far the receiver of an image is."""

    offset: int
    """Bytes that it has; where to go on."""
    done: bool = False
    """The image is installed, or needed no more."""
    refusal: str = ""
    """Why this attempt ends, in one line."""


class SnapshotFailed(Exception):
    """An attempt to move an image ended early; the text says why. Another may go on from there."""


class SnapshotRefused(Exception):
    """The receiver does not take this image, or not now; the text says why."""


class SnapshotSink(Protocol):
    """Where one attempt puts the bytes of an image, on the receiving side. Raises SnapshotRefused."""

    async def open(self) -> int:
        """Get ready; the offset to go on from."""

    async def write(self, data: bytes) -> None:
        """Put the next bytes on the disk."""

    def finish(self) -> asyncio.Future[None]:
        """All bytes are there: verify and install. Goes on when the attempt does not."""

    def release(self) -> None:
        """The attempt has ended, however it did."""


ReadSnapshot = Callable[[int, int], Awaitable[bytes]]
"""read(offset, size): the bytes there, fewer only at the end."""


class Liveness(Enum):
    """Outcome of one plain connection with an exchange of hellos."""

    ALIVE = "alive"
    """Same boot id as before: the promise stands."""
    DEAD = "dead"
    """Refused, reset before hello, or a new boot id: that process is gone."""
    UNREACHABLE = "unreachable"
    """Silence: nothing is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatistics:
    """Counters of the conversation with one peer since it was set."""

    sent_messages: int
    sent_bytes: int
    received_bytes: int
    send_failures: int
    """Messages that were dropped because a lane was full or the stream down."""
    round_trip_seconds: float = 0.0
    """Sum of the measured times from a heartbeat to its answer."""
    round_trip_buckets: tuple[int, ...] = ()
    """How many of them took up to 0.1 ms, 0.2 ms, doubling 15 times, and longer; empty if not measured."""


class Receiver(Protocol):
    """The driver's side. All calls happen on the event loop, none may block."""

    def on_handshake(self, handshake: Handshake) -> HandshakeReply:
        """Judge a peer's first words; a refusal closes the connection."""

    def on_answer(self, member_id: int, answer: HandshakeReply) -> None:
        """A peer has answered our hello (accepted or refused)."""

    def on_message(self, member_id: int, incarnation: int, message: PeerMessage) -> None: ...

    def on_snapshot(self, handshake: Handshake, offer: SnapshotOffer) -> SnapshotSink:
        """A peer offers an image. Raises SnapshotRefused."""

    def on_connected(self, member_id: int) -> None:
        """Our outgoing stream to this member is open."""

    def on_disconnected(self, member_id: int) -> None:
        """A stream to or from this member ended; queued messages on it are lost."""

    def on_dropped(self, member_id: int, message: PeerMessage) -> None:
        """A queue was full or the stream is down: this message will not arrive."""


class PeerLink(Protocol):
    """One member's outgoing conversation with one peer: queues, a stream, back-off.

    Two lanes: urgent (heartbeats, votes, answers, read rounds) is never behind bulk (appends,
    forwarded batches). Both are bounded in messages and bytes by named constants.
    """

    @property
    def connected(self) -> bool: ...

    def send(self, message: PeerMessage) -> bool:
        """Queue a message; False when it cannot be, and `on_dropped` was called before returning."""

    async def probe(self) -> Liveness:
        """Open one plain connection, exchange hellos, close it."""

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
        """Bring a member an image, on a connection of its own, until it is installed there.

        `progress(offset)` is told how far the receiver is. Raises SnapshotFailed, also for want of a connection;
        another call goes on where this one stopped.
        """

    def connected_peers(self) -> frozenset[int]: ...

    def statistics(self) -> dict[int, PeerStatistics]:
        """Counters by peer."""

    def reset_connections(self) -> None:
        """Shut every peer socket at once; safe to call from the watchdog thread."""

    async def close(self) -> None:
        """Close peer sockets first, so that the others elect at once, then the rest."""

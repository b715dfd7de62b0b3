"""What both implementations of the transport share: bounds of lanes, timings, back-off, incarnations.

Rules of this file: plain values and arithmetic; no socket, no loop, no clock. So the guarantees of the two
implementations cannot diverge.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import NamedTuple

from raft.core.messages import Message, MessageType
from raft.transport.transport_protocol import (
    ChangeReply,
    ChangeRequest,
    ForwardedBatch,
    Handshake,
    HandshakeReply,
    LeaderReply,
    LeaderRequest,
    Liveness,
    PeerMessage,
)

HANDSHAKE_FORMAT_VERSION = 1
"""Version of the peer protocol; the receiver refuses any other."""


class LaneBounds(NamedTuple):
    """How much may wait in one lane of one link before further messages are dropped."""

    messages_max: int
    bytes_max: int


URGENT_BOUNDS = LaneBounds(4096, 4 << 20)
"""Heartbeats, votes, answers and read rounds are tens of bytes each, and several iterations of a busy loop
produce hundreds; 4096 is seconds of them, so a full lane means a peer that does not read."""

BULK_BOUNDS = LaneBounds(1024, 64 << 20)
"""The core already limits appends in flight (count and bytes per follower); this lane holds twice those and
the forwarded batches, and caps the memory that one dead peer can pin."""

FRAME_BYTES_MAX = 1 << 20
"""All messages queued in one iteration leave as one gRPC message up to about this size: large enough to pay
the per-message cost once, small enough that a heartbeat waits behind one such frame only."""

MESSAGE_BYTES_MAX = 32 << 20
"""Largest single message a peer accepts. A client request is limited to 1.5 MiB by default and a
batch to little more; a message beyond this is dropped at the sender, not left to kill the stream."""

HANDSHAKE_TIMEOUT_S = 2.0
"""A dialled connection without an answer to the handshake by then is closed and dialled anew."""

PROBE_TIMEOUT_S = 0.5
"""Silence for this long makes a probe UNREACHABLE. Far above a round trip and an iteration of a busy loop,
below the default election timeout, which decides in that case anyway."""

SILENCE_TIMEOUT_S = 4.0
"""A stream on which nothing at all comes back for about this long (a transport-level ping
included) is ended, so that after a partition a fresh connection is dialled instead of waiting for
the kernel's retransmission timer, which by then backs off by many seconds."""

BACKOFF_FIRST_S = 0.02
"""First wait before dialling again: a restarted process is reconnected within a moment."""

BACKOFF_MAX_S = 1.0
"""Longest wait: a returning peer that cannot dial us is reconnected within about an election timeout."""

ROUND_TRIP_BOUNDS_S = tuple(0.0001 * 2**step for step in range(16))
"""Upper ends of the round-trip buckets: etcd's, so that dashboards made for it fit."""

ROUND_TRIP_STALE_S = 2.0
"""A heartbeat unanswered for this long no longer measures a round trip; a later one does."""


def is_bulk(message: PeerMessage) -> bool:
    """Whether a message belongs in the bulk lane.

    All appends do, empty ones too: an empty append that passed one with entries would be refused for a gap
    that is only in flight.
    """
    if isinstance(message, Message):
        return message.type is MessageType.APPEND
    return isinstance(message, (ForwardedBatch, ChangeRequest, ChangeReply))


def message_bytes(message: PeerMessage) -> int:
    """Approximate encoded size in bytes: payload plus a flat cost for the rest."""
    if isinstance(message, Message):
        nbytes = 64
        for entry in message.entries:
            nbytes += len(entry.data) + 24
        return nbytes
    if isinstance(message, (ForwardedBatch, LeaderRequest, LeaderReply)):
        return 64 + len(message.data)
    if isinstance(message, ChangeRequest):
        return 64 + 24 + len(message.data)
    return 64


class Backoff:
    """Waits between attempts to dial one peer: doubling, jittered, reset by a success or when it dials us."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._next_s = BACKOFF_FIRST_S
        """Upper end of the next wait. Invariant: BACKOFF_FIRST_S <= _next_s <= BACKOFF_MAX_S."""

    def reset(self) -> None:
        self._next_s = BACKOFF_FIRST_S

    def next_s(self) -> float:
        """Return the next wait in seconds, between half and all of the current step."""
        wait_s = self._next_s * self._rng.uniform(0.5, 1.0)
        self._next_s = min(self._next_s * 2, BACKOFF_MAX_S)
        return wait_s


class Incarnations:
    """The incarnations of each peer: of the latest handshakes, and of the stream that ended last."""

    def __init__(self) -> None:
        self._latest: dict[int, int] = {}
        """Incarnation of each member's latest handshake."""
        self._before: dict[int, int] = {}
        """The different incarnation of an earlier handshake, if any."""
        self._ended: dict[int, int] = {}
        """Incarnation at the far end of the stream that ended last, which a probe asks about."""

    def seen(self, member_id: int, incarnation: int) -> None:
        latest = self._latest.get(member_id, incarnation)
        if latest != incarnation:
            self._before[member_id] = latest
        self._latest[member_id] = incarnation

    def ended(self, member_id: int, incarnation: int) -> None:
        self._ended[member_id] = incarnation

    def forget(self, member_id: int) -> None:
        self._latest.pop(member_id, None)
        self._before.pop(member_id, None)
        self._ended.pop(member_id, None)

    def alive_as(self, member_id: int) -> frozenset[int]:
        """The incarnations that a probe begun now takes for ALIVE; empty for a member never met.

        It is the incarnation whose stream ended last. If that one also sent the latest handshake, then the
        one before it counts too: if it still answers, the latest handshake was a late one, and no process
        died.
        """
        latest = self._latest.get(member_id)
        ended = self._ended.get(member_id, latest)
        known = {ended, self._before.get(member_id) if ended == latest else None}
        return frozenset(incarnation for incarnation in known if incarnation is not None)


def judge_incarnation(alive_as: frozenset[int], found: int) -> Liveness:
    """ALIVE for an incarnation in `alive_as`, or if that is empty; any other means that those are dead."""
    return Liveness.ALIVE if not alive_as or found in alive_as else Liveness.DEAD


def judge_answer(own: Handshake, member_id: int, answer: HandshakeReply) -> HandshakeReply:
    """The dialler's check of an answer: one of the wrong member or cluster becomes a refusal."""
    found = answer.handshake
    refusal = ""
    if answer.refusal:
        return answer
    if found.format_version != own.format_version:
        refusal = f"speaks peer format {found.format_version}, this member {own.format_version}"
    elif found.cluster_id != own.cluster_id:
        refusal = f"belongs to cluster {found.cluster_id:x}, not {own.cluster_id:x}"
    elif found.member_id != member_id:
        refusal = f"is member {found.member_id:x}, not {member_id:x}"
    return replace(answer, refusal=refusal) if refusal else answer

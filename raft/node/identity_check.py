"""Replica identity check: which members may connect here, and whether our own replica may vote at all.

* Every handshake is checked: format, cluster, no removed member, and the disk id first seen of the member.
  That id is recorded durably before any Raft message of the member reaches the core, so a member that comes
  back with another disk, and so without its votes and acknowledgements, is refused.
* Our own disk may be the second one of this member. Until that is excluded it is not vote-eligible: it takes
  no part until n - quorum + 1 others, at most all of them, hold durably that it is our disk, which they
  refuse if they know an earlier one. Two sets of so many others share a member, so a second disk meets at
  least one that holds the first, also after another member is lost.

A disk whose log tail was truncated may have lost a vote or an acknowledgement: see `torn_tail_guard`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raft.storage.storage_protocol import LogWriter, Recovered
from raft.transport.transport_protocol import Handshake, HandshakeReply

logger = logging.getLogger(__name__)

INCARNATIONS_KNOWN_MAX = 4
"""Incarnations of one member that are remembered: the living one and those that late handshakes may still
name. A late handshake of a forgotten one costs an election at most."""


class PeerIncarnations:
    """The incarnations of every other member, by accepted handshakes."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, ...]] = {}
        """Latest handshake first; each once, at most INCARNATIONS_KNOWN_MAX."""

    def latest(self, member_id: int) -> int | None:
        """That of the member's latest handshake, None before its first."""
        known = self._known.get(member_id)
        return known[0] if known else None

    def seen(self, member_id: int, incarnation: int) -> tuple[int, ...]:
        """Note an accepted handshake. Returns what was known before."""
        known = self._known.get(member_id, ())
        earlier = tuple(other for other in known if other != incarnation)
        self._known[member_id] = (incarnation, *earlier)[:INCARNATIONS_KNOWN_MAX]
        return known


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityEvents:
    """What the check needs to know, and where it reports."""

    accepts: Callable[[Handshake], bool]
    """Whether a member of the cluster may connect: not once it was removed."""
    removed: Callable[[int], None]
    """A member answers that this one was removed."""
    recorded: Callable[[int], None]
    """The disk id of a peer has become durable."""
    restarted: Callable[[int, int, bool], None]
    """(member, incarnation, known): the member's latest handshake has another incarnation than the one
    before. A known one was seen earlier: one of the two handshakes was late, and shows nothing new."""


class IdentityCheck:
    """Checks handshakes, and holds the peers' disk ids."""

    def __init__(
        self,
        handshake: Handshake,
        recovered: Recovered,
        voters: Sequence[int],
        log: LogWriter,
        incarnations: PeerIncarnations,
        events: IdentityEvents,
    ) -> None:
        """`voters`: of the cluster as this member found it; they decide when it becomes vote-eligible."""
        self.handshake = handshake
        """Our own."""
        self._log = log
        self._incarnations = incarnations
        self._events = events
        self._disks = dict(recovered.peer_disks)
        """Member to the disk id first seen of it, durable or being made so."""
        self._recording: dict[int, None] = {}
        """Members whose disk id is not durable yet."""
        self._witnesses: dict[int, None] = {}
        """Members that hold durably that this is our disk. Counts only while not vote-eligible."""
        self._others = tuple(voter for voter in voters if voter != handshake.member_id)
        """The possible witnesses. Constant while not vote-eligible, as nothing is applied before."""
        quorum = len(voters) // 2 + 1
        self._witnesses_needed = min(len(voters) - quorum + 1, len(self._others))
        self._tail_truncated = recovered.tail_truncated
        self.vote_eligible = recovered.vote_eligible
        """Whether this replica may vote and acknowledge. Never becomes False again."""
        if not self.vote_eligible and handshake.member_id in voters and not self._others:
            self._become_vote_eligible()

    def ready(self, member_id: int) -> bool:
        """Whether messages of this member may reach the core."""
        return member_id in self._disks and member_id not in self._recording

    def is_current(self, member_id: int, incarnation: int) -> bool:
        """Whether this is the latest incarnation of a member that is ready."""
        return self.ready(member_id) and self._incarnations.latest(member_id) == incarnation

    def recording(self, member_id: int) -> bool:
        return member_id in self._recording

    def on_handshake(self, handshake: Handshake) -> HandshakeReply:
        """Check a peer that dialled us."""
        earlier = self._disks.get(handshake.member_id, handshake.disk_id) != handshake.disk_id
        refusal = self._refusal_of(handshake)
        removed = False
        if not refusal:
            removed = not self._events.accepts(handshake)
            if removed:
                refusal = f"member {handshake.member_id:x} was removed from the cluster"
            else:
                self._accept(handshake)
        return HandshakeReply(
            handshake=self.handshake, earlier_disk_known=earlier, refusal=refusal, removed=removed
        )

    def on_answer(self, member_id: int, answer: HandshakeReply) -> None:
        """Check the answer of a peer that we dialled."""
        if answer.refusal:
            logger.warning("member %x refuses this member: %s", member_id, answer.refusal)
        refusal = self._refusal_of(answer.handshake)
        if not refusal and answer.handshake.member_id != member_id:
            refusal = f"member {answer.handshake.member_id:x} answers where member {member_id:x} should"
        if not refusal and answer.removed:
            self._events.removed(member_id)
            return
        if not refusal and not self._events.accepts(answer.handshake):
            refusal = "it was removed from the cluster"
        if refusal:
            logger.warning("the answer of member %x is not accepted: %s", member_id, refusal)
            return
        self._accept(answer.handshake)
        if answer.earlier_disk_known:
            logger.error("member %x knows an earlier disk of this member: this one may not vote", member_id)

    def disk_of(self, member_id: int) -> int | None:
        """The member's disk id as recorded here, None while that is not durable."""
        return self._disks[member_id] if self.ready(member_id) else None

    def on_recorded(self, member_id: int, disk_id: int) -> None:
        """A peer reports which disk id it has recorded for us."""
        if self.vote_eligible or disk_id != self.handshake.disk_id or member_id not in self._others:
            return
        self._witnesses[member_id] = None
        if len(self._witnesses) >= self._witnesses_needed:
            self._become_vote_eligible()

    def _become_vote_eligible(self) -> None:
        # Queued before any vote or acknowledgement of ours, and the log keeps its order: none outlives the
        # record. The same record confirms a truncated log, so then it waits for that (`TornTailGuard`).
        if not self._tail_truncated:
            self._log.record_vote_eligible()
        self.vote_eligible = True

    def _refusal_of(self, handshake: Handshake) -> str:
        ours = self.handshake
        if handshake.format_version != ours.format_version:
            return f"peer format version {handshake.format_version} is not {ours.format_version}"
        if handshake.cluster_id != ours.cluster_id:
            return f"cluster id mismatch: {handshake.cluster_id:x} is not {ours.cluster_id:x}"
        if handshake.member_id == ours.member_id:
            return f"member {handshake.member_id:x} is this very member"
        if self._disks.get(handshake.member_id, handshake.disk_id) != handshake.disk_id:
            return (
                f"member {handshake.member_id:x} was known with another disk: it must rejoin as a new member"
            )
        return ""

    def _accept(self, handshake: Handshake) -> None:
        member_id, incarnation = handshake.member_id, handshake.incarnation
        known = self._incarnations.seen(member_id, incarnation)
        if known and known[0] != incarnation:
            self._events.restarted(member_id, incarnation, incarnation in known)
        if member_id not in self._disks:
            self._disks[member_id] = handshake.disk_id
            self._recording[member_id] = None

            def done() -> None:
                del self._recording[member_id]
                self._events.recorded(member_id)

            self._log.record_peer_disk(member_id, handshake.disk_id, done)

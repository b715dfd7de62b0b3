"""Who may speak here, and whether this disk may speak at all.

* Every hello is judged: format, cluster, no removed member, and the disk the member was first met with.
  That disk is recorded durably before any Raft message of the member reaches the core, so a member
  that comes back on another disk, having forgotten its promises, is refused.
* A *fresh* disk of our own may be the second one of this member. It takes no part until n - quorum + 1
  others, at most all of them, hold durably that it is our disk, which they refuse if they know an
  earlier one. Two sets of so many others share a member, so a second disk meets somebody who holds
  the first, also after another member is lost.
* A disk whose log tail was *cut* may have lost a promise (`TornTailGuard`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from raft.core.messages import Message, MessageType
from raft.core.ready import AppendWork
from raft.core.types import EntryId
from raft.storage.storage_protocol import LogWriter, Recovered
from raft.transport.transport_protocol import Handshake, HandshakeReply

logger = logging.getLogger(__name__)

HELD_MESSAGES_MAX = 256
"""Messages of one peer kept while its disk is being recorded, a matter of one sync."""

PROCESSES_KNOWN_MAX = 4
"""Processes of one member that are remembered: the living one and what late hellos may still name. A
late hello of one forgotten costs an election at most."""


class IdentityCheck:
    """Judge of hellos, keeper of the peers' disks and processes."""

    def __init__(
        self,
        *,
        handshake: Handshake,
        recovered: Recovered,
        voters: Sequence[int],
        log: LogWriter,
        accepts: Callable[[Handshake], bool],
        recorded: Callable[[int], None],
        new_process: Callable[[int, int, bool], None],
        on_removed: Callable[[int], None],
    ) -> None:
        """`voters`: of the cluster as this member found it; on a fresh disk they decide its admission."""
        self._on_removed = on_removed
        """Called when a member says that this one was removed."""
        self._handshake = handshake
        self._log = log
        self._recorded = recorded
        """Called when a peer's disk has become durable."""
        self._new_process = new_process
        """Called with (member, boot id, is known) when a member is met as another process than just
        before. A known one was met earlier: one of the two hellos between was late, and tells no news."""
        self._accepts = accepts
        """Whether a member of the cluster may speak: not once it was removed."""
        self._disks = dict(recovered.peer_disks)
        """Member to the disk it was first met with, durable or being made so."""
        self._recording: dict[int, None] = {}
        """Members whose disk is not durable yet."""
        self._incarnations: dict[int, tuple[int, ...]] = {}
        """Member to the processes it was met as, by accepted hellos, the latest hello first; each once,
        at most PROCESSES_KNOWN_MAX."""
        self._witnesses: dict[int, None] = {}
        """Members who hold durably that this is our disk. Counts only while not admitted."""
        self._others = tuple(voter for voter in voters if voter != handshake.member_id)
        """Who may be a witness. Stands still while not admitted, as nothing is applied before."""
        quorum = len(voters) // 2 + 1
        self._witnesses_needed = min(len(voters) - quorum + 1, len(self._others))
        self._tail_truncated = recovered.tail_truncated
        self.vote_eligible = recovered.vote_eligible
        """Whether this disk may vote and acknowledge. Never becomes False again."""
        if not self.vote_eligible and handshake.member_id in voters and not self._others:
            self._become_vote_eligible()

    def incarnation(self, member_id: int) -> int | None:
        """The process of the member's latest hello, None before its first."""
        known = self._incarnations.get(member_id)
        return known[0] if known else None

    def ready(self, member_id: int) -> bool:
        """Whether messages of this member may reach the core."""
        return member_id in self._disks and member_id not in self._recording

    def recording(self, member_id: int) -> bool:
        return member_id in self._recording

    def on_handshake(self, handshake: Handshake) -> HandshakeReply:
        """Judge a peer that dialled us."""
        earlier = self._disks.get(handshake.member_id, handshake.disk_id) != handshake.disk_id
        refusal = self._judge(handshake)
        removed = False
        if not refusal:
            removed = not self._accepts(handshake)
            if removed:
                refusal = f"member {handshake.member_id:x} was removed from the cluster"
            else:
                self._accept(handshake)
        return HandshakeReply(
            handshake=self._handshake, earlier_disk_known=earlier, refusal=refusal, removed=removed
        )

    def on_answer(self, member_id: int, answer: HandshakeReply) -> None:
        """Take the answer of a peer that we dialled."""
        if answer.refusal:
            logger.warning("member %x refuses this member: %s", member_id, answer.refusal)
        refusal = self._judge(answer.handshake)
        if not refusal and answer.handshake.member_id != member_id:
            refusal = f"member {answer.handshake.member_id:x} answers where member {member_id:x} should"
        if not refusal and answer.removed:
            self._on_removed(member_id)
            return
        if not refusal and not self._accepts(answer.handshake):
            refusal = "it was removed from the cluster"
        if refusal:
            logger.warning("the answer of member %x is not accepted: %s", member_id, refusal)
            return
        self._accept(answer.handshake)
        if answer.earlier_disk_known:
            logger.error("member %x knows an earlier disk of this member: this one may not vote", member_id)

    def disk_of(self, member_id: int) -> int | None:
        """The member's disk as it is recorded here, None while that is not durable."""
        return self._disks[member_id] if self.ready(member_id) else None

    def on_recorded(self, member_id: int, disk_id: int) -> None:
        """A peer says which disk it has recorded for us."""
        if self.vote_eligible or disk_id != self._handshake.disk_id or member_id not in self._others:
            return
        self._witnesses[member_id] = None
        if len(self._witnesses) >= self._witnesses_needed:
            self._become_vote_eligible()

    def _become_vote_eligible(self) -> None:
        # Queued before any promise of ours, and the log keeps its order: no promise outlives the note.
        # The same note says that a cut is healed, so with a cut it waits for that (`TornTailGuard`).
        if not self._tail_truncated:
            self._log.record_vote_eligible()
        self.vote_eligible = True

    def _judge(self, handshake: Handshake) -> str:
        ours = self._handshake
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
        member_id = handshake.member_id
        known = self._incarnations.get(member_id, ())
        earlier = tuple(incarnation for incarnation in known if incarnation != handshake.incarnation)
        self._incarnations[member_id] = (handshake.incarnation, *earlier)[:PROCESSES_KNOWN_MAX]
        if known and known[0] != handshake.incarnation:
            self._new_process(member_id, handshake.incarnation, handshake.incarnation in known)
        if member_id not in self._disks:
            self._disks[member_id] = handshake.disk_id
            self._recording[member_id] = None

            def done() -> None:
                del self._recording[member_id]
                self._recorded(member_id)

            self._log.record_peer_disk(member_id, handshake.disk_id, done)


class TornTailGuard:
    """Keeps a member whose torn tail was cut from harm, until a leader has confirmed its log.

    What was cut may have been promised: the log may lack an entry, or the hard state a vote, that a
    quorum counted on. So this member acknowledges nothing and helps nobody to win an election, while
    it does take entries and refuse them; the first entries of a present leader that reach past the
    cut, or the leader's own first one, prove that nothing committed is missing any more.

    If a quorum is in that state no leader can arise that way. Then evidence replaces the leader: once
    *every* other voter has shown its last entry, by asking for a vote from its present process, a
    candidate whose log is at least as good as all of them lacks nothing that any of them holds, and
    may have this member's help, or be this member.
    """

    def __init__(self, recovered: Recovered, voters: Iterable[int], released: Callable[[], None]) -> None:
        self.active = recovered.tail_truncated
        """Never becomes True again."""
        newest = recovered.entries[-1] if recovered.entries else recovered.snapshot
        self._last = EntryId(newest.term, newest.index)
        """Our last entry after the cut."""
        self._id = recovered.identity.member_id
        self.voters_changed(voters)
        self._released = released
        """Notes durably that the log is confirmed."""
        self._claims: dict[int, tuple[int, EntryId]] = {}
        """Voter to (its process, its last entry), as it said when it asked for a vote."""

    def may_step(self, member_id: int, incarnation: int, message: Message) -> bool:
        """Whether the core may see this message. Only called while active."""
        kind = message.type
        if kind is MessageType.VOTE or kind is MessageType.PRE_VOTE:
            claim = EntryId(message.log_term, message.index)
            self._claims[member_id] = (incarnation, claim)
            return self._best(claim)
        if kind is MessageType.VOTE_RESPONSE or kind is MessageType.PRE_VOTE_RESPONSE:
            return self._best(self._last)
        return kind is not MessageType.TIMEOUT_NOW

    def voters_changed(self, voters: Iterable[int]) -> None:
        """A membership change was applied."""
        self._others = tuple(voter for voter in voters if voter != self._id)

    def process_changed(self, member_id: int, incarnation: int) -> None:
        """A voter runs as another process, whose log may be shorter: its claim counts no more."""
        claim = self._claims.get(member_id)
        if claim is not None and claim[0] != incarnation:
            del self._claims[member_id]

    def on_durable(self, work: AppendWork) -> None:
        """Look for the confirmation in append work that is durable now."""
        for response in work.responses:
            if response.type is not MessageType.APPEND_RESPONSE or response.reject:
                continue
            own_entry = work.entries and self._last.term < work.entries[-1].term == response.term
            if own_entry or response.index > self._last.index:
                self.release()

    def release(self) -> None:
        if self.active:
            logger.info("the log is confirmed past its cut tail")
            self.active = False
            self._claims.clear()
            self._released()

    @staticmethod
    def outgoing(message: Message) -> Message | None:
        """What may leave of a message while active: refusals yes, acknowledgements no."""
        if message.type is MessageType.HEARTBEAT_RESPONSE:
            # It keeps a paused leader sending, and confirms no read round.
            return replace(message, context=0)
        if message.type is MessageType.APPEND_RESPONSE and not message.reject:
            return None
        return message

    def _best(self, claim: EntryId) -> bool:
        claims = self._claims
        return (
            claim >= self._last
            and all(other in claims for other in self._others)
            and all(claim >= claims[other][1] for other in self._others)
        )

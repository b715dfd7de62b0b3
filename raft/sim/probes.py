"""Named rare situations. A campaign that never reached one of them has not tested it.

They are detected in a message just before it is stepped (`watch_message`), in a member's state just after a
change (`watch_change`), and in the models of the cluster (`hit`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raft.core import ConfState, DropReason, Message, MessageType, ProgressState, Role
from raft.core.election import TRANSFER

if TYPE_CHECKING:
    from collections.abc import Callable

    from raft.core.state import State
    from raft.sim.checkers import Seen
    from raft.sim.member import Member

_T = MessageType

PROBES = (
    # elections
    "a candidate loses its election",
    "a candidate hears a leader of its term",
    "a candidate campaigns again",
    "a leader begins with entries that are not committed",
    "a leader begins with its disk behind its log",
    "a leader is elected in a joint configuration",
    "a lone voter elects itself",
    "a pre-candidate loses its pre-vote",
    "a pre-vote is requested while a leader is known",
    "a pre-vote is refused for its log",
    "a term passes without a leader",
    "a vote response of an earlier term arrives",
    "a vote response belongs to another election",
    "a vote is requested again by its candidate",
    "a vote is requested after another candidate got it",
    "a vote is requested while a leader is known",
    "a vote is refused for its log",
    "a vote response raises the commit index",
    "two members campaign in one term",
    # leadership
    "a leader learns of a later term",
    "a leader removes itself",
    "a leader steps down by itself",
    "a transfer sends TIMEOUT_NOW",
    "a transfer goes to a member that lags",
    "a transfer is abandoned",
    "a transfer overrides withheld votes",
    "a transfer succeeds",
    "two members believe they lead",
    # replication
    "a commit covers entries of an earlier term",
    "a commit is known before the entry is durable here",
    "a commit broadcast travels alone",
    "a follower is sent nothing until a snapshot arrives",
    "a restarted follower must be probed again",
    "a probe is rejected",
    "a rejection is of an earlier append",
    "a rejection names a term",
    "a suffix is overwritten",
    "the in-flight limit in bytes is reached",
    "the in-flight limit in messages is reached",
    "an acknowledgement comes from a non-member",
    "an acknowledgement goes beyond the leader's log",
    "an acknowledgement of an earlier term arrives",
    "an append arrives below the commit index",
    "an append carries several entries",
    "an append ends before the log does",
    "an append leaves a gap",
    "an append of an earlier term arrives",
    "an append repeats what is held",
    "many entries are overwritten at once",
    "many entries commit at once",
    # reads
    "a follower's read is confirmed",
    "a follower's read is refused",
    "a read is dropped",
    "a read waits for an own-term commit",
    "a read waits for applying",
    "a step-down drops reads",
    "an answer confirms an older read round",
    "several read rounds are open",
    "several reads share a round",
    # membership
    "a change commits that another leader proposed",
    "a cluster grows to five voters",
    "a cluster shrinks to one voter",
    "a joint configuration is entered",
    "a joint configuration is left",
    "a joint configuration is left by itself",
    "a leader becomes a learner",
    "a learner is promoted",
    "a removed member is added again",
    "a removed member requests a vote",
    "a membership change is refused",
    "a voter becomes a learner",
    # snapshots and compaction
    "a log is compacted",
    "a snapshot arrives",
    "a snapshot arrives below the commit index",
    "a snapshot brings another configuration",
    "a snapshot brings a joint configuration",
    "a snapshot fails",
    "a snapshot is acknowledged",
    "a snapshot is installed",
    "a snapshot is lost",
    "a snapshot meets a log that agrees with it",
    "a snapshot supersedes applying",
    "a snapshot replaces one that is not yet durable",
    # disks and processes
    "a completion comes after its term",
    "a completion comes after its entries were overwritten",
    "a crash amid applying",
    "a crash keeps a part of a write",
    "a crash keeps what was never reported",
    "a crash loses a snapshot",
    "a crash loses a vote",
    "a crash loses entries",
    "a leader crashes",
    "a member crashes twice in a second",
    "a pause ends with queued messages",
    "a process starts with entries that are not applied",
    "a process starts with nothing but its backend",
    "all voters are down",
    "one sync covers several works",
    # network
    "a message comes from an earlier incarnation",
    "a message is repeated",
    "a queue is full",
    "a stream breaks with messages on their way",
    # clients
    "a write is known lost",
    *(
        f"a write is refused: {reason.value}"
        for reason in (DropReason.TRANSFERRING, DropReason.UNCOMMITTED_FULL, DropReason.REMOVED)
    ),
    "a write's outcome is unknown",
    "a write of unknown outcome is committed",
)

UNREACHED = {
    "an acknowledgement goes beyond the leader's log": (
        "who answers in the leader's term holds of it only what that leader sent, and knows nothing "
        "committed that the leader lacks: reached, it means that a disk forgot or a commit was lost"
    ),
    f"a write is refused: {DropReason.REMOVED.value}": (
        "a leader steps down in the call that applies its removal; only `step_down_on_removal=False`, "
        "which is for transcripts of another implementation, lets it go on"
    ),
}
"""Probes that a campaign cannot reach, each with the reason. One that is reached belies its reason."""

MANY = 5
"""Entries that count as many: more than a change of leader usually leaves behind."""


class Probes:
    """How often each was reached."""

    __slots__ = ("_left", "_successor", "counts")

    def __init__(self) -> None:
        self.counts: dict[str, int] = dict.fromkeys(PROBES, 0)
        self._successor = (0, 0)
        """Member that last received TIMEOUT_NOW, and the term of that message."""
        self._left: set[int] = set()
        """Members once removed from some leader's configuration."""

    def hit(self, name: str, *, when: bool = True) -> None:
        if when:
            self.counts[name] += 1

    # ------------------------------------------------------------------ messages

    def watch_message(self, member: Member, m: Message) -> None:
        """Count the situations of a message just before it is stepped."""
        s = member.core._state
        watch = _WATCH.get(m.type)
        if watch is not None:
            watch(self, s, m)

    def _append(self, s: State, m: Message) -> None:
        if m.term < s.term:
            self.hit("an append of an earlier term arrives")
            return
        log = s.log
        last = m.index + len(m.entries)
        if m.index < log.committed:
            self.counts["an append arrives below the commit index"] += 1
        if m.context != 0:
            self.counts["a commit broadcast travels alone"] += 1
        if m.index > log.last_index:
            self.counts["an append leaves a gap"] += 1
        if len(m.entries) > 1:
            self.counts["an append carries several entries"] += 1
        if m.entries and last <= log.last_index and log.matches(last, m.entries[-1].term):
            self.hit("an append repeats what is held")
            if last < log.last_index:
                self.counts["an append ends before the log does"] += 1
        if s.role is not Role.FOLLOWER and m.term == s.term:
            self.hit("a candidate hears a leader of its term")

    def _append_response(self, s: State, m: Message) -> None:
        if m.term < s.term:
            self.hit("an acknowledgement of an earlier term arrives")
        if s.role is not Role.LEADER:
            return
        if m.term > s.term:
            self.counts["a leader learns of a later term"] += 1
        progress = s.tracker.progress.get(m.from_)
        if progress is None:
            self.hit("an acknowledgement comes from a non-member")
        elif m.term < s.term:
            return
        elif m.reject:
            self.hit("a probe is rejected")
            if m.log_term != 0:
                self.counts["a rejection names a term"] += 1
            if m.index <= progress.match:
                self.counts["a rejection is of an earlier append"] += 1
        else:
            if m.index > s.log.last_index:
                self.counts["an acknowledgement goes beyond the leader's log"] += 1
            waits = progress.state is ProgressState.SNAPSHOT and m.index >= progress.pending_snapshot
            if waits:
                self.counts["a snapshot is acknowledged"] += 1

    def _vote(self, s: State, m: Message) -> None:
        if s.leader:
            self.hit("a vote is requested while a leader is known")
            self.hit("a transfer overrides withheld votes", when=m.context == TRANSFER)
        if m.term < s.term:
            return
        self.hit("a vote is refused for its log", when=not s.log.is_current(m.index, m.log_term))
        if m.term == s.term and s.vote:
            again = s.vote == m.from_
            self.hit("a vote is requested again by its candidate", when=again)
            self.hit("a vote is requested after another candidate got it", when=not again)
        left = m.from_ not in s.tracker.progress and m.from_ in self._left
        self.hit("a removed member requests a vote", when=left)

    def _pre_vote(self, s: State, m: Message) -> None:
        self.hit("a pre-vote is requested while a leader is known", when=s.leader != 0)
        self.hit("a pre-vote is refused for its log", when=not s.log.is_current(m.index, m.log_term))

    def _vote_response(self, s: State, m: Message) -> None:
        if m.term < s.term:
            self.hit("a vote response of an earlier term arrives")
            self.hit("a vote response belongs to another election", when=s.role is Role.CANDIDATE)
        elif m.log_term and m.commit > s.log.committed and s.log.matches(m.commit, m.log_term):
            self.hit("a vote response raises the commit index")

    def _heartbeat_response(self, s: State, m: Message) -> None:
        old = 0 < m.context < s.reads.last_id and bool(s.reads.rounds) and m.term == s.term
        if old:
            self.counts["an answer confirms an older read round"] += 1

    def _snapshot(self, s: State, m: Message) -> None:
        snapshot = m.snapshot
        if snapshot is None or m.term < s.term:
            return
        self.hit("a snapshot arrives")
        self.hit("a snapshot arrives below the commit index", when=snapshot.index <= s.log.committed)
        self.hit("a snapshot brings another configuration", when=snapshot.conf != s.tracker.conf)
        self.hit("a snapshot brings a joint configuration", when=bool(snapshot.conf.voters_outgoing))
        if snapshot.index > s.log.committed:
            self.hit("a snapshot replaces one that is not yet durable", when=s.log.snapshot is not None)
            agrees = s.log.matches(snapshot.index, snapshot.term)
            self.hit("a snapshot meets a log that agrees with it", when=agrees)

    def _timeout_now(self, s: State, m: Message) -> None:
        self.hit("a transfer sends TIMEOUT_NOW")
        self._successor = (s.id, m.term)

    def _read_index_response(self, s: State, m: Message) -> None:
        self.hit("a follower's read is refused" if m.reject else "a follower's read is confirmed")

    # ------------------------------------------------------------------ states

    def watch_change(self, s: State, seen: Seen) -> None:
        """Count the situations of a member that changed; `seen` is its last observation."""
        log = s.log
        if s.role is not seen.role:
            self._watch_role(s, seen)
        if log.committed > seen.commit:
            if log.committed > log.stable:
                self.counts["a commit is known before the entry is durable here"] += 1
            if log.committed - seen.commit > MANY:
                self.counts["many entries commit at once"] += 1
            if s.role is Role.LEADER and seen.commit >= log.base_index:
                old = log.term_at(seen.commit + 1)
                if old is not None and old < s.term:
                    self.counts["a commit covers entries of an earlier term"] += 1

    def _watch_role(self, s: State, seen: Seen) -> None:
        same = s.term == seen.term
        if seen.role is Role.PRE_CANDIDATE and s.role is Role.FOLLOWER:
            self.hit("a pre-candidate loses its pre-vote", when=same and not s.leader)
        elif seen.role is Role.CANDIDATE and s.role is not Role.LEADER:
            self.hit("a candidate loses its election", when=s.role is Role.FOLLOWER and same and not s.leader)
            self.hit("a candidate campaigns again", when=s.role is not Role.FOLLOWER)
        elif s.role is Role.LEADER:
            log, conf = s.log, s.tracker.conf
            self.hit("a transfer succeeds", when=self._successor == (s.id, s.term - 1))
            self.hit("a lone voter elects itself", when=s.tracker.voters() == (s.id,))
            self.hit(
                "a leader begins with entries that are not committed", when=log.committed + 1 < log.last_index
            )
            self.hit("a leader begins with its disk behind its log", when=log.stable + 1 < log.last_index)
            self.hit("a leader is elected in a joint configuration", when=bool(conf.voters_outgoing))

    def watch_leader(self, s: State) -> None:
        reads = s.reads
        if len(reads.rounds) > 1:
            self.counts["several read rounds are open"] += 1
        if any(len(opened.reads) > 1 for opened in reads.rounds):
            self.counts["several reads share a round"] += 1
        if bool(reads.waiting) and not s.has_own_commit():
            self.counts["a read waits for an own-term commit"] += 1
        config = s.config
        for progress in s.tracker.progress.values():
            waits = progress.state is ProgressState.SNAPSHOT
            if waits:
                self.counts["a follower is sent nothing until a snapshot arrives"] += 1
            inflights = progress.inflights
            if len(inflights) >= config.inflight_messages_max:
                self.counts["the in-flight limit in messages is reached"] += 1
            if inflights.nbytes >= config.inflight_bytes_max:
                self.counts["the in-flight limit in bytes is reached"] += 1
        if s.transferee in s.tracker.progress:
            lags = s.tracker.progress[s.transferee].match < s.log.last_index
            if lags:
                self.counts["a transfer goes to a member that lags"] += 1

    def watch_conf(self, before: ConfState, after: ConfState, member_id: int, *, leads: bool) -> None:
        was, now = _members(before), _members(after)
        if leads:
            self._left.update(was - now)
            self.hit("a leader becomes a learner", when=member_id in after.learners)
        self.hit("a removed member is added again", when=bool((now - was) & self._left))
        self.hit("a cluster grows to five voters", when=len(before.voters) < 5 <= len(after.voters))
        self.hit("a cluster shrinks to one voter", when=len(after.voters) == 1 < len(before.voters))
        demoted = set(before.voters) & {*after.learners, *after.learners_next}
        self.hit("a voter becomes a learner", when=bool(demoted))


def _members(conf: ConfState) -> set[int]:
    return {*conf.voters, *conf.learners, *conf.voters_outgoing, *conf.learners_next}


_WATCH: dict[MessageType, Callable[[Probes, State, Message], None]] = {
    _T.APPEND: Probes._append,
    _T.APPEND_RESPONSE: Probes._append_response,
    _T.VOTE: Probes._vote,
    _T.VOTE_RESPONSE: Probes._vote_response,
    _T.PRE_VOTE: Probes._pre_vote,
    _T.HEARTBEAT_RESPONSE: Probes._heartbeat_response,
    _T.SNAPSHOT: Probes._snapshot,
    _T.TIMEOUT_NOW: Probes._timeout_now,
    _T.READ_INDEX_RESPONSE: Probes._read_index_response,
}

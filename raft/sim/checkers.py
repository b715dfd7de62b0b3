"""Checks of invariants, after each event, on the state that the event changed.

The judge knows more than any member: every disk, every entry ever made, the one sequence of committed
entries with the configuration and the state after each. It compares each member's state with that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

from raft.core import (
    EMPTY_HARD_STATE,
    AppendWork,
    ConfChange,
    ConfChangeRefused,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    ReadState,
    Role,
)
from raft.core.confchange import apply_change
from raft.core.invariants import check_state
from raft.core.quorum import VoteResult, joint_vote

if TYPE_CHECKING:
    from raft.sim.member import Member

FULL_CHECK_EVERY = 64
"""Changes between two full checks of a member's state; each costs as much as many events."""

_T = MessageType
_FROM_A_LEADER = frozenset((_T.APPEND, _T.HEARTBEAT, _T.SNAPSHOT))
_RAISES_TERM = frozenset(
    (_T.APPEND, _T.APPEND_RESPONSE, _T.HEARTBEAT, _T.HEARTBEAT_RESPONSE, _T.VOTE_RESPONSE)
)
_FORBIDDEN_ROLES = frozenset(
    (
        (Role.LEADER, Role.CANDIDATE),
        (Role.LEADER, Role.PRE_CANDIDATE),
        (Role.FOLLOWER, Role.LEADER),
        (Role.PRE_CANDIDATE, Role.LEADER),
    )
)
"""Within a term, however many inputs lie between (a pre-vote's candidate campaigns in the next term)."""


class Violation(AssertionError):
    """An invariant is violated. `invariant` is its name, the rest are values."""

    def __init__(self, invariant: str, *values: object) -> None:
        self.invariant = invariant
        super().__init__(f"{invariant}: {values}")


class Seen:
    """What the judge last saw of one member."""

    __slots__ = ("applied", "base", "commit", "fast", "leader", "role", "submitted", "term", "vote")

    def __init__(self) -> None:
        self.restart(EMPTY_HARD_STATE)

    def restart(self, durable: HardState) -> None:
        """The member restarted from what is durable: nothing else was acknowledged."""
        self.term, self.vote = durable.term, durable.vote
        self.commit = self.applied = self.base = 0
        self.role, self.leader = Role.FOLLOWER, 0
        self.submitted = 0
        """As leader: its last entry when its work was last taken."""
        self.fast: tuple[int, ...] = ()


class Judge:
    """All votes, entries and commits seen so far; each event is checked against them."""

    def __init__(self, conf: ConfState, members: dict[int, Member]) -> None:
        self.members = members
        self.leaders: dict[int, int] = {}
        """Term -> the only member that ever led it."""
        self.candidates: dict[int, int] = {}
        """Term -> the first candidate in it."""
        self.votes: dict[tuple[int, int], int] = {}
        """(member, term) -> the member it voted for, durably."""
        self.entries: dict[tuple[int, int], tuple[int, bytes]] = {}
        """(term, index) -> (term of the entry before, data): one entry for ever, with one past."""
        self.terms: list[int] = [0]
        """By index: term of the committed entry."""
        self.known_in: list[int] = [0]
        """By index: term of the member that first knew it committed."""
        self.digests: list[int] = [0]
        """By index: digest of the state after it."""
        self.confs: list[ConfState] = [conf]
        """By index: active configuration after it."""
        self.written: dict[bytes, int] = {}
        """Client data -> index it is committed at."""
        self.refuted: set[bytes] = set()
        """Client data certainly not, and never to be, committed."""
        self.unknown: set[bytes] = set()
        """Client data whose client got "outcome unknown"."""
        self.proposed: set[bytes] = set()
        self.checks = 0

    @property
    def committed(self) -> int:
        """The highest index known committed by anyone, ever."""
        return len(self.terms) - 1

    # ------------------------------------------------------------------ after each event

    def observe(self, member: Member) -> None:
        s = member.core._state
        log = s.log
        seen = member.seen
        fast = (s.term, s.vote, s.role, s.leader, log.committed, log.applied, log.base_index)
        if fast == seen.fast:
            return
        seen.fast = fast
        member.cluster.probes.watch_change(s, seen)
        if s.term != seen.term or s.vote != seen.vote or s.role is not seen.role or s.leader != seen.leader:
            self._observe_term(member)
        if log.committed < seen.commit or log.applied < seen.applied or log.base_index < seen.base:
            raise Violation("commit, applied and base never decrease", member.id, fast)
        if not log.applied <= log.committed <= log.last_index:
            raise Violation("applied <= committed <= last", member.id, fast, log.last_index)
        if log.committed > seen.commit:
            self._observe_commit(member, seen.commit)
            seen.commit = log.committed
        if log.applied != seen.applied:
            seen.applied = log.applied
            quiescent = log.applied == member.applied and log.snapshot is None
            if quiescent and s.tracker.conf != self.confs[log.applied]:
                raise Violation("the configuration is that of the last applied change", member.id)
            if s.role is Role.LEADER and not s.tracker.is_voter(member.id):
                raise Violation("a removed leader steps down", member.id, s.tracker.conf)
        seen.base = log.base_index
        self.checks += 1
        if self.checks % FULL_CHECK_EVERY == 0:
            check_state(member.core)

    def _observe_term(self, member: Member) -> None:
        s, seen = member.core._state, member.seen
        if s.term < seen.term:
            raise Violation("terms never decrease", member.id, seen.term, s.term)
        if s.term == seen.term:
            if seen.vote and s.vote != seen.vote:
                raise Violation("one vote per term", member.id, s.term, seen.vote, s.vote)
            if (seen.role, s.role) in _FORBIDDEN_ROLES:
                raise Violation("roles change only by the rules", member.id, seen.role, s.role)
        campaigns = s.role in (Role.PRE_CANDIDATE, Role.CANDIDATE) and s.role is not seen.role
        if campaigns and not s.tracker.is_voter(member.id):
            raise Violation("only voters stand for election", member.id, s.tracker.conf)
        if s.role is Role.CANDIDATE and self.candidates.setdefault(s.term, member.id) != member.id:
            member.cluster.probes.hit("two members campaign in one term")
        if s.leader and self.leaders.setdefault(s.term, s.leader) != s.leader:
            raise Violation("one leader per term", s.term, self.leaders[s.term], s.leader)
        if s.role is Role.LEADER and (seen.role is not Role.LEADER or s.term != seen.term):
            self._observe_leader(member)
        seen.term, seen.vote, seen.role, seen.leader = s.term, s.vote, s.role, s.leader

    def _observe_leader(self, member: Member) -> None:
        s = member.core._state
        conf = s.tracker.conf
        votes = {voter: self.votes.get((voter, s.term)) == member.id for voter in s.tracker.voters()}
        if joint_vote(conf.voters, conf.voters_outgoing, votes) is not VoteResult.WON:
            raise Violation("a leader has the votes of a quorum", member.id, s.term, conf, votes)
        index = self.committed
        while index and self.known_in[index] >= s.term:
            index -= 1
        if index > s.log.base_index and not s.log.matches(index, self.terms[index]):
            raise Violation("a leader holds all that was committed before", member.id, s.term, index)
        member.cluster.probes.hit("a term passes without a leader", when=s.term - 1 not in self.leaders)
        member.seen.submitted = 0
        member.led_since = member.ticks
        member.cluster.nemesis.leads(member)

    def _observe_commit(self, member: Member, before: int) -> None:
        s = member.core._state
        log = s.log
        first = max(before, log.base_index) + 1
        if log.base_index > before and (
            log.base_index > self.committed or self.terms[log.base_index] != log.base_term
        ):
            raise Violation("a snapshot holds committed entries", member.id, log.base_index)
        known = self.committed
        for entry in log.between(first, log.committed + 1):
            if entry.index <= known:
                if self.terms[entry.index] != entry.term:
                    raise Violation("committed entries never change", member.id, entry)
            else:
                self._record(member, entry)
        if s.role is Role.LEADER:
            self.check_match(member, member.id)
        if self.committed > known:
            self._check_quorum_log(member)

    def _record(self, member: Member, entry: Entry) -> None:
        """An entry is known to be committed for the first time."""
        term, probes = member.core.term, member.cluster.probes
        if entry.term < self.terms[-1]:
            raise Violation("terms never decrease along the log", entry, self.terms[-1])
        conf = self.confs[-1]
        if entry.kind is not EntryKind.NORMAL:
            probes.hit("a change commits that another leader proposed", when=entry.term != term)
            try:
                conf = apply_change(conf, ConfChange.decode(entry.data))
            except ConfChangeRefused as refusal:
                raise Violation("committed membership changes fit", entry, str(refusal)) from refusal
        elif entry.data:
            if entry.data in self.written:
                raise Violation("a write is committed once", entry, self.written[entry.data])
            if entry.data in self.refuted:
                raise Violation("a write known lost stays lost", entry)
            if entry.data not in self.proposed:
                raise Violation("what is committed was proposed", entry)
            self.written[entry.data] = entry.index
            probes.hit("a write of unknown outcome is committed", when=entry.data in self.unknown)
        self.terms.append(entry.term)
        self.known_in.append(term)
        self.confs.append(conf)
        self.digests.append(crc32(entry.data, self.digests[-1] ^ entry.term))

    def _check_quorum_log(self, member: Member) -> None:
        """The newest commit is on the disks of a quorum, and was counted by the rules."""
        index, term = self.committed, self.terms[-1]
        conf = member.core.conf
        holders = {m: self.members[m].disk.holds(index, term) for m in member.core._state.tracker.voters()}
        if joint_vote(conf.voters, conf.voters_outgoing, holders) is not VoteResult.WON:
            raise Violation("what is committed is durable on a quorum", member.id, index, conf, holders)
        if member.core.role is Role.LEADER and term != member.core.term:
            raise Violation("only entries of the own term are counted", member.id, index, term)

    # ------------------------------------------------------------------ what members do

    def took_work(self, member: Member, work: AppendWork) -> None:
        """A member's work was taken: its new entries, and its responses."""
        s, seen = member.core._state, member.seen
        disk, snapshot = member.disk, work.snapshot
        longer = snapshot is not None and disk.last_index > snapshot.index
        if longer and snapshot is not None and disk.holds(snapshot.index, snapshot.term):
            raise Violation("a snapshot drops no log that agrees with it", member.id, snapshot)
        if snapshot is not None:
            check_state(member.core)
        if not work.entries:
            if snapshot is not None:
                seen.submitted = 0
            return
        leads = s.role is Role.LEADER
        first = work.entries[0].index
        if leads and seen.submitted and first <= seen.submitted:
            raise Violation("a leader only appends", member.id, first, seen.submitted)
        before = s.log.term_at(first - 1)
        for entry in work.entries:
            if before is not None:
                was = self.entries.setdefault((entry.term, entry.index), (before, entry.data))
                if was != (before, entry.data):
                    raise Violation("equal index and term mean equal entries and pasts", entry, was, before)
            if before is not None and entry.term < before:
                raise Violation("terms never decrease along the log", entry, before)
            before = entry.term
            if leads and entry.kind is not EntryKind.NORMAL and self._other_change(member, entry.index):
                raise Violation("one membership change at a time", member.id, entry)
        seen.submitted = work.entries[-1].index if leads else 0

    def _other_change(self, member: Member, index: int) -> bool:
        """Whether the log holds an unapplied membership change before `index`."""
        log = member.core._state.log
        return log.has_conf_change(max(log.applied, log.base_index) + 1, index)

    def wrote(self, member: Member, before: HardState) -> None:
        after = member.disk.hard
        if after.term < before.term:
            raise Violation("terms never decrease", member.id, before, after)
        if after.vote and self.votes.setdefault((member.id, after.term), after.vote) != after.vote:
            raise Violation("one vote per term", member.id, after, self.votes[member.id, after.term])

    def responded(self, member: Member, message: Message) -> None:
        """A message leaves that may acknowledge what the disk must hold."""
        kind = message.type
        disk = member.disk
        if kind is _T.APPEND_RESPONSE and not message.reject and message.index:
            if disk.hard.term > message.term:
                return  # of an earlier term: no leader counts it
            if disk.hard.term < message.term or disk.last_index < message.index:
                raise Violation("acknowledged only when durable", member.id, message, disk.last_index)
            leader = self.members.get(message.to)
            if leader is None or not leader.up or leader.core.term != message.term:
                return
            term = leader.core._state.log.term_at(message.index)
            if term is not None and not disk.holds(message.index, term):
                raise Violation("an acknowledged log equals the leader's", member.id, message, term)
        elif kind is _T.VOTE_RESPONSE and not message.reject:
            held = disk.hard.term > message.term or disk.hard[:2] == (message.term, message.to)
            if not held:
                raise Violation("a vote is given only when durable", member.id, message, disk.hard)

    def check_match(self, member: Member, other: int) -> None:
        """A leader's belief of what a member holds is true of that member's disk."""
        s = member.core._state
        progress = s.tracker.progress.get(other)
        if s.role is not Role.LEADER or progress is None or not progress.match:
            return
        term = s.log.term_at(progress.match)
        disk = self.members[other].disk
        if disk.hard.term > s.term:
            return  # a later leader may have made it overwrite what this one counted
        if term is not None and not disk.holds(progress.match, term):
            raise Violation("match is durable on its member", member.id, other, progress.match, term)

    def stepped(
        self, member: Member, message: Message, term: int, vote: int, *, withheld: bool, believed: int
    ) -> None:
        """A message was taken; `term`, `vote` and what was `believed` of its sender (its match, or for
        a heartbeat's answer the newest read round it confirmed) are from before."""
        s = member.core._state
        kind = message.type
        if kind is _T.PRE_VOTE and (s.term, s.vote) != (term, vote):
            raise Violation("a pre-vote changes neither term nor vote", member.id, term, s.term)
        if message.term > s.term and kind in _RAISES_TERM:
            raise Violation("a later term is always adopted", member.id, message)
        if withheld and kind is _T.VOTE and message.context == 0 and s.term != term:
            raise Violation("no vote unseats a leader just heard from", member.id, message)
        if kind in _FROM_A_LEADER:
            if message.term == s.term and s.leader != message.from_:
                raise Violation("a member that hears the leader of its term follows it", member.id, message)
        elif kind is _T.APPEND_RESPONSE:
            self.check_match(member, message.from_)
            progress = s.tracker.progress.get(message.from_)
            known = s.role is Role.LEADER and progress is not None
            if known and progress is not None and message.term < term and progress.match != believed:
                raise Violation("an answer of an earlier term counts for nothing", member.id, message)
            if known and progress is not None and not believed <= progress.match < progress.next:
                raise Violation("match only grows, and next is beyond it", member.id, message, believed)
        elif kind is _T.HEARTBEAT_RESPONSE:
            confirmed = s.reads._acknowledged.get(message.from_, 0)
            if confirmed > max(believed, message.context):
                raise Violation("an answer confirms no later round", member.id, message, confirmed)

    def ticked(self, member: Member) -> None:
        """A leader that reaches no quorum, or transfers leadership, does so for a bounded time only."""
        s = member.core._state
        if s.role is not Role.LEADER:
            return
        member.cluster.probes.watch_leader(s)
        patience = s.config.election_ticks
        now = member.ticks
        if s.transferee == 0:
            member.transfer_since = now
        elif now - max(member.transfer_since, member.led_since) > patience + 1:
            raise Violation("a transfer ends", member.id, s.transferee)
        if s.config.check_quorum and now - member.led_since > 2 * patience + 1:
            heard = member.heard
            recent = {
                voter: voter == member.id or now - heard.get(voter, -patience * 9) <= 2 * patience + 1
                for voter in s.tracker.voters()
            }
            conf = s.tracker.conf
            if joint_vote(conf.voters, conf.voters_outgoing, recent) is not VoteResult.WON:
                raise Violation("a leader without a quorum steps down", member.id, s.term, recent)

    def applied(self, member: Member, entry: Entry, digest: int) -> None:
        if entry.index > self.committed or self.terms[entry.index] != entry.term:
            raise Violation("only what is committed is applied", member.id, entry)
        if not member.disk.holds(entry.index, entry.term):
            raise Violation("applied only when durable", member.id, entry)
        if digest != self.digests[entry.index] or member.conf != self.confs[entry.index]:
            raise Violation("equal index means equal state", member.id, entry)

    def read_confirmed(self, member: Member, read: ReadState, lower_bound: int) -> None:
        """A read may be served at an index: not below the commit index of its request."""
        if read.index < lower_bound:
            raise Violation("a read sees all that was committed before it", member.id, read, lower_bound)

    def full(self, member: Member) -> None:
        check_state(member.core)
        if member.core.role is Role.LEADER:
            for other in member.core._state.tracker.progress:
                self.check_match(member, other)

    # ------------------------------------------------------------------ used by the recovery check

    @property
    def conf(self) -> ConfState:
        """The configuration after everything committed."""
        return self.confs[-1]

    def possible_confs(self) -> list[ConfState]:
        """Every configuration that may come into force without anything new being proposed."""
        found = [self.conf]
        for member in self.members.values():
            entries = list(member.disk.entries)
            if member.up:
                log = member.core._state.log
                entries += log.between(log.first_index, log.last_index + 1)
            for entry in entries:
                if entry.index > self.committed and entry.kind is not EntryKind.NORMAL:
                    try:
                        found.append(apply_change(self.conf, ConfChange.decode(entry.data)))
                    except ConfChangeRefused:
                        continue
        return found

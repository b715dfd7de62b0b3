"""What must hold of every member at every moment, as code: tests and simulations call it after each step.

Three families: of one state (`check_state`), between a state and its successor (`check_step`), and across
members and time (`History`). Paper figure 3; etcd's, LogCabin's and CCF's own checks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from raft.core.confchange import check_conf
from raft.core.messages import MessageType
from raft.core.progress import Progress, ProgressState
from raft.core.raft_core import RaftCore
from raft.core.state import State
from raft.core.types import NO_NODE, Entry, Role


class InvariantViolated(AssertionError):
    """The algorithm or its code is wrong. The text names the rule and the values."""


def _require(holds: bool, rule: str, *values: object) -> None:
    if not holds:
        raise InvariantViolated(f"{rule}: {values}")


# ---------------------------------------------------------------------- one state


def check_state(core: RaftCore) -> None:
    """Invariants of one member between any two inputs."""
    s = core._state
    _check_log(s)
    check_conf(s.tracker.conf)
    _require(list(s.tracker.progress) == sorted(s.tracker.progress), "progress is sorted by member")
    _require(
        (s.leader == s.id) == (s.role is Role.LEADER), "own id is the leader's exactly when leading", s.id
    )
    if s.role in (Role.CANDIDATE, Role.LEADER):
        _require(s.vote == s.id, "a candidate or leader has voted for itself", s.id, s.vote)
    if s.role in (Role.CANDIDATE, Role.PRE_CANDIDATE):
        _require(s.leader == NO_NODE, "a candidate follows no leader", s.leader)
    if s.role is Role.CANDIDATE:
        _require(s.log.last_term < s.term, "a candidate's term is in no log of its own", s.term)
    _require(
        not (s.forwarded_reads and s.leader in (NO_NODE, s.id)), "forwarded reads have a leader to go to"
    )
    _require(len(s.forwarded_reads) <= s.config.pending_reads_max, "forwarded reads are bounded")
    to_self = any(message.to == s.id for message in s.messages_after_append)
    _require(not to_self, "no response to oneself")
    for message in (*s.messages, *s.messages_after_append):
        # A pre-vote asks about the sender's next term, and a granted one repeats it.
        asked = message.type in (MessageType.PRE_VOTE, MessageType.PRE_VOTE_RESPONSE)
        _require(asked or message.term <= s.term, "no message from a later term", message)
    _check_leader(s) if s.role is Role.LEADER else _check_no_leader(s)


def _check_log(s: State) -> None:
    log = s.log
    _require(
        log.base_index <= log.applied <= log.applying <= log.committed <= log.last_index
        if log.snapshot is None
        else log.applied <= log.applying <= log.committed <= log.last_index,
        "base <= applied <= applying <= committed <= last",
        (log.base_index, log.applied, log.applying, log.committed, log.last_index),
    )
    _require(log.stable <= log.submitted <= log.last_index, "stable <= submitted <= last", log.stable)
    _require(
        log.applying <= log.stable or log.snapshot is not None, "what is applied is durable", log.applying
    )
    _require(log.last_term <= s.term, "no entry from a later term", log.last_term, s.term)
    term = log.base_term
    for index in range(log.first_index, log.last_index + 1):
        at = log.term_at(index)
        _require(at is not None and at >= term, "terms never decrease along a log", index, at, term)
        term = at or term


def _check_leader(s: State) -> None:
    log = s.log
    own = s.tracker.progress.get(s.id)
    if own is not None:
        _require(own.match <= log.stable, "a leader counts of its own log only what is durable", own.match)
    for member, progress in s.tracker.progress.items():
        _check_progress(s, member, progress)
    tail = log.nbytes_between(log.committed + 1, log.last_index + 1)
    _require(s.uncommitted_bytes == tail, "uncommitted bytes are those above the commit index", tail)
    _require(s.reads.pending <= s.config.pending_reads_max, "pending reads are bounded", s.reads.pending)
    rounds = sum(len(opened.reads) for opened in s.reads.rounds)
    _require(s.reads.pending == rounds + len(s.reads.waiting), "pending reads are counted", s.reads.pending)
    _require(not s.reads.rounds or s.has_own_commit(), "no read round before an own-term commit")
    ids = [opened.id for opened in s.reads.rounds]
    _require(ids == sorted(ids), "rounds are in order", ids)


def _check_progress(s: State, member: int, progress: Progress) -> None:
    _require(0 <= progress.match < progress.next, "match < next", member, progress.match, progress.next)
    _require(progress.match <= s.log.last_index, "match <= last", member, progress.match)
    _require(progress.next <= s.log.last_index + 1, "next <= last + 1", member, progress.next)
    inflights, config = progress.inflights, s.config
    _require(len(inflights) <= config.inflight_messages_max, "in-flight messages are bounded", len(inflights))
    # The limit is checked before each send, so the last message may exceed it.
    excess = inflights.nbytes - inflights.newest_nbytes
    _require(excess < config.inflight_bytes_max, "in-flight bytes are bounded", inflights.nbytes)
    if progress.state is ProgressState.SNAPSHOT:
        _require(
            progress.next == progress.pending_snapshot + 1, "in SNAPSHOT next follows the snapshot", member
        )
    else:
        _require(progress.pending_snapshot == 0, "a snapshot is pending only in SNAPSHOT", member)
    if progress.state is not ProgressState.REPLICATE:
        _require(len(inflights) == 0, "only REPLICATE sends ahead", member)


def _check_no_leader(s: State) -> None:
    _require(s.reads.pending == 0, "only a leader confirms reads", s.reads.pending)
    _require(s.transferee == NO_NODE, "only a leader transfers leadership", s.transferee)
    _require(s.uncommitted_bytes == 0 and s.pending_conf_index == 0, "only a leader proposes")


# ---------------------------------------------------------------------- a state and the next


class Observation(NamedTuple):
    """What `check_step` needs of the state before."""

    role: Role
    term: int
    vote: int
    leader: int
    commit: int
    applied: int
    base: int
    last: int
    last_term: int
    last_round: int
    matches: dict[int, int]


def observe(core: RaftCore) -> Observation:
    s = core._state
    return Observation(
        s.role,
        s.term,
        s.vote,
        s.leader,
        s.log.committed,
        s.log.applied,
        s.log.base_index,
        s.log.last_index,
        s.log.last_term,
        s.reads.last_id,
        {member: progress.match for member, progress in s.tracker.progress.items()},
    )


_FORBIDDEN = (
    (Role.LEADER, Role.CANDIDATE),
    (Role.LEADER, Role.PRE_CANDIDATE),
    (Role.FOLLOWER, Role.LEADER),
    (Role.PRE_CANDIDATE, Role.LEADER),
)
"""Role changes no single input can make within a term."""


def check_step(before: Observation, core: RaftCore, *, restarted: int = NO_NODE) -> None:
    """Invariants between the states before and after one input. `restarted` names a member just reported
    restarted: its match index may decrease."""
    after = observe(core)
    s = core._state
    for name in ("term", "commit", "applied", "base", "last_round"):
        _require(getattr(after, name) >= getattr(before, name), f"{name} never decreases", before, after)
    if after.term == before.term:
        _require(before.vote in (NO_NODE, after.vote), "one vote per term", before.vote, after.vote)
        one_leader = NO_NODE in (before.leader, after.leader) or before.leader == after.leader
        _require(one_leader, "one leader per term", before.leader, after.leader)
        _require((before.role, after.role) not in _FORBIDDEN, "role change", before.role, after.role)
    if before.role is Role.LEADER and after.role is Role.LEADER:
        _require(after.term == before.term, "a leader of one term is not one of the next")
        held = after.base >= before.last or s.log.matches(before.last, before.last_term)
        _require(held, "a leader only appends to its log", before.last)
        for member, match in before.matches.items():
            kept = member == restarted or after.matches.get(member, match) >= match
            _require(kept, "match never decreases", member, match, after.matches)
    if after.commit > before.commit and before.role is Role.LEADER and after.role is Role.LEADER:
        by_count = s.log.term_at(after.commit) == after.term
        _require(by_count, "a leader commits by count only entries of its term", after.commit)


# ---------------------------------------------------------------------- all members, for ever


class History:
    """All terms and entries seen so far; each new observation of the cluster is checked against them."""

    def __init__(self) -> None:
        self.leaders: dict[int, int] = {}
        """Term -> the only member that ever led it."""
        self.entries: dict[tuple[int, int], tuple[int, bytes]] = {}
        """(term, index) -> (term of the entry before it, data), wherever it was seen."""
        self.committed: dict[int, tuple[Entry, int]] = {}
        """Index -> the entry committed there, and the term of the member that first knew."""
        self._known: dict[int, int] = {}
        """Member -> its commit index when last checked; entries up to it have been recorded."""

    def forget(self, member: int) -> None:
        """The member restarted: its commit index may begin lower again."""
        self._known.pop(member, None)

    def check(self, cores: Iterable[RaftCore]) -> None:
        for core in cores:
            s = core._state
            self._record_entries(s)
            if s.role is Role.LEADER:
                known = self.leaders.setdefault(s.term, s.id)
                _require(known == s.id, "election safety: one leader per term", s.term, known, s.id)
                self._check_completeness(s)

    def _record_entries(self, s: State) -> None:
        log = s.log
        start = max(self._known.get(s.id, 0) + 1, log.first_index)
        for entry in log.between(start, log.last_index + 1):
            before = log.term_at(entry.index - 1)
            if before is None:
                continue
            seen = self.entries.setdefault((entry.term, entry.index), (before, entry.data))
            _require(seen == (before, entry.data), "log matching", entry, seen)
            if entry.index <= log.committed:
                first, _ = self.committed.setdefault(entry.index, (entry, s.term))
                _require(first == entry, "committed entries never change", s.id, entry, first)
        self._known[s.id] = log.committed

    def _check_completeness(self, s: State) -> None:
        for index in range(s.log.first_index, max(self.committed, default=0) + 1):
            recorded = self.committed.get(index)
            if recorded is not None and recorded[1] < s.term:
                holds = s.log.matches(index, recorded[0].term)
                _require(holds, "leader completeness", s.id, s.term, recorded)

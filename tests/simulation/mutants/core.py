"""Mutants of the core and of its simulated disk: bugs that Raft implementations really had.

The numbers are those of the project's list of sixty; 64 is of our own. A mutant is a function that takes a
`Patches` and replaces what it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import raft.core.candidate as candidate
import raft.core.election as election
import raft.core.follower as follower
import raft.core.leader as leading
import raft.core.replication as replication
import raft.core.transitions as transitions
from raft.core import MessageType, Role
from raft.core.confchange import apply_change
from raft.core.log import Log
from raft.core.progress import Progress, ProgressState
from raft.core.quorum import majority_committed, majority_vote
from raft.core.raft_core import RaftCore
from raft.core.read_index import ReadRounds
from raft.core.state import State
from raft.core.tracker import Tracker
from raft.sim.disk import Disk
from tests.simulation.mutants.mutant import Mutant
from tests.simulation.mutants.patches import Patches

_T = MessageType


# ---------------------------------------------------------------------- responses and the disk


def _commit_any_term(p: Patches) -> None:
    def commit_by_count(s: State) -> bool:
        committed = min(s.tracker.committed(), s.log.last_index)
        if committed <= s.log.committed:
            return False
        s.uncommitted_bytes -= s.log.nbytes_between(s.log.committed + 1, committed + 1)
        s.append_due = True
        return s.log.commit_to(committed)

    p.everywhere(replication.commit_by_count, commit_by_count)


def _leave_early(p: Patches, kind: MessageType) -> None:
    send_after_append = State.send_after_append

    def hasty(self: State, message: Any) -> None:
        if message.type is kind:
            self.messages.append(message)
        else:
            send_after_append(self, message)

    p.attribute(State, "send_after_append", hasty)


def _vote_before_disk(p: Patches) -> None:
    _leave_early(p, _T.VOTE_RESPONSE)


def _ack_before_disk(p: Patches) -> None:
    _leave_early(p, _T.APPEND_RESPONSE)


def _term_not_kept(p: Patches) -> None:
    recovered = Disk.recovered_hard_state

    def forgetful(self: Disk) -> Any:
        term = self.entries[-1].term if self.entries else self.base.term
        return recovered(self)._replace(term=term, vote=0)

    p.attribute(Disk, "recovered_hard_state", forgetful)


def _own_count_before_disk(p: Patches) -> None:
    append_entries = replication.append_entries

    def hasty(s: State, *args: Any) -> int:
        first = append_entries(s, *args)
        own = s.tracker.progress.get(s.id)
        if own is not None and own.acknowledge(s.log.last_index):
            replication.commit_by_count(s)
        return first

    p.everywhere(append_entries, hasty)


def _completion_of_an_overwritten_entry(p: Patches) -> None:
    on_durable = RaftCore._on_durable

    def on_append_done(self: RaftCore, token: Any) -> None:
        s = self._state
        while self._writing and self._writing[0].token.sequence <= token.sequence:
            done, snapshot_index = self._writing.popleft()
            if snapshot_index:
                s.log.snapshot_durable(snapshot_index)
            if done.term == s.term:
                on_durable(self, done)
            elif s.log.snapshot is None:
                s.log.stable = max(s.log.stable, min(done.last_index, s.log.submitted))

    p.attribute(RaftCore, "on_append_done", on_append_done)


# ---------------------------------------------------------------------- elections


def _vote_cleared_in_its_term(p: Patches) -> None:
    become_follower = transitions.become_follower

    def forgetful(s: State, term: int, leader: int) -> None:
        become_follower(s, term, leader)
        s.vote = 0

    p.everywhere(become_follower, forgetful)


def _newer_by_index(p: Patches) -> None:
    p.attribute(Log, "is_current", lambda self, index, term: index >= self.last_index)


def _newer_by_term(p: Patches) -> None:
    p.attribute(Log, "is_current", lambda self, index, term: term >= self.last_term)


def _newer_than_committed(p: Patches) -> None:
    def is_current(self: Log, index: int, term: int) -> bool:
        return (term, index) >= (self.term_at(self.committed) or 0, self.committed)

    p.attribute(Log, "is_current", is_current)


def _last_term_lost_by_compaction(p: Patches) -> None:
    p.attribute(Log, "last_term", property(lambda self: self._entries[-1].term if self._entries else 0))


def _candidate_stays(p: Patches) -> None:
    table = {
        _T.APPEND: lambda s, m: follower.accept_append(s, m),
        _T.HEARTBEAT: lambda s, m: follower.accept_heartbeat(s, m),
        _T.SNAPSHOT: lambda s, m: follower.accept_snapshot(s, m),
    }
    originals = {
        _T.APPEND: candidate.on_append,
        _T.HEARTBEAT: candidate.on_heartbeat,
        _T.SNAPSHOT: candidate.on_snapshot,
    }
    for kind, handler in table.items():
        p.everywhere(originals[kind], handler)


def _resolve(p: Patches, wrong: Callable[[State, Any], bool | None]) -> None:
    """Decide about some messages of another term wrongly; `wrong` returns None for all others."""
    handle_mismatch = RaftCore._handle_term_mismatch

    def broken(self: RaftCore, m: Any) -> bool:
        decided = wrong(self._state, m)
        return handle_mismatch(self, m) if decided is None else decided

    p.attribute(RaftCore, "_handle_term_mismatch", broken)


def _pre_vote_raises_the_term(p: Patches) -> None:
    def wrong(s: State, m: Any) -> bool | None:
        if m.type is _T.PRE_VOTE and m.term > s.term and s.leader == 0:
            transitions.become_follower(s, m.term, 0)
            return True
        return None

    _resolve(p, wrong)


def _leader_ignores_later_terms(p: Patches) -> None:
    def wrong(s: State, m: Any) -> bool | None:
        answers = (_T.APPEND_RESPONSE, _T.HEARTBEAT_RESPONSE)
        if s.role is Role.LEADER and m.type in answers and m.term > s.term:
            return False
        return None

    _resolve(p, wrong)


def _stale_activity_counts(p: Patches) -> None:
    def quorum_active(self: Tracker, member_id: int) -> bool:
        active = {m: pr.recent_active or m == member_id for m, pr in self.progress.items()}
        return majority_vote(self.conf.voters, active).value == "won"

    p.attribute(Tracker, "quorum_active", quorum_active)


def _votes_not_withheld(p: Patches) -> None:
    p.attribute(election, "is_withheld", lambda s, m: False)


def _timer_neither_random_nor_patient(p: Patches) -> None:
    """Every member waits equally long, and anything heard begins the wait anew: who cannot win keeps
    those who could from standing."""
    reset, step = transitions._reset, RaftCore.step

    def even(s: State, term: int) -> None:
        reset(s, term)
        s.election_timeout = s.config.election_ticks

    def restless(self: RaftCore, message: Any) -> None:
        step(self, message)
        if self.role is not Role.LEADER:
            self._state.election_elapsed = 0

    p.everywhere(reset, even)
    p.attribute(RaftCore, "step", restless)


# ---------------------------------------------------------------------- replication


def _stale_acknowledgements_count(p: Patches) -> None:
    def wrong(s: State, m: Any) -> bool | None:
        stale = m.term < s.term and m.type is _T.APPEND_RESPONSE
        return True if stale and s.role is Role.LEADER else None

    _resolve(p, wrong)


def _match_moves_back(p: Patches) -> None:
    def acknowledge(self: Progress, index: int) -> bool:
        if index == self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        self.paused = False
        return True

    p.attribute(Progress, "acknowledge", acknowledge)


def _next_falls_below_match(p: Patches) -> None:
    def back_off(self: Progress, rejected: int, hint: int) -> bool:
        if self.state is ProgressState.SNAPSHOT:
            return False
        self.next = max(min(rejected, hint + 1), 1)
        self.sent_commit = min(self.sent_commit, self.next - 1)
        self.paused = False
        return self.state is ProgressState.PROBE

    p.attribute(Progress, "back_off", back_off)


def _accept(p: Patches, before: Callable[[Log, int, int, list[Any]], None]) -> None:
    accept = Log.accept

    def broken(self: Log, prev_index: int, prev_term: int, entries: list[Any], commit: int) -> int | None:
        if self.matches(prev_index, prev_term):
            before(self, prev_index, prev_term, entries)
        return accept(self, prev_index, prev_term, entries, commit)

    p.attribute(Log, "accept", broken)


def _truncate_without_conflict(p: Patches) -> None:
    def shorten(self: Log, prev_index: int, prev_term: int, entries: list[Any]) -> None:
        if prev_index >= self.committed:
            del self._entries[prev_index - self.base_index :]
            self.stable = min(self.stable, prev_index)
            self.submitted = min(self.submitted, prev_index)

    _accept(p, shorten)


def _conflict_not_truncated(p: Patches) -> None:
    def accept(self: Log, prev_index: int, prev_term: int, entries: list[Any], commit: int) -> int | None:
        if not self.matches(prev_index, prev_term):
            return None
        last_new = prev_index + len(entries)
        news = [entry for entry in entries if entry.index > self.last_index]
        if news:
            self.append(news)
        self.commit_to(min(commit, last_new))
        return last_new

    p.attribute(Log, "accept", accept)


def _previous_term_unchecked(p: Patches) -> None:
    accept = Log.accept

    def trusting(self: Log, prev_index: int, prev_term: int, entries: list[Any], commit: int) -> int | None:
        known = self.term_at(prev_index)
        return accept(self, prev_index, prev_term if known is None else known, entries, commit)

    p.attribute(Log, "accept", trusting)


def _commit_of_the_leader_trusted(p: Patches) -> None:
    """The core's leaders find the point of agreement exactly, which hides this bug; so they also back off
    further than they must, as leaders may."""
    accept, back_off = Log.accept, Progress.back_off

    def trusting(self: Log, prev_index: int, prev_term: int, entries: list[Any], commit: int) -> int | None:
        last = accept(self, prev_index, prev_term, entries, 0)
        if last is not None:
            self.commit_to(min(commit, self.last_index))
        return last

    def cautious(self: Progress, rejected: int, hint: int) -> bool:
        return back_off(self, rejected, max(hint - 3, 0))

    p.attribute(Log, "accept", trusting)
    p.attribute(Progress, "back_off", cautious)


def _heartbeat_carries_all(p: Patches) -> None:
    def broadcast_heartbeat(s: State, round_id: int, *, voters_only: bool) -> None:
        for member in s.tracker.progress:
            if member != s.id:
                beat = s.send(_T.HEARTBEAT, member)
                beat.commit, beat.context = s.log.committed, round_id

    p.everywhere(replication.broadcast_heartbeat, broadcast_heartbeat)


# ---------------------------------------------------------------------- snapshots


def _old_snapshot_installed(p: Patches) -> None:
    restore = Log.restore

    def trusting(self: Log, snapshot: Any) -> None:
        self.committed = min(self.committed, snapshot.index - 1)
        restore(self, snapshot)

    def accept_snapshot(s: State, m: Any) -> None:
        s.log.restore(m.snapshot)
        s.tracker.adopt(m.snapshot.conf, s.log.last_index + 1)

    p.attribute(Log, "restore", trusting)
    p.everywhere(follower.accept_snapshot, accept_snapshot)


def _snapshot_keeps_the_tail(p: Patches) -> None:
    restore = Log.restore

    def keeping(self: Log, snapshot: Any) -> None:
        tail = [entry for entry in self._entries if entry.index > snapshot.index]
        restore(self, snapshot)
        self._entries = tail
        self.submitted = self.last_index

    p.attribute(Log, "restore", keeping)


def _accept_snapshot(p: Patches, *, keeps_log: bool, takes_conf: bool) -> None:
    def accept_snapshot(s: State, m: Any) -> None:
        log, snapshot = s.log, m.snapshot
        if snapshot.index <= log.committed:
            index = log.committed
        elif keeps_log and log.matches(snapshot.index, snapshot.term):
            log.commit_to(snapshot.index)
            index = snapshot.index
        else:
            log.restore(snapshot)
            if takes_conf:
                s.tracker.adopt(snapshot.conf, log.last_index + 1)
            index = snapshot.index
        answer = s.send(_T.APPEND_RESPONSE, m.from_)
        s.messages.remove(answer)
        answer.index = index
        s.send_after_append(answer)

    p.everywhere(follower.accept_snapshot, accept_snapshot)


def _snapshot_drops_a_longer_log(p: Patches) -> None:
    _accept_snapshot(p, keeps_log=False, takes_conf=True)


def _snapshot_without_its_conf(p: Patches) -> None:
    _accept_snapshot(p, keeps_log=True, takes_conf=False)


# ---------------------------------------------------------------------- membership


def _joint_commit_by_one_majority(p: Patches) -> None:
    def committed(self: Tracker) -> int:
        return majority_committed(self.conf.voters, {m: pr.match for m, pr in self.progress.items()})

    p.attribute(Tracker, "committed", committed)


def _joint_election_by_one_majority(p: Patches) -> None:
    def record_vote(self: Tracker, member: int, granted: bool) -> Any:
        self.votes.setdefault(member, granted)
        return majority_vote(self.conf.voters, self.votes)

    p.attribute(Tracker, "record_vote", record_vote)


def _two_changes_at_once(p: Patches) -> None:
    propose_conf = leading.propose_conf

    def eager(s: State, change: Any) -> int:
        s.pending_conf_index = 0
        return propose_conf(s, change)

    p.everywhere(propose_conf, eager)


def _change_before_the_own_term(p: Patches) -> None:
    become_leader = transitions.become_leader

    def eager(s: State) -> None:
        become_leader(s)
        s.pending_conf_index = 0

    p.everywhere(become_leader, eager)


def _snapshot_progress_for_ever(p: Patches) -> None:
    resume = leading._resume

    def stuck(s: State, progress: Progress, index: int) -> None:
        if progress.state is not ProgressState.SNAPSHOT:
            resume(s, progress, index)

    p.everywhere(resume, stuck)
    p.everywhere(leading.report_snapshot, lambda s, member, ok: None)


def _removed_leader_stays(p: Patches) -> None:
    def adopt_conf(s: State) -> None:
        replication.commit_by_count(s)
        s.append_due = True
        leading.answer_reads(s)

    p.everywhere(leading.adopt_conf, adopt_conf)


def _anyone_stands(p: Patches) -> None:
    p.attribute(State, "is_promotable", lambda self: self.log.snapshot is None)


def _conf_taken_at_append(p: Patches) -> None:
    propose_conf, apply_conf = leading.propose_conf, RaftCore.apply_conf

    def early(s: State, change: Any) -> int:
        index = propose_conf(s, change)
        s.tracker.adopt(apply_change(s.tracker.conf, change), max(s.log.last_index, 1))
        return index

    def late(self: RaftCore, change: Any) -> Any:
        s = self._state
        if s.role is Role.LEADER and s.log.term_at(s.log.committed) == s.term:
            return s.tracker.conf
        return apply_conf(self, change)

    p.everywhere(propose_conf, early)
    p.attribute(RaftCore, "apply_conf", late)


def _joint_left_by_its_maker_only(p: Patches) -> None:
    leave_joint_if_due = leading.leave_joint_if_due

    def forgetful(s: State) -> None:
        index = s.pending_conf_index
        if index >= s.log.first_index and s.log.has_conf_change(index, index + 1):
            leave_joint_if_due(s)

    p.everywhere(leave_joint_if_due, forgetful)


# ---------------------------------------------------------------------- reads and transfers


def _reads_need_no_round(p: Patches) -> None:
    def take_all(self: ReadRounds, conf: Any, member_id: int) -> list[Any]:
        done: list[Any] = list(self.rounds)
        self.pending -= sum(len(opened.reads) for opened in self.rounds)
        self.rounds.clear()
        return done

    p.attribute(ReadRounds, "take_confirmed", take_all)


def _reads_need_no_own_commit(p: Patches) -> None:
    p.attribute(State, "has_own_commit", lambda self: True)


def _any_answer_confirms(p: Patches) -> None:
    def acknowledge(self: ReadRounds, member: int, round_id: int) -> None:
        self._acknowledged[member] = self.last_id

    p.attribute(ReadRounds, "acknowledge", acknowledge)


def _reads_outlive_the_leadership(p: Patches) -> None:
    p.everywhere(transitions._drop_led_reads, lambda s: None)


def _transfer_never_given_up(p: Patches) -> None:
    on_tick = leading.on_tick

    def stubborn(s: State) -> None:
        transferee = s.transferee
        on_tick(s)
        if s.role is Role.LEADER:
            s.transferee = transferee

    p.everywhere(on_tick, stubborn)


def _read_joins_an_open_round(p: Patches) -> None:
    add = ReadRounds.add

    def joining(self: ReadRounds, read: Any) -> None:
        if not self.rounds:
            add(self, read)
            return
        newest = self.rounds.pop()
        self.rounds.append(newest._replace(reads=[*newest.reads, read]))
        self.pending += 1

    p.attribute(ReadRounds, "add", joining)


MUTANTS = (
    Mutant(1, "commit prior-term entries by count", _commit_any_term),
    Mutant(2, "vote not persisted before the reply", _vote_before_disk),
    Mutant(3, "term not persisted", _term_not_kept),
    Mutant(4, "vote cleared on a same-term step-down", _vote_cleared_in_its_term),
    Mutant(5, "up-to-date check compares index only", _newer_by_index),
    Mutant(6, "up-to-date check compares term only", _newer_by_term),
    Mutant(7, "up-to-date check uses commit instead of last index", _newer_than_committed),
    Mutant(8, "no term check on append replies", _stale_acknowledgements_count),
    Mutant(9, "match moves backwards on a reordered reply", _match_moves_back),
    Mutant(10, "stale rejection lowers next below match", _next_falls_below_match),
    Mutant(11, "truncate without conflict", _truncate_without_conflict),
    Mutant(12, "conflicting suffix not truncated", _conflict_not_truncated),
    Mutant(13, "previous entry's term not checked", _previous_term_unchecked),
    Mutant(14, "follower takes the leader's commit beyond the last new entry", _commit_of_the_leader_trusted),
    Mutant(15, "heartbeat carries commit beyond match", _heartbeat_carries_all),
    Mutant(16, "leader counts itself before its own fsync", _own_count_before_disk),
    Mutant(17, "append acknowledged before fsync", _ack_before_disk),
    Mutant(18, "completion of an overwritten entry accepted", _completion_of_an_overwritten_entry),
    Mutant(22, "snapshot older than commit installed", _old_snapshot_installed),
    Mutant(23, "snapshot installation keeps a conflicting tail", _snapshot_keeps_the_tail),
    Mutant(24, "snapshot drops a longer matching log", _snapshot_drops_a_longer_log),
    Mutant(25, "last term reads as 0 after compaction", _last_term_lost_by_compaction),
    Mutant(26, "follower stays in snapshot state after success", _snapshot_progress_for_ever),
    Mutant(27, "candidate does not step down on an equal-term append", _candidate_stays),
    Mutant(28, "pre-vote changes the term", _pre_vote_raises_the_term),
    Mutant(29, "leader ignores a higher term in a reply", _leader_ignores_later_terms),
    Mutant(30, "check-quorum counts stale activity", _stale_activity_counts),
    Mutant(31, "removed leader keeps leading", _removed_leader_stays),
    Mutant(32, "removed member may campaign", _anyone_stands),
    Mutant(33, "joint: only the new majority decides commit", _joint_commit_by_one_majority),
    Mutant(34, "joint: only one majority decides elections", _joint_election_by_one_majority),
    Mutant(35, "second membership change before the first is applied", _two_changes_at_once),
    Mutant(36, "membership change before the own term's first entry", _change_before_the_own_term),
    Mutant(37, "configuration not restored from a snapshot", _snapshot_without_its_conf),
    Mutant(
        38,
        "configuration not rolled back when its entry is truncated",
        None,
        "a change takes effect when applied, and what is applied is never truncated",
    ),
    Mutant(39, "configuration taken at append", _conf_taken_at_append),
    Mutant(40, "joint configuration not left after a leader change", _joint_left_by_its_maker_only),
    Mutant(41, "read answered without a heartbeat quorum", _reads_need_no_round),
    Mutant(42, "read before an own-term commit", _reads_need_no_own_commit),
    Mutant(43, "answers to another read round counted", _any_answer_confirms),
    Mutant(44, "pending reads kept over a step-down", _reads_outlive_the_leadership),
    Mutant(45, "votes not withheld", _votes_not_withheld),
    Mutant(46, "transfer never aborted", _transfer_never_given_up),
    Mutant(60, "election timer not randomised, reset by any message", _timer_neither_random_nor_patient),
    Mutant(64, "read joins a round that began before it", _read_joins_an_open_round),
)

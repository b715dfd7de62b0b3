"""Random schedules: loss, repetition, reordering, partitions, crashes that lose what was not synced,
compaction and membership changes, with every invariant checked after every step. A failure prints the seed
that repeats it.
"""

from __future__ import annotations

import random
import time

import pytest

import raft.core.candidate as candidate
import raft.core.election as election
import raft.core.leader as leading
import raft.core.quorum as quorum
import raft.core.raft_core as machine
import raft.core.replication as replication
import raft.core.transitions as transitions
from raft.core import (
    ConfChange,
    ConfStep,
    ConfStepKind,
    CoreError,
    MessageType,
    ProposalDropped,
    Role,
)
from raft.core.invariants import InvariantViolated
from raft.core.log import Log
from raft.core.state import State
from raft.core.tracker import Tracker

SEEDS = range(12)
STEPS = 2500
"""Steps per seed: enough for several elections, crashes and membership changes each."""

COMMITS_MIN = 20
"""A run that commits less has shown nothing."""


class Chaos:
    """One seeded run over a cluster; then all faults end, and it must recover."""

    def __init__(self, network, seed, *, membership, storm=False):
        self.network = network
        self.storm = storm
        self.rng = random.Random(seed)
        self.membership = membership
        self.serial = 0
        self.read_context = 0
        self.lower_bound = {}
        """Read context -> highest index committed anywhere when it was asked."""
        self.counts = {}

    def members(self):
        return [member for member in self.network.members.values() if member.up]

    def run(self, steps):
        actions = [
            (self.deliver, 60),
            (self.work, 60),
            (self.tick, 10),
            (self.propose, 10),
            (self.read, 4),
            (self.duplicate, 3),
            (self.lose, 3),
            (self.heal, 5 if self.storm else 3),
            (self.partition, 5 if self.storm else 1),
            (self.crash, 4 if self.storm else 1),
            (self.restart, 9 if self.storm else 4),
            (self.compact, 1),
            (self.nudge, 1),
            (self.change_conf, 1 if self.membership else 0),
        ]
        names, weights = zip(*actions, strict=True)
        for action in self.rng.choices(names, weights, k=steps):
            self.counts[action.__name__] = self.counts.get(action.__name__, 0) + 1
            action()
            self.check_reads()

    # ------------------------------------------------------------------ steps

    def deliver(self):
        """A few messages, mostly but not always in the order sent."""
        bag = self.network.bag
        for _ in range(min(len(bag), self.rng.randint(1, 6))):
            self.network.deliver(bag[0] if self.rng.random() < 0.7 else self.rng.choice(bag))

    def heal(self):
        self.network.heal()

    def work(self):
        for member in self.members():
            if member.core.has_ready():
                member.take()
            if self.rng.random() < 0.6:
                member.sync(self.rng.randint(1, 3))
            member.apply(self.rng.randint(0, 2))

    def tick(self):
        for member in self.members():
            if self.rng.random() < 0.8:
                member.do(lambda core: core.tick())

    def propose(self):
        for member in self.members():
            if member.core.role is Role.LEADER:
                self.serial += 1
                self.network.try_propose(member.id, b"%d" % self.serial)

    def read(self):
        if self.members():
            member = self.rng.choice(self.members())
            self.read_context += 1
            self.lower_bound[self.read_context] = max(self.network.history.committed, default=0)
            self.network.read(member.id, self.read_context)

    def check_reads(self):
        for member in self.members():
            for context, index in member.reads.items():
                if index < self.lower_bound[context]:
                    raise InvariantViolated(
                        f"stale read {context}: {index} below {self.lower_bound[context]}"
                    )

    def duplicate(self):
        if self.network.bag:
            self.network.bag.append(self.rng.choice(self.network.bag))

    def lose(self):
        if self.network.bag:
            self.network.bag.remove(self.rng.choice(self.network.bag))

    def partition(self):
        ids = list(self.network.members)
        self.rng.shuffle(ids)
        at = self.rng.randint(0, len(ids))
        self.network.partition(ids[:at], ids[at:])

    def crash(self):
        if self.members():
            self.network.crash(self.rng.choice(self.members()).id)

    def restart(self):
        for member in self.network.members.values():
            if not member.up:
                self.network.restart(member.id)
                for other in self.members():
                    if other is not member and self.rng.random() < 0.5:
                        other.core.report_unreachable(member.id)
                return

    def compact(self):
        if self.members():
            member = self.rng.choice(self.members())
            if not member.applying and not member.writing:
                member.compact()

    def nudge(self):
        if not self.members():
            return
        member = self.rng.choice(self.members())
        other = self.rng.choice(list(self.network.members))
        choice = self.rng.randrange(4)
        if choice == 0:
            member.do(lambda core: core.forget_leader())
        elif choice == 1:
            member.do(lambda core: core.campaign())
        elif choice == 2:
            member.do(lambda core: core.transfer_leader(other))
        else:
            member.do(lambda core: core.report_snapshot(other, ok=self.rng.random() < 0.5))

    def change_conf(self):
        kinds = (ConfStepKind.ADD_VOTER, ConfStepKind.ADD_LEARNER, ConfStepKind.REMOVE)
        count = self.rng.choice((0, 1, 1, 2))
        steps = tuple(
            ConfStep(self.rng.choice(kinds), self.rng.choice(list(self.network.members)))
            for _ in range(count)
        )
        for member in self.members():
            if member.core.role is Role.LEADER and len(member.core.conf.voters) + count > 2:
                try:
                    self.network.change_conf(member.id, ConfChange(steps))
                except ProposalDropped:
                    continue

    # ------------------------------------------------------------------ recovery

    def recover(self):
        """All members up, no message lost: one leader, equal logs and a new write within bounded time."""
        network = self.network
        network.heal()
        for member_id, member in network.members.items():
            if not member.up:
                network.restart(member_id)
        for _ in range(200):
            network.tick()
            network.quiesce()
            leader = network.leader()
            if not leader:
                continue
            for member in network.members:
                network.core(leader).report_snapshot(member, ok=True)
            if self._agree(leader):
                return
        raise AssertionError(f"no recovery: {[m.core.status() for m in network.members.values()]}")

    def _agree(self, leader):
        self.serial += 1
        token = b"heal-%d" % self.serial
        if not self.network.try_propose(leader, token):
            return False
        self.network.quiesce()
        for _ in range(3):
            self.network.tick()
            self.network.quiesce()
        conf = self.network.core(leader).conf
        everyone = sorted({*conf.voters, *conf.learners})
        logs = [self.network.data(member) for member in everyone]
        return token in logs[0] and all(log == logs[0] for log in logs)


def _run(network, seed, *, membership, storm=False):
    print(f"seed {seed}")
    chaos = Chaos(network, seed, membership=membership, storm=storm)
    chaos.run(STEPS)
    chaos.recover()
    return chaos


@pytest.mark.parametrize("seed", SEEDS)
def test_random_schedules(cluster, seed):
    size = 3 if seed % 2 else 5
    network = cluster(size, seed=seed, inflight_messages_max=4, append_entries_max=3)
    chaos = _run(network, seed, membership=False)
    assert len(network.history.committed) > COMMITS_MIN
    assert set(chaos.counts) >= {"crash", "partition", "compact", "duplicate", "lose"}


@pytest.mark.parametrize("seed", SEEDS)
def test_storms(cluster, seed):
    """Many elections: nothing is withheld, members crash and links break all the time."""
    settings = {"pre_vote": False, "check_quorum": False, "withhold_votes": False, "election_ticks": 4}
    network = cluster(3 if seed % 2 else 5, seed=seed, **settings)
    _run(network, seed, membership=False, storm=True)
    assert max(network.history.leaders) > 5, "a storm with few terms tests little"


@pytest.mark.parametrize("seed", SEEDS)
def test_random_schedules_with_membership_changes(cluster, seed):
    network = cluster(3, seed=seed, learners=(4, 5), pre_vote=bool(seed % 3))
    _run(network, 1000 + seed, membership=True)
    assert len(network.history.committed) > COMMITS_MIN


def test_a_run_is_repeatable(cluster):
    def fingerprint():
        network = cluster(3, seed=7)
        _run(network, 7, membership=False)
        return [member.core.status() for member in network.members.values()], network.history.committed

    assert fingerprint() == fingerprint()


# ---------------------------------------------------------------------- the harness, judged


def _votes_ignore_the_log(patch, network):
    patch.setattr("raft.core.log.Log.is_current", lambda self, index, term: True)


def _votes_are_not_written(patch, network):
    disk = type(network[1].disk)
    write = disk.write

    def write_without_vote(self, work):
        write(self, work)
        self.hard_state = self.hard_state._replace(vote=0)

    patch.setattr(disk, "write", write_without_vote)
    patch.setattr(type(network[1]), "_check_response", lambda self, message: None)


def _votes_are_forgotten_at_step_down(patch, network):
    become_follower = transitions.become_follower

    def forgetful(s, term, leader):
        become_follower(s, term, leader)
        s.vote = 0

    for module in (transitions, machine, election, candidate, leading):
        patch.setattr(module, "become_follower", forgetful)


def _responses_leave_before_the_sync(patch, network):
    patch.setattr(State, "send_after_append", lambda self, message: self.messages.append(message))


def _matching_appends_truncate(patch, network):
    accept = Log.accept

    def truncating(self, prev_index, prev_term, entries, commit):
        if self.matches(prev_index, prev_term) and prev_index >= self.committed:
            del self._entries[prev_index - self.base_index :]
            self.stable = min(self.stable, prev_index)
            self.submitted = min(self.submitted, prev_index)
        return accept(self, prev_index, prev_term, entries, commit)

    patch.setattr(Log, "accept", truncating)


def _earlier_terms_commit_by_count(patch, network):
    def commit_by_count(s):
        committed = s.tracker.committed()
        if committed <= s.log.committed:
            return False
        s.uncommitted_bytes -= s.log.nbytes_between(s.log.committed + 1, committed + 1)
        s.append_due = True
        return s.log.commit_to(committed)

    for module in (replication, leading):
        patch.setattr(module, "commit_by_count", commit_by_count)


def _heartbeats_carry_the_whole_commit_index(patch, network):
    def broadcast_heartbeat(s, round_id, *, voters_only):
        for member in s.tracker.progress:
            if member != s.id:
                beat = s.send(MessageType.HEARTBEAT, member)
                beat.commit, beat.context = s.log.committed, round_id

    patch.setattr(leading, "broadcast_heartbeat", broadcast_heartbeat)


def _reads_need_no_own_commit(patch, network):
    patch.setattr(State, "has_own_commit", lambda self: True)


def _learners_count(patch, network):
    def committed(self):
        everyone = tuple(self.progress)
        return quorum.majority_committed(everyone, {m: p.match for m, p in self.progress.items()})

    patch.setattr(Tracker, "committed", committed)


def _changes_need_no_earlier_one_applied(patch, network):
    propose_conf = leading.propose_conf

    def eager(s, change):
        s.pending_conf_index = 0
        return propose_conf(s, change)

    patch.setattr(leading, "propose_conf", eager)


def _snapshots_keep_a_contradicting_tail(patch, network):
    restore = Log.restore

    def keeping(self, snapshot):
        tail = [entry for entry in self._entries if entry.index > snapshot.index]
        restore(self, snapshot)
        self._entries = tail
        self.submitted = self.last_index

    patch.setattr(Log, "restore", keeping)


def _repeated_votes_count_again(patch, network):
    def record_vote(self, member, granted):
        self.votes[member if member not in self.votes else -len(self.votes)] = granted
        yes = sum(self.votes.values())
        needed = quorum.majority_size(len(self.conf.voters))
        return quorum.VoteResult.WON if yes >= needed else quorum.VoteResult.PENDING

    patch.setattr(Tracker, "record_vote", record_vote)


def _full_inflights_are_never_nudged(patch, network):
    on_heartbeat_response = leading.on_heartbeat_response

    def without_nudge(s, m):
        progress = s.tracker.progress.get(m.from_)
        if progress is not None:
            progress.nudge_due = False
        on_heartbeat_response(s, m)

    patch.setitem(machine._LEADER, MessageType.HEARTBEAT_RESPONSE, without_nudge)


def _transfers_are_never_given_up(patch, network):
    on_tick = leading.on_tick

    def stubborn(s):
        transferee = s.transferee
        on_tick(s)
        if s.role is Role.LEADER:
            s.transferee = transferee

    patch.setattr(leading, "on_tick", stubborn)


MUTANTS = {
    _votes_ignore_the_log: 0,
    _votes_are_not_written: 64,
    _votes_are_forgotten_at_step_down: 0,
    _responses_leave_before_the_sync: 25,
    _matching_appends_truncate: 3,
    _earlier_terms_commit_by_count: 17,
    _heartbeats_carry_the_whole_commit_index: 33,
    _reads_need_no_own_commit: 0,
    _learners_count: 9,
    _changes_need_no_earlier_one_applied: 3,
    _snapshots_keep_a_contradicting_tail: 12,
    _repeated_votes_count_again: 83,
    _full_inflights_are_never_nudged: 6,
    _transfers_are_never_given_up: 2,
}
"""Each with a seed whose schedule is known to detect it; later seeds are tried after it."""

MUTANT_SECONDS_MAX = 20
"""A mutant that survives longer is not killed by these schedules. Most are killed within a few seeds."""


def _survives(cluster, monkeypatch, mutant, seed):
    with monkeypatch.context() as patch:
        membership, storm = bool(seed % 2), seed % 4 < 2
        stable = not storm
        settings = {"pre_vote": stable, "check_quorum": stable, "withhold_votes": stable}
        settings["election_ticks"] = 10 if stable else 4
        learners = (4, 5) if membership else ()
        network = cluster(3, seed=seed, learners=learners, inflight_messages_max=4, **settings)
        mutant(patch, network)
        try:
            _run(network, seed, membership=membership, storm=storm)
        except (AssertionError, CoreError, LookupError):
            return False
    return True


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__.strip("_"))
def test_a_broken_rule_is_detected(cluster, monkeypatch, mutant):
    """Negative controls: each rule of the algorithm, broken alone, fails some schedule."""
    deadline = time.monotonic() + MUTANT_SECONDS_MAX
    seed = MUTANTS[mutant]
    while _survives(cluster, monkeypatch, mutant, seed):
        seed += 1
        assert time.monotonic() < deadline, f"no schedule up to seed {seed} detected it"

"""Random schedules: loss, repetition, reordering, partitions, crashes that lose what was not synced,
compaction and membership changes, with every invariant checked after every step. A failure prints the seed
that repeats it.
"""

from __future__ import annotations

import random
import time

import pytest

from raft.core import ConfChange, ConfStep, ConfStepKind, ProposalDropped, Role
from raft.core.invariants import InvariantViolated

SEEDS = range(25)
STEPS = 2500
"""Steps per seed: enough for several elections, crashes and membership changes each."""

COMMITS_MIN = 20
"""A run that commits less has shown nothing."""


class Chaos:
    """One seeded run over a cluster; then a calm in which it must recover."""

    def __init__(self, network, seed, *, membership):
        self.network = network
        self.rng = random.Random(seed)
        self.membership = membership
        self.serial = 0
        self.read_context = 0
        self.floor = {}
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
            (self.heal, 3),
            (self.partition, 1),
            (self.crash, 1),
            (self.restart, 4),
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
            self.floor[self.read_context] = max(self.network.history.committed, default=0)
            self.network.read(member.id, self.read_context)

    def check_reads(self):
        for member in self.members():
            for context, index in member.reads.items():
                if index < self.floor[context]:
                    raise InvariantViolated(f"stale read {context}: {index} below {self.floor[context]}")

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
        self.network.cut(ids[:at], ids[at:])

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
        wish = self.rng.randrange(4)
        if wish == 0:
            member.do(lambda core: core.forget_leader())
        elif wish == 1:
            member.do(lambda core: core.campaign())
        elif wish == 2:
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

    # ------------------------------------------------------------------ calm

    def recover(self):
        """Everyone up, nothing lost: one leader, equal logs, and a fresh write within bounded time."""
        network = self.network
        network.heal()
        for member_id, member in network.members.items():
            if not member.up:
                network.restart(member_id)
        for _ in range(200):
            network.tick()
            network.settle()
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
        token = b"calm-%d" % self.serial
        if not self.network.try_propose(leader, token):
            return False
        self.network.settle()
        for _ in range(3):
            self.network.tick()
            self.network.settle()
        conf = self.network.core(leader).conf
        everyone = sorted({*conf.voters, *conf.learners})
        logs = [self.network.data(member) for member in everyone]
        return token in logs[0] and all(log == logs[0] for log in logs)


def _run(network, seed, *, membership):
    print(f"seed {seed}")
    chaos = Chaos(network, seed, membership=membership)
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


def test_the_checks_bite(cluster, monkeypatch):
    """Negative control: with a broken rule, some seed must fail."""
    monkeypatch.setattr("raft.core.log.Log.is_current", lambda self, index, term: True)
    deadline = time.monotonic() + 20
    for seed in range(200):
        try:
            _run(cluster(3, seed=seed), seed, membership=False)
        except AssertionError:
            return
        assert time.monotonic() < deadline, "no seed noticed that votes ignore the log"
    raise AssertionError("no seed noticed that votes ignore the log")

"""A deterministic network of cores: members with crash-true disks, a bag of messages, and every invariant
checked after every step. Time, order and loss are the test's to choose; nothing happens by itself.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from raft.core import (
    EMPTY_HARD_STATE,
    AppendWork,
    ApplyWork,
    BootState,
    ConfChange,
    Config,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    ProposalDropped,
    RaftCore,
    Ready,
    Role,
    SnapshotMeta,
)
from raft.core.invariants import History, check_state, check_step, observe
from tests.core.transcripts.grammar import Directive, parse_directives

EMPTY_CONF = ConfState()
ROUNDS_MAX = 500
"""Rounds of delivery before a network that never falls silent is a failure."""


@dataclass
class Disk:
    """What survives a crash: only what was synced, and the checkpointed state machine."""

    hard_state: HardState
    snapshot: SnapshotMeta
    entries: list[Entry] = field(default_factory=list)
    backend: list[Entry] = field(default_factory=list)
    backend_index: int = 0
    backend_conf: ConfState = EMPTY_CONF

    def write(self, work: AppendWork) -> None:
        if work.snapshot is not None:
            self.snapshot = work.snapshot
            self.entries = []
        if work.entries:
            first = work.entries[0].index
            assert self.snapshot.index < first <= self.snapshot.index + len(self.entries) + 1, "a hole"
            self.entries[first - self.snapshot.index - 1 :] = work.entries
        if work.hard_state is not None:
            assert work.hard_state.term >= self.hard_state.term
            same_term = work.hard_state.term == self.hard_state.term
            assert not same_term or self.hard_state.vote in (0, work.hard_state.vote), "two votes in a term"
            self.hard_state = work.hard_state

    def holds(self, index: int, term: int) -> bool:
        position = index - self.snapshot.index - 1
        if position == -1:
            return self.snapshot.term == term
        return 0 <= position < len(self.entries) and self.entries[position].term == term


class Member:
    """One core, and a minimal node that executes its Readies."""

    def __init__(self, network: Network, config: Config, disk: Disk) -> None:
        self.network = network
        self.config = config
        self.disk = disk
        self.writing: list[AppendWork] = []
        self.applying: list[ApplyWork] = []
        self.applied: list[Entry] = []
        self.reads: dict[int, int] = {}
        self.dropped: list[int] = []
        self.readies: list[Ready] = []
        self.up = True
        self.core = self._boot()

    def _boot(self) -> RaftCore:
        disk = self.disk
        boot = BootState(
            hard_state=disk.hard_state,
            snapshot=disk.snapshot,
            entries=list(disk.entries),
            applied=disk.backend_index,
            conf=disk.backend_conf,
        )
        self.applied = list(disk.backend)
        return RaftCore(self.config, boot, random.Random(self.network.rng.randrange(2**32)))

    @property
    def id(self) -> int:
        return self.config.member_id

    def do(self, action: Callable[[RaftCore], Any]) -> Any:
        """Give the core one input, with every invariant checked around it."""
        before = observe(self.core)
        try:
            return action(self.core)
        finally:
            check_state(self.core)
            check_step(before, self.core)
            self.network.history.check([self.core])

    def take(self) -> Ready:
        """One Ready: messages leave, the rest queues."""
        ready: Ready = self.do(lambda core: core.take_ready())
        self.readies.append(ready)
        for message in ready.messages:
            self.network.post(message)
        if ready.append is not None:
            self.writing.append(ready.append)
        if ready.apply is not None:
            self.applying.append(ready.apply)
        for read in ready.read_states:
            assert read.context not in self.reads, "a read was answered twice"
            self.reads[read.context] = read.index
        self.dropped.extend(ready.dropped_reads)
        return ready

    def sync(self, count: int = 1) -> None:
        """Make the oldest append work durable, then send its responses."""
        for work in self.writing[:count]:
            self.writing.pop(0)
            self.disk.write(work)
            if work.snapshot is not None:
                self._load(work.snapshot)
            for response in work.responses:
                self._check_response(response)
                self.network.post(response)
            token = work.token
            self.do(lambda core, token=token: core.on_append_done(token))

    def _check_response(self, message: Message) -> None:
        """Invariant 11: what a response acknowledges is on this disk when it leaves."""
        if message.type is MessageType.APPEND_RESPONSE and not message.reject and message.index:
            assert self.disk.snapshot.index + len(self.disk.entries) >= message.index, message
        if message.type is MessageType.VOTE_RESPONSE and not message.reject:
            term, vote, _ = self.disk.hard_state
            assert term > message.term or (term, vote) == (message.term, message.to), message

    def _load(self, snapshot: SnapshotMeta) -> None:
        self.applied = list(self.network.snapshots[snapshot.index, snapshot.term])
        self.disk.backend = list(self.applied)
        self.disk.backend_index, self.disk.backend_conf = snapshot.index, snapshot.conf

    def apply(self, count: int = 1) -> None:
        for work in self.applying[:count]:
            self.applying.pop(0)
            if work.entries[-1].index <= self.disk.backend_index:
                self.core.on_apply_done(work.entries[-1].index, work.nbytes)
                continue
            for entry in work.entries:
                expected = self.applied[-1].index + 1 if self.applied else entry.index
                assert entry.index == expected, "applied in order, without gaps, once"
                assert self.disk.holds(entry.index, entry.term), "applied before it was durable"
                self.applied.append(entry)
                if entry.kind is not EntryKind.NORMAL:
                    change = ConfChange.decode(entry.data)
                    self.do(lambda core, change=change: core.apply_conf(change))
            self.do(lambda core, work=work: core.on_apply_done(work.entries[-1].index, work.nbytes))

    def checkpoint(self) -> None:
        """Persist the state machine as of the applied index."""
        if self.core.applied > self.disk.backend_index:
            self.disk.backend = list(self.applied)
            self.disk.backend_index, self.disk.backend_conf = self.core.applied, self.core.conf

    def compact(self, index: int | None = None) -> None:
        """Checkpoint, then drop the log up to `index`, on disk too."""
        self.checkpoint()
        index = self.core.applied if index is None else index
        if index <= self.disk.snapshot.index or self.core._state.log.snapshot is not None:
            return
        last = self.disk.snapshot.index + len(self.disk.entries)
        assert index <= last
        dropped = index - self.disk.snapshot.index
        term = self.disk.entries[dropped - 1].term
        self.disk.snapshot = SnapshotMeta(index, term, self.disk.backend_conf)
        del self.disk.entries[:dropped]
        self.do(lambda core: core.compact(index))

    def run(self) -> bool:
        """Take and do everything there is; whether anything was done."""
        busy = False
        while self.core.has_ready() or self.writing or self.applying:
            busy = True
            if self.core.has_ready():
                self.take()
            self.sync(len(self.writing))
            self.apply(len(self.applying))
        return busy


class Network:
    """Members, and messages between them in the order sent."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.members: dict[int, Member] = {}
        self.bag: list[Message] = []
        self.history = History()
        self.snapshots: dict[tuple[int, int], list[Entry]] = {}
        self.blocked_links: set[tuple[int, int]] = set()
        self.drop: Callable[[Message], bool] = lambda message: False

    # -------------------------------------------------------------- building

    def add(self, member_id: int, conf: ConfState, **settings: Any) -> Member:
        entries = settings.pop("entries", [])
        hard_state = settings.pop("hard_state", EMPTY_HARD_STATE)
        snapshot = settings.pop("snapshot", SnapshotMeta(0, 0, conf))
        disk = Disk(hard_state, snapshot, list(entries), [], snapshot.index, conf)
        member = Member(self, Config(member_id=member_id, **settings), disk)
        self.members[member_id] = member
        return member

    def __getitem__(self, member_id: int) -> Member:
        return self.members[member_id]

    def core(self, member_id: int) -> RaftCore:
        return self.members[member_id].core

    # -------------------------------------------------------------- messages

    def post(self, message: Message) -> None:
        """Put a message into the bag, unless its link is blocked. A snapshot request becomes a snapshot."""
        assert message.to != message.from_, "no member sends a message to itself"
        if message.type is MessageType.SNAPSHOT:
            sender = self.members[message.from_]
            assert message.snapshot is not None
            index = sender.applied[-1].index if sender.applied else sender.disk.backend_index
            term = sender.core._state.log.term_at(index)
            assert term is not None
            message.snapshot = SnapshotMeta(index, term, sender.core.conf)
            self.snapshots[index, term] = list(sender.applied)
        if (message.from_, message.to) in self.blocked_links or self.drop(message):
            return
        self.bag.append(message)

    def deliver(self, message: Message) -> None:
        """Deliver one message (it need not be in the bag: a copy may be delivered again)."""
        if message in self.bag:
            self.bag.remove(message)
        member = self.members.get(message.to)
        if member is not None and member.up:
            member.do(lambda core: core.step(message))

    def deliver_all(self, *to: int) -> int:
        """Deliver what is in the bag now, to these members or all."""
        chosen = [message for message in self.bag if not to or message.to in to]
        self.bag = [message for message in self.bag if message not in chosen]
        for message in chosen:
            self.deliver(message)
        return len(chosen)

    def quiesce(self, *only: int) -> None:
        """Run these members (or all) until nothing moves between them."""
        for _ in range(ROUNDS_MAX):
            busy = False
            for member_id in sorted(self.members):
                member = self.members[member_id]
                if member.up and (not only or member_id in only):
                    busy |= member.run()
            busy |= bool(self.deliver_all(*only))
            if not busy:
                return
        raise AssertionError("the network does not quiesce")

    def partition(self, *groups: Iterable[int]) -> None:
        """Members of different groups no longer reach each other; messages between them are lost."""
        self.blocked_links.clear()
        sides = [list(group) for group in groups]
        for number, side in enumerate(sides):
            for other in sides[number + 1 :]:
                self.blocked_links.update((a, b) for a in side for b in other)
                self.blocked_links.update((b, a) for a in side for b in other)
        self.bag = [message for message in self.bag if (message.from_, message.to) not in self.blocked_links]

    def isolate(self, member_id: int) -> None:
        self.partition([member_id], [other for other in self.members if other != member_id])

    def heal(self) -> None:
        self.blocked_links.clear()

    # -------------------------------------------------------------- time and faults

    def tick(self, *member_ids: int, count: int = 1) -> None:
        for _ in range(count):
            for member_id in member_ids or sorted(self.members):
                if self.members[member_id].up:
                    self.members[member_id].do(lambda core: core.tick())

    def run_ticks(self, count: int) -> None:
        """Tick every member `count` times, and deliver everything after each tick."""
        for _ in range(count):
            self.tick()
            self.quiesce()

    def crash(self, member_id: int) -> None:
        """Lose memory and everything not synced."""
        member = self.members[member_id]
        member.up = False
        member.writing.clear()
        member.applying.clear()

    def restart(self, member_id: int) -> None:
        member = self.members[member_id]
        member.up = True
        member.core = member._boot()
        self.history.forget(member_id)

    # -------------------------------------------------------------- requests and state

    def elect(self, member_id: int) -> None:
        """Make the member leader, after all members forget the present one."""
        for member in self.members.values():
            if member.up:
                member.do(lambda core: core.forget_leader())
        self.campaign(member_id)
        self.quiesce()
        assert self.core(member_id).role is Role.LEADER, self.core(member_id).status()

    def campaign(self, member_id: int) -> None:
        self.members[member_id].do(lambda core: core.campaign())

    def propose(self, member_id: int, *datas: bytes) -> list[Any]:
        result: list[Any] = self.members[member_id].do(lambda core: core.propose(datas))
        return result

    def try_propose(self, member_id: int, *datas: bytes) -> bool:
        try:
            self.propose(member_id, *datas)
        except ProposalDropped:
            return False
        return True

    def change_conf(self, member_id: int, change: ConfChange) -> Any:
        return self.members[member_id].do(lambda core: core.propose_conf(change))

    def read(self, member_id: int, context: int) -> None:
        self.members[member_id].do(lambda core: core.read_index(context))

    def leader(self) -> int:
        """The leader of the highest term, 0 if there is none."""
        leaders = [(m.core.term, m.id) for m in self.members.values() if m.up and m.core.role is Role.LEADER]
        return max(leaders, default=(0, 0))[1]

    def log(self, member_id: int) -> list[tuple[int, int]]:
        """(term, index) of every entry held."""
        log = self.core(member_id)._state.log
        return [(entry.term, entry.index) for entry in log.between(log.first_index, log.last_index + 1)]

    def data(self, member_id: int) -> list[bytes]:
        """Data applied to the state machine, without no-ops."""
        applied = self.members[member_id].applied
        return [entry.data for entry in applied if entry.kind is EntryKind.NORMAL and entry.data]

    def in_bag(self, message_type: MessageType, *, to: int = 0, from_: int = 0) -> list[Message]:
        return [
            message
            for message in self.bag
            if message.type is message_type and to in (0, message.to) and from_ in (0, message.from_)
        ]


def build(size: int, *, seed: int = 1, learners: tuple[int, ...] = (), **settings: Any) -> Network:
    """A cluster of voters 1..size and some learners, with nothing in their logs."""
    network = Network(seed)
    conf = ConfState(voters=tuple(range(1, size + 1)), learners=learners)
    for member_id in (*conf.voters, *learners):
        network.add(member_id, conf, **settings)
    return network


@pytest.fixture
def cluster() -> Callable[..., Network]:
    """Builds clusters: `cluster(3, check_quorum=False)`."""
    return build


@pytest.fixture
def empty_network() -> Callable[[int], Network]:
    """Builds networks without members."""
    return Network


@pytest.fixture
def directives() -> Callable[[str], list[Directive]]:
    """Parses one file of the third-party test data; skips the test when KVSTORE_TESTDATA is not set."""
    root = os.environ.get("KVSTORE_TESTDATA")
    if not root:
        pytest.skip("KVSTORE_TESTDATA names no folder of third-party test data")
    return lambda name: parse_directives((Path(root) / name).read_text("utf-8"))

"""One member: a real core, and a minimal node that keeps the core's contract exactly.

What the contract leaves open is drawn from the seed: when a Ready is taken, how many writes share a sync,
how late a sync completes, how entries are applied in slices, which backend a snapshot is taken of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from zlib import crc32

from raft.core import (
    NO_NODE,
    AppendWork,
    ApplyWork,
    BootState,
    ConfChange,
    Config,
    ConfState,
    EntryKind,
    Message,
    MessageType,
    ProgressState,
    ProposalDropped,
    RaftCore,
    ReadState,
    Ready,
    Role,
    SnapshotMeta,
)
from raft.sim.checkers import Seen, Violation
from raft.sim.disk import Backend, Disk
from raft.sim.kernel import SECOND
from raft.sim.probes import MANY

if TYPE_CHECKING:
    from raft.sim.cluster import Cluster

_T = MessageType
_ANSWERS = frozenset((_T.APPEND_RESPONSE, _T.HEARTBEAT_RESPONSE))
_FROM_A_LEADER = frozenset((_T.APPEND, _T.HEARTBEAT, _T.SNAPSHOT))

TAKES_MAX = 10_000
"""Takes in a row, without an input in between, before that is a violation. The longest log of a run,
sent one entry per take, needs fewer."""


class Member:
    """A process that may be down, paused or up; its disk survives it."""

    def __init__(self, cluster: Cluster, member_id: int, conf: ConfState) -> None:
        self.id = member_id
        self.cluster = cluster
        self.disk = Disk(conf)
        self.seen = Seen()
        self.rng = cluster.kernel.stream(f"member/{member_id}")
        self.disk_rng = cluster.kernel.stream(f"disk/{member_id}")
        schedule = cluster.schedule
        drift = 1 + schedule.drift * (2 * self.rng.random() - 1)
        self.tick_us = int(schedule.tick_us * drift)
        self.sync_us = schedule.sync_us
        """Present latency of this disk; 0 completes at once."""
        self.config = Config(member_id=member_id, **schedule.core)
        self.incarnation = 0
        """Number of the process; events scheduled by an earlier one are ignored."""
        self.up = False
        self.paused = 0
        """Active faults that pause this process."""
        self.down = 0
        """Active faults that keep this process down."""
        self.crashed_at = -SECOND
        """When a process of it last crashed."""
        self.crash_during = ""
        """The work during which this process will crash: sync, vote (a sync of nothing but a hard state) or
        apply; empty for none."""
        self.boot()

    # ------------------------------------------------------------------ incarnation

    def boot(self) -> None:
        disk, backend = self.disk, self.disk.backend
        boot = BootState(
            hard_state=disk.recovered_hard_state(),
            snapshot=disk.base,
            entries=list(disk.entries),
            applied=backend.index,
            conf=backend.conf,
        )
        self.incarnation += 1
        probes = self.cluster.probes
        probes.hit("a process starts with entries that are not applied", when=disk.last_index > backend.index)
        probes.hit("a process starts with nothing but its backend", when=backend.index == disk.last_index > 0)
        rng = self.cluster.kernel.stream(f"core/{self.id}/{self.incarnation}")
        self.core = RaftCore(self.config, boot, rng)
        self.up = True
        self.writing: list[AppendWork] = []
        """Taken and not durable, oldest first."""
        self.syncing = 0
        """How many of them the sync under way covers."""
        self.applying: list[ApplyWork] = []
        self.sliced = 0
        """Entries of the first of them already applied."""
        self.apply_due = False
        self.take_due = False
        self.inbox: list[Message] = []
        """What arrived while paused."""
        self.applied = backend.index
        self.applied_term = backend.term
        self.digest = backend.digest
        self.conf = backend.conf
        self.writes: dict[int, tuple[int, bytes]] = {}
        """Unanswered own writes: index -> (term, data)."""
        self.reads: dict[int, int] = {}
        """Unanswered reads: context -> lowest index that the read may return."""
        self.waiting: list[ReadState] = []
        """Reads confirmed and not yet applied far enough."""
        self.ticks = 0
        self.leader_heard = -1_000_000
        """Tick at which a leader was last heard."""
        self.led_since = 0
        """Tick since which this leader may be expected to hear a quorum."""
        self.transfer_since = 0
        self.heard: dict[int, int] = {}
        """Leader: the tick at which each member last answered in its term."""
        self.seen.restart(disk.recovered_hard_state())
        self.cluster.judge.observe(self)
        self.cluster.after(int(self.rng.random() * self.tick_us), self._tick, self.incarnation)

    def crash(self) -> None:
        """End the process, and lose a part of what was not synced."""
        disk, probes = self.disk, self.cluster.probes
        kept = disk.crash(self.writing, self.disk_rng)
        now = self.cluster.kernel.now
        probes.hit("a member crashes twice in a second", when=0 < now - self.crashed_at < SECOND)
        self.crashed_at = now
        probes.hit("a crash keeps a part of a write", when=bool(kept) and kept[-1] not in self.writing)
        for work in self.writing[len(kept) :]:
            probes.hit("a crash loses a snapshot", when=work.snapshot is not None)
            probes.hit("a crash loses entries", when=bool(work.entries))
            probes.hit("a crash loses a vote", when=work.must_sync and not work.entries)
        for work in kept:
            self._write(work)
            probes.hit("a crash keeps what was never reported", when=bool(work.entries))
            if work.snapshot is not None:
                disk.backend = self.cluster.snapshots[work.snapshot.index, work.snapshot.term]
        probes.hit("a leader crashes", when=self.core.role is Role.LEADER)
        probes.hit("a crash amid applying", when=bool(self.applying))
        for _, data in self.writes.values():
            self.cluster.complete_write(data, "unknown")
        self.cluster.drop_reads(len(self.reads) + len(self.waiting))
        self.up = False
        self.incarnation += 1
        members = self.cluster.members
        probes.hit("all voters are down", when=not any(members[v].up for v in self.conf.voters))
        self.cluster.network.disconnect(self.id)

    def resume(self) -> None:
        """After a pause: messages first, then one tick, not the backlog."""
        inbox, self.inbox = self.inbox, []
        self.cluster.probes.hit("a pause ends with queued messages", when=bool(inbox))
        incarnation = self.incarnation
        for message in inbox:
            if self.incarnation == incarnation:
                self.receive(message)

    # ------------------------------------------------------------------ inputs

    def _tick(self, incarnation: int) -> None:
        if incarnation != self.incarnation:
            return
        self.cluster.after(self.tick_us, self._tick, incarnation)
        if self.paused:
            return
        self.ticks += 1
        s = self.core._state
        role, transferee = s.role, s.transferee
        self.core.tick()
        given_up = transferee != NO_NODE and s.transferee == NO_NODE and s.role is Role.LEADER
        if given_up:
            self.cluster.probes.hit("a transfer is abandoned")
        if role is Role.LEADER and s.role is not role:
            self.cluster.probes.hit("a leader steps down by itself")
        self.cluster.judge.ticked(self)
        if self.core.commit_broadcast_due:
            self.core.broadcast_commit()
        self.process_ready()

    def receive(self, message: Message) -> None:
        """A message has arrived at this process, if there is one."""
        if not self.up:
            return
        if self.paused:
            self.inbox.append(message)
            return
        core, kind = self.core, message.type
        s = core._state
        term, vote = s.term, s.vote
        withheld = False
        believed = 0
        if kind in _FROM_A_LEADER:
            if message.term >= term:
                self.leader_heard = self.ticks
        elif kind in _ANSWERS:
            if message.term == term:
                self.heard[message.from_] = self.ticks
            progress = s.tracker.progress.get(message.from_)
            if kind is _T.HEARTBEAT_RESPONSE:
                believed = s.reads._acknowledged.get(message.from_, 0)
            elif progress is not None and s.role is Role.LEADER:
                believed = progress.match
        elif kind is _T.VOTE:
            recent = self.ticks - self.leader_heard < s.config.election_ticks or s.role is Role.LEADER
            withheld = s.config.withhold_votes and recent and s.leader != NO_NODE
        self.cluster.probes.watch_message(self, message)
        core.step(message)
        if kind is _T.TRANSFER_LEADER and s.role is Role.LEADER:
            self.led_since = self.transfer_since = self.ticks
        self.cluster.judge.stepped(self, message, term, vote, withheld=withheld, believed=believed)
        self.process_ready()

    def do(self, action: Callable[[RaftCore], Any]) -> None:
        action(self.core)
        self.process_ready()

    def process_ready(self) -> None:
        """After an input: take the Ready now or up to `lazy_us` later, then check the invariants."""
        lazy = self.cluster.schedule.lazy_us
        if not lazy:
            self._take()
        elif not self.take_due and self.core.has_ready():
            self.take_due = True
            self.cluster.after(int(self.rng.random() * lazy), self._take_late, self.incarnation)
        self.cluster.judge.observe(self)
        self.cluster.note(self)

    def _take_late(self, incarnation: int) -> None:
        if incarnation == self.incarnation:
            self.take_due = False
            self._take()
            self.cluster.judge.observe(self)
            self.cluster.note(self)

    # ------------------------------------------------------------------ the core's work

    def _take(self) -> None:
        core = self.core
        takes = 0
        while core.has_ready():
            takes += 1
            if takes > TAKES_MAX:
                raise Violation("a core with nothing to do falls silent", self.id)
            ready = core.take_ready()
            if ready.append is not None:
                self.cluster.judge.took_work(self, ready.append)
                self._submit(ready.append)
            for message in ready.messages:
                self._send(message)
            if ready.apply is not None:
                self.applying.append(ready.apply)
            if ready.read_states or ready.dropped_reads:
                self._take_reads(ready)
            if self.applying and not self.apply_due:
                self._apply_soon()

    def _send(self, message: Message) -> None:
        if message.type is _T.SNAPSHOT:
            self._send_snapshot(message)
            return
        self.cluster.judge.responded(self, message)
        if not self.cluster.network.post(message, self.incarnation) and self.rng.random() < 0.1:
            self.cluster.after(0, self._unreachable, self.incarnation, message.to)

    def _unreachable(self, incarnation: int, member: int) -> None:
        if incarnation == self.incarnation and not self.paused:
            self.do(lambda core: core.report_unreachable(member))

    def _submit(self, work: AppendWork) -> None:
        if not (work.must_sync or self.writing or work.responses):
            self._complete([work])  # only a commit index, with no write before it
            return
        self.writing.append(work)
        if not self.sync_us:
            works, self.writing = self.writing, []
            self._complete(works)
        elif not self.syncing:
            self._sync()

    def _sync(self) -> None:
        count = len(self.writing)
        rng = self.disk_rng
        if count > 1 and rng.random() < 0.25:
            count = rng.randint(1, count)
        self.syncing = count
        if count > 1:
            self.cluster.probes.hit("one sync covers several works")
        delay = int(self.sync_us * (0.5 + rng.random()))
        self.cluster.after(delay, self._synced, self.incarnation)
        pending_vote = any(work.must_sync and not work.entries for work in self.writing)
        if self.crash_during == "sync" or (self.crash_during == "vote" and pending_vote):
            self.cluster.after(int(delay * rng.random()), self._die, self.incarnation)

    def _die(self, incarnation: int) -> None:
        # After its fault has ended nothing would restart the member.
        if incarnation == self.incarnation and self.crash_during:
            self.crash_during = ""
            self.crash()

    def _synced(self, incarnation: int) -> None:
        if incarnation != self.incarnation:
            return
        if self.paused:  # the process does not run now
            self.cluster.after(self.tick_us, self._synced, incarnation)
            return
        works = self.writing[: self.syncing]
        del self.writing[: self.syncing]
        self.syncing = 0
        self._complete(works)
        if self.writing:
            self._sync()
        self.process_ready()

    def _complete(self, works: Sequence[AppendWork]) -> None:
        """These works are durable: send their responses, and report them to the core, singly or together."""
        one_by_one = len(works) > 1 and self.disk_rng.random() < 0.5
        overwritten = self.disk.overwritten
        for work in works:
            self._write(work)
            if work.snapshot is not None:
                self._install(work.snapshot)
        if self.disk.overwritten != overwritten:
            self.cluster.probes.hit("a suffix is overwritten")
            many = self.disk.overwritten - overwritten > MANY
            self.cluster.probes.hit("many entries are overwritten at once", when=many)
        for work in works:
            for response in work.responses:
                self._send(response)
            if work.entries and work.token.term != self.core.term:
                self._note_late_completion(work)
            if one_by_one or work is works[-1]:
                self.core.on_append_done(work.token)
        self.cluster.judge.check_match(self, self.id)

    def _note_late_completion(self, work: AppendWork) -> None:
        probes, last = self.cluster.probes, work.entries[-1]
        probes.hit("a completion comes after its term")
        lost = self.core._state.log.term_at(last.index) not in (None, last.term)
        probes.hit("a completion comes after its entries were overwritten", when=lost)

    def _write(self, work: AppendWork) -> None:
        before = self.disk.hard
        self.disk.write(work)
        if work.hard_state is not None:
            self.cluster.judge.wrote(self, before)

    # ------------------------------------------------------------------ the state machine

    def _install(self, snapshot: SnapshotMeta) -> None:
        """The snapshot that replaces this log is the state machine from now on."""
        backend = self.disk.backend = self.cluster.snapshots[snapshot.index, snapshot.term]
        for index in [index for index in self.writes if index <= backend.index]:
            self.cluster.complete_write(self.writes.pop(index)[1], "unknown")
        self.applied, self.applied_term = backend.index, backend.term
        self.digest, self.conf = backend.digest, backend.conf
        self.cluster.probes.hit("a snapshot is installed")
        self.cluster.probes.hit("a snapshot supersedes applying", when=bool(self.applying))

    def _apply_soon(self) -> None:
        delay = self.cluster.schedule.apply_us
        self.apply_due = True
        self.cluster.after(int(delay * 2 * self.rng.random()) if delay else 0, self._apply, self.incarnation)

    def _apply(self, incarnation: int) -> None:
        if incarnation != self.incarnation:
            return
        if self.paused:
            self.cluster.after(self.tick_us, self._apply, incarnation)
            return
        self.apply_due = False
        work = self.applying[0]
        entries = work.entries
        last = len(entries)
        if self.cluster.schedule.apply_us and last - self.sliced > 1 and self.rng.random() < 0.3:
            last = self.rng.randint(self.sliced + 1, last)
        for entry in entries[self.sliced : last]:
            if entry.index <= self.applied:
                continue  # superseded by a snapshot
            if entry.index != self.applied + 1:
                raise Violation("applied in order and without gaps", self.id, entry.index, self.applied)
            self.applied, self.applied_term = entry.index, entry.term
            self.digest = crc32(entry.data, self.digest ^ entry.term)
            if entry.kind is not EntryKind.NORMAL:
                self._apply_conf(ConfChange.decode(entry.data))
            self.cluster.judge.applied(self, entry, self.digest)
            if self.writes:
                self._answer_writes(entry.index, entry.term)
        self.sliced = last
        if self.crash_during == "apply":
            self._die(incarnation)
            return
        if last == len(entries):
            self.applying.pop(0)
            self.sliced = 0
            self.core.on_apply_done(entries[-1].index, work.nbytes)
            self._maintain()
        if self.waiting:
            self._serve_reads()
        self.process_ready()
        if self.applying and not self.apply_due:
            self._apply_soon()

    def _apply_conf(self, change: ConfChange) -> None:
        leads, before = self.core.role is Role.LEADER, self.conf
        self.conf = self.core.apply_conf(change)
        self.led_since = self.ticks
        probes = self.cluster.probes
        probes.hit("a joint configuration is entered", when=bool(self.conf.voters_outgoing))
        probes.hit("a joint configuration is left", when=change.leaves_joint)
        probes.hit("a joint configuration is left by itself", when=change.leaves_joint and before.auto_leave)
        deposed = leads and self.core.role is not Role.LEADER
        probes.hit("a leader removes itself", when=deposed and self.id not in self.conf.learners)
        probes.watch_conf(before, self.conf, self.id, leads=leads)

    def _answer_writes(self, index: int, term: int) -> None:
        """The outcome rule: an entry is committed under its id, or never."""
        own = self.writes.pop(index, None)
        if own is not None:
            self.cluster.complete_write(own[1], "ok" if own[0] == term else "failed")
        if self.writes:
            for other in [i for i, (made, _) in self.writes.items() if made < term]:
                self.cluster.complete_write(self.writes.pop(other)[1], "failed")

    def _maintain(self) -> None:
        """Checkpoint the backend when due, and compact the log up to near it."""
        schedule = self.cluster.schedule
        if schedule.compact_every and self.applied - self.disk.backend.index >= schedule.compact_every:
            self.checkpoint()
            self.compact(self.applied - self.rng.randint(0, schedule.compact_keep))

    def current_backend(self) -> Backend:
        """The state machine as of the applied index."""
        return Backend(self.applied, self.applied_term, self.conf, self.digest)

    def checkpoint(self) -> None:
        if self.applied > self.disk.backend.index:
            self.disk.backend = self.current_backend()

    def compact(self, index: int) -> None:
        """Drop the log up to `index`, as far as the backend and the core allow."""
        if self.core._state.log.snapshot is not None:
            return  # the log is being replaced
        index = min(index, self.disk.backend.index, self.core.applied)
        if index > self.disk.base.index:
            self.core.compact(index)
            self.disk.drop_prefix(index)
            self.cluster.probes.hit("a log is compacted")

    # ------------------------------------------------------------------ snapshots

    def _send_snapshot(self, message: Message) -> None:
        """Send a member a snapshot not older than this log's base."""
        backend = self.disk.backend if self.rng.random() < 0.5 else self.current_backend()
        self.cluster.snapshots[backend.index, backend.term] = backend
        meta = SnapshotMeta(backend.index, backend.term, backend.conf)
        sent = Message(_T.SNAPSHOT, message.to, self.id, message.term, snapshot=meta)
        under_way = 10 * self.cluster.schedule.base_us
        if not self.cluster.network.post(sent, self.incarnation, under_way):
            self.cluster.probes.hit("a snapshot is lost")
        # Delivered or not, the sender's core gets a report in time, true or false.
        ok = self.rng.random() < 0.7
        patience = 3 * under_way + self.rng.randint(1, 5) * self.tick_us
        self.cluster.after(patience, self._snapshot_ended, self.incarnation, message.to, ok)

    def _snapshot_ended(self, incarnation: int, member: int, ok: bool) -> None:
        if incarnation == self.incarnation:
            progress = self.core._state.tracker.progress.get(member)
            waits = progress is not None and progress.state is ProgressState.SNAPSHOT
            self.cluster.probes.hit("a snapshot fails", when=waits and not ok)
            self.do(lambda core: core.report_snapshot(member, ok=ok))

    # ------------------------------------------------------------------ clients

    def propose(self, data: bytes) -> bool:
        """One write; False when it is certainly not proposed."""
        try:
            (entry_id,) = self.core.propose([data])
        except ProposalDropped as refusal:
            self.cluster.probes.hit(f"a write is refused: {refusal.reason.value}")
            return False
        self.cluster.judge.proposed.add(data)
        self.writes[entry_id.index] = (entry_id.term, data)
        self.process_ready()
        return True

    def read(self, context: int, lower_bound: int) -> None:
        self.reads[context] = lower_bound
        self.do(lambda core: core.read_index(context))

    def _take_reads(self, ready: Ready) -> None:
        for read in ready.read_states:
            if read.context not in self.reads:
                raise Violation("a read is answered once", self.id, read)
            self.cluster.judge.read_confirmed(self, read, self.reads.pop(read.context))
            self.waiting.append(read)
        deposed = self.seen.role is Role.LEADER and self.core.role is not Role.LEADER
        self.cluster.probes.hit("a step-down drops reads", when=deposed and bool(ready.dropped_reads))
        for context in ready.dropped_reads:
            if self.reads.pop(context, None) is None:
                raise Violation("a read is answered once", self.id, context)
            self.cluster.drop_reads(1)
        self._serve_reads()

    def _serve_reads(self) -> None:
        held = [read for read in self.waiting if read.index > self.applied]
        self.cluster.probes.hit("a read waits for applying", when=bool(held))
        self.cluster.serve_reads(self, len(self.waiting) - len(held))
        self.waiting = held

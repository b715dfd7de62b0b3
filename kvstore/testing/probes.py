"""Named rare situations of whole members. A campaign that never met one of them has not tested it.

Looked for where they show: in a core after each turn, in what members say of themselves every now and
then, when processes begin and end, and in what clients are told. A feature adds names of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

from kvstore.testing.snapshot_faults import SNAPSHOT_PROBES
from raft.core import RaftCore, Role
from raft.node import NodeStatus

NODE_PROBES = (
    # elections and leadership, seen in the cores
    "a candidate gives up",
    "a candidate stands again",
    "a leader begins with entries that are not committed",
    "a leader hands over",
    "a leader is deposed by a later term",
    "a leader is forgotten in its term",
    "a leader steps down by itself",
    "a pre-candidate gives up",
    "a term passes without a leader",
    "a transfer succeeds",
    "two members believe they lead",
    # logs and images
    "a commit is known before it is durable here",
    "a learner follows",
    "a log is compacted",
    "a log is replaced by an image",
    "a member is behind the compacted log",
    "a suffix is overwritten",
    "an image fails at its receiver",
    "an image fails on its way",
    "an image is brought to its end",
    "an image is half received",
    "the state file lags far behind",
    # admission and trust
    "a cut log is confirmed",
    "a cut log waits for a leader's word",
    "a fresh disk is not let in",
    # the ends of processes
    "a damaged log is refused",
    "a failed disk ends a process",
    "a leader is killed",
    "a leader is stopped in good order",
    "a leader loses power",
    "a process dies between a write and its sync",
    "a process dies while an image is under way",
    "a process dies while its disk syncs",
    "a process dies young",
    "all members are down at once",
    "most members are down at once",
    # their beginnings
    "a process begins from an image",
    "a process begins with a cut tail",
    "a process begins with entries that are not committed",
    "a process begins with entries to apply again",
    "a process begins with the log of a later term than its last entry",
    # pauses, disks, streams
    "a late hello arrives",
    "a leader is paused",
    "a leader's disk hangs",
    "a paused leader finds another",
    "one sync covers several works",
    # clients
    "a comparison fails",
    "a read is answered after a change of leader",
    "a read is refused",
    "a serializable read is older than the newest write",
    "a write is answered after a change of leader",
    "a write is known lost",
    "a write of unknown fate is applied",
    "a write's outcome is unknown",
    "a watcher is told many revisions at once",
    "a watcher's past is compacted",
    "an entry carries several commands",
    "an entry is larger than a sector",
    "commands wait while nobody leads",
    "several batches are under way",
    *SNAPSHOT_PROBES,
)

NODE_UNREACHED: dict[str, str] = {}
"""Probes that a campaign cannot reach, each with the reason. One that is reached belies its reason."""

LAG = 20
"""Entries by which a state file that lags far is behind."""

YOUNG_S = 0.5
"""Age of a process that dies young: it has hardly met the others."""


class _Core(NamedTuple):
    """What was last seen of a member's core."""

    term: int
    role: Role
    leader: int
    last_index: int


_UNSEEN = _Core(0, Role.FOLLOWER, 0, 0)


class NodeProbes:
    """How often each was reached in one run."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(NODE_PROBES, 0))
        self._cores: dict[int, _Core] = {}
        self._leaders: dict[int, int] = {}
        """Term to who led it."""
        self._requested = (0, 0)
        """The latest wish to hand over: term and successor."""
        self._status: dict[int, NodeStatus] = {}
        """What each running process last said of itself."""

    def hit(self, name: str, *, when: bool = True) -> None:
        if when:
            self.counts[name] += 1

    # ---- cores

    def turned(self, core: RaftCore) -> None:
        """A member has ended a turn."""
        s = core._state
        log = s.log
        seen = self._cores.get(s.id, _UNSEEN)
        now = _Core(s.term, s.role, s.leader, log.last_index)
        if s.transferee:
            self._requested = (s.term, s.transferee)
            self.counts["a leader hands over"] += 1
        if log.committed > log.stable:
            self.counts["a commit is known before it is durable here"] += 1
        if log.snapshot is not None:
            self.counts["a log is replaced by an image"] += 1
        if now == seen:
            return
        self._cores[s.id] = now
        if now.last_index < seen.last_index and log.snapshot is None:
            self.counts["a suffix is overwritten"] += 1
        if now.role is not seen.role:
            self._role_changed(core, seen)
        self.hit(
            "a leader is forgotten in its term", when=seen.leader != 0 == s.leader and s.term == seen.term
        )

    def _role_changed(self, core: RaftCore, seen: _Core) -> None:
        s = core._state
        same = s.term == seen.term
        if seen.role is Role.LEADER:
            self.hit("a leader steps down by itself" if same else "a leader is deposed by a later term")
        elif seen.role is Role.PRE_CANDIDATE:
            self.hit("a pre-candidate gives up", when=s.role is Role.FOLLOWER and same and not s.leader)
        elif seen.role is Role.CANDIDATE and s.role is not Role.LEADER:
            self.hit("a candidate stands again", when=s.role is not Role.FOLLOWER)
            self.hit("a candidate gives up", when=s.role is Role.FOLLOWER and not s.leader)
        if s.role is Role.LEADER:
            self._leaders[s.term] = s.id
            more = s.log.committed + 1 < s.log.last_index
            self.hit("a leader begins with entries that are not committed", when=more)
            self.hit("a term passes without a leader", when=s.term > 1 and s.term - 1 not in self._leaders)
            self.hit("a transfer succeeds", when=self._requested == (s.term - 1, s.id))

    # ---- what members say of themselves

    def polled(self, statuses: Mapping[int, NodeStatus], wiped: Collection[int]) -> None:
        """All running processes, every few hundredths of a second; `wiped` lost the disk they began with."""
        leaders = [status for status in statuses.values() if status.role is Role.LEADER]
        self.hit("two members believe they lead", when=len(leaders) > 1)
        for member_id, status in statuses.items():
            before = self._status.get(member_id)
            self._look(status, before)
            refused = member_id in wiped and not status.vote_eligible and bool(status.peers)
            self.hit("a fresh disk is not let in", when=refused)
            for index in status.matched.values() if status.role is Role.LEADER else ():
                self.hit("a member is behind the compacted log", when=0 < index < status.first_index - 1)
        self._status = dict(statuses)

    def _look(self, status: NodeStatus, before: NodeStatus | None) -> None:
        hit, snapshots = self.hit, status.snapshots
        hit("a learner follows", when=bool(status.conf.learners))
        hit("a log is compacted", when=status.first_index > 1)
        hit("the state file lags far behind", when=status.durable_index + LAG < status.applied)
        hit("a cut log waits for a leader's word", when=not status.trusted)
        hit("commands wait while nobody leads", when=status.waiting_operations > 0 and not status.leader)
        hit("several batches are under way", when=status.in_flight_operations > 1)
        hit("an image is half received", when=snapshots.receiving is not None and snapshots.receiving[0] > 0)
        if before is not None:
            hit("a cut log is confirmed", when=status.trusted and not before.trusted)
            hit("an image is brought to its end", when=snapshots.installed > before.snapshots.installed)
            hit("an image fails on its way", when=snapshots.send_failures > before.snapshots.send_failures)
            failed = snapshots.receive_failures > before.snapshots.receive_failures
            hit("an image fails at its receiver", when=failed)

    # ---- processes

    def begun(self, member_id: int, status: NodeStatus, last_term: int) -> None:
        """A process has started on what its disk held; `last_term` is that of its last entry."""
        hit = self.hit
        self._cores[member_id] = _Core(status.term, Role.FOLLOWER, 0, status.last_index)
        hit("a process begins from an image", when=status.durable_index > 0)
        hit("a process begins with a cut tail", when=not status.trusted)
        hit("a process begins with entries that are not committed", when=status.last_index > status.commit)
        hit("a process begins with entries to apply again", when=status.commit > status.durable_index > 0)
        later = status.term > last_term > 0
        hit("a process begins with the log of a later term than its last entry", when=later)

    def died(
        self, member_id: int, *, power: bool, leading: bool, syncing: bool, amid_write: bool, age_s: float
    ) -> None:
        """A process was killed; with `power`, by a power cut of its disk too."""
        self.hit("a leader is killed", when=leading and not power)
        self.hit("a leader loses power", when=leading and power)
        self.hit("a process dies while its disk syncs", when=syncing)
        self.hit("a process dies between a write and its sync", when=amid_write)
        self.hit("a process dies young", when=age_s < YOUNG_S)
        status = self._status.pop(member_id, None)
        if status is not None:
            under_way = status.snapshots.receiving is not None or bool(status.snapshots.sending)
            self.hit("a process dies while an image is under way", when=under_way)

    def down(self, running: Collection[int], size: int) -> None:
        """Fewer processes run than before."""
        self.hit("all members are down at once", when=not running)
        self.hit("most members are down at once", when=len(running) * 2 <= size)

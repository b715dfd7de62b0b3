"""Probes: named rare situations of whole members. A campaign that never reached one has not tested it.

They are checked in a core after each loop iteration, in polled status, when processes start and end, and in
the replies of clients. A feature adds names of its own.
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
    "a candidate loses its election",
    "a candidate campaigns again",
    "a leader begins with entries that are not committed",
    "a leader starts a transfer",
    "a leader is deposed by a later term",
    "a leader is forgotten in its term",
    "a leader steps down by itself",
    "a pre-candidate loses its pre-vote",
    "a term passes without a leader",
    "a transfer succeeds",
    "two members believe they lead",
    # logs and snapshots
    "a commit is known before it is durable here",
    "a learner follows",
    "a log is compacted",
    "a log is replaced by a snapshot",
    "a member is behind the compacted log",
    "a suffix is overwritten",
    "a snapshot fails at its receiver",
    "a snapshot fails in flight",
    "a running member installs a snapshot",
    "a snapshot is partly received",
    "the backend lags far behind",
    # vote eligibility and truncated logs
    "a truncated log is confirmed",
    "a truncated log awaits confirmation",
    "a replica on an empty disk may not vote",
    # processes that end
    "a damaged log is refused",
    "a failed disk ends a process",
    "a leader is killed",
    "a leader is stopped cleanly",
    "a leader loses power",
    "a process dies between a write and its sync",
    "a process dies during a snapshot transfer",
    "a process dies while its disk syncs",
    "a process dies young",
    "all members are down at once",
    "most members are down at once",
    # processes that start
    "a process starts from a backend",
    "a process starts with a truncated tail",
    "a process starts with entries that are not committed",
    "a process starts with entries to apply again",
    "a process starts with the log of a later term than its last entry",
    # pauses, disks, streams
    "a late handshake arrives",
    "a leader is paused",
    "a leader's disk hangs",
    "a paused leader resumes in a later term",
    "one sync covers several jobs",
    # clients
    "a comparison fails",
    "a read is answered after a change of leader",
    "a read is refused",
    "a serializable read is older than the newest write",
    "a write is answered after a change of leader",
    "a write is known lost",
    "a write of unknown outcome is applied",
    "a write's outcome is unknown",
    "a watcher receives many revisions at once",
    "a watcher's past is compacted",
    "an entry carries several commands",
    "an entry is larger than a sector",
    "commands wait without a leader",
    "several batches are under way",
    *SNAPSHOT_PROBES,
)

NODE_UNREACHED: dict[str, str] = {}
"""Probes that a campaign cannot reach, each with the reason. Reaching one contradicts its reason."""

LAG = 20
"""Entries by which a backend that lags far is behind."""

YOUNG_S = 0.5
"""Age of a process that dies young, hardly connected."""


class _Core(NamedTuple):
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
        """Term to its leader."""
        self._requested = (0, 0)
        """The latest transfer: term and transferee."""
        self._status: dict[int, NodeStatus] = {}
        """The last polled status of each running process."""

    def hit(self, name: str, *, when: bool = True) -> None:
        if when:
            self.counts[name] += 1

    # ---- cores

    def iteration_done(self, core: RaftCore) -> None:
        s = core._state
        log = s.log
        seen = self._cores.get(s.id, _UNSEEN)
        now = _Core(s.term, s.role, s.leader, log.last_index)
        if s.transferee:
            self._requested = (s.term, s.transferee)
            self.counts["a leader starts a transfer"] += 1
        if log.committed > log.stable:
            self.counts["a commit is known before it is durable here"] += 1
        if log.snapshot is not None:
            self.counts["a log is replaced by a snapshot"] += 1
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
            self.hit(
                "a pre-candidate loses its pre-vote", when=s.role is Role.FOLLOWER and same and not s.leader
            )
        elif seen.role is Role.CANDIDATE and s.role is not Role.LEADER:
            self.hit("a candidate campaigns again", when=s.role is not Role.FOLLOWER)
            self.hit("a candidate loses its election", when=s.role is Role.FOLLOWER and not s.leader)
        if s.role is Role.LEADER:
            self._leaders[s.term] = s.id
            more = s.log.committed + 1 < s.log.last_index
            self.hit("a leader begins with entries that are not committed", when=more)
            self.hit("a term passes without a leader", when=s.term > 1 and s.term - 1 not in self._leaders)
            self.hit("a transfer succeeds", when=self._requested == (s.term - 1, s.id))

    # ---- polled status

    def polled(self, statuses: Mapping[int, NodeStatus], wiped: Collection[int]) -> None:
        """Status of all running members, polled; those in `wiped` lost their disk."""
        leaders = [status for status in statuses.values() if status.role is Role.LEADER]
        self.hit("two members believe they lead", when=len(leaders) > 1)
        for member_id, status in statuses.items():
            before = self._status.get(member_id)
            self._check_status(status, before)
            ineligible = member_id in wiped and not status.vote_eligible and bool(status.peers)
            self.hit("a replica on an empty disk may not vote", when=ineligible)
            for index in status.matched.values() if status.role is Role.LEADER else ():
                self.hit("a member is behind the compacted log", when=0 < index < status.first_index - 1)
        self._status = dict(statuses)

    def _check_status(self, status: NodeStatus, before: NodeStatus | None) -> None:
        hit, snapshots = self.hit, status.snapshots
        hit("a learner follows", when=bool(status.conf.learners))
        hit("a log is compacted", when=status.first_index > 1)
        hit("the backend lags far behind", when=status.durable_index + LAG < status.applied)
        hit("a truncated log awaits confirmation", when=not status.trusted)
        hit("commands wait without a leader", when=status.waiting_operations > 0 and not status.leader)
        hit("several batches are under way", when=status.in_flight_operations > 1)
        hit(
            "a snapshot is partly received",
            when=snapshots.receiving is not None and snapshots.receiving[0] > 0,
        )
        if before is not None:
            hit("a truncated log is confirmed", when=status.trusted and not before.trusted)
            hit("a running member installs a snapshot", when=snapshots.installed > before.snapshots.installed)
            hit("a snapshot fails in flight", when=snapshots.send_failures > before.snapshots.send_failures)
            failed = snapshots.receive_failures > before.snapshots.receive_failures
            hit("a snapshot fails at its receiver", when=failed)

    # ---- processes

    def begun(self, member_id: int, status: NodeStatus, last_term: int) -> None:
        """A process has started on what its disk held; `last_term` is that of its last entry."""
        hit = self.hit
        self._cores[member_id] = _Core(status.term, Role.FOLLOWER, 0, status.last_index)
        hit("a process starts from a backend", when=status.durable_index > 0)
        hit("a process starts with a truncated tail", when=not status.trusted)
        hit("a process starts with entries that are not committed", when=status.last_index > status.commit)
        hit("a process starts with entries to apply again", when=status.commit > status.durable_index > 0)
        later = status.term > last_term > 0
        hit("a process starts with the log of a later term than its last entry", when=later)

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
            transferring = status.snapshots.receiving is not None or bool(status.snapshots.sending)
            self.hit("a process dies during a snapshot transfer", when=transferring)

    def down(self, running: Collection[int], size: int) -> None:
        self.hit("all members are down at once", when=not running)
        self.hit("most members are down at once", when=len(running) * 2 <= size)

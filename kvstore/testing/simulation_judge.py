"""The oracles of a simulated cluster: every observation is compared with all earlier ones.

What one member does is compared with what any member ever did, over all crashes: the leader of a term, the
batch at an index, the state after it. Violations are collected, not raised: they are found inside a member's
loop iteration, which would take an exception for its own failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from zlib import crc32

from kvstore.engine import Engine
from kvstore.testing.probes import NodeProbes
from raft.core.invariants import History, InvariantViolated, check_state
from raft.core.raft_core import RaftCore
from raft.storage.records import SECTOR_BYTES
from raft.storage.storage_protocol import Row

HASH_EVERY = 64
"""Indexes between two hashes of the whole state; one visits every revision ever written."""

CHECK_STATE_EVERY = 64
"""Loop iterations of a member between two checks of its whole core, whose cost grows with the log."""


class Broken(AssertionError):
    """An invariant is violated. `invariant` is its fixed name; the text has the values."""

    def __init__(self, invariant: str, detail: str = "") -> None:
        self.invariant = invariant
        super().__init__(f"{invariant}: {detail}" if detail else invariant)


class Judge:
    def __init__(self) -> None:
        self.probes = NodeProbes()
        self.violations: list[Broken] = []
        """In order of detection; the first one is reported."""
        self._issued: set[bytes] = set()
        """Commands of clients, each unique. Members propose commands of their own, and may repeat those."""
        self._leaders: dict[int, tuple[int, int]] = {}
        """Term to the only (member, life) that ever led it."""
        self._batches: dict[int, tuple[int, tuple[bytes, ...]]] = {}
        """Index to (term, commands) of every batch any member ever applied."""
        self._commands: dict[bytes, int] = {}
        """Command to the index at which it was applied; every command of a run is unique."""
        self._refused: set[bytes] = set()
        """Commands whose client received the guarantee that they are never applied."""
        self._unknown: list[bytes] = []
        self.on_applied: list[Callable[[Engine], None]] = []
        """Called with a member's state after each batch it applies."""
        self._states: dict[int, tuple[int, int, int]] = {}
        """Index to (revision, hash of the keys, of the leases) of the state after it."""
        self._history = History()
        self._iterations = 0
        self.digest = 0
        """Checksum over every loop iteration of every member, in order: equal for two runs of one seed."""

    @property
    def leaders(self) -> int:
        return len(self._leaders)

    @property
    def applied_batches(self) -> int:
        return len(self._batches)

    def violate(self, invariant: str, detail: str = "") -> None:
        """Record a violation: the invariant's name, which must hold no values, and what was seen."""
        self.violations.append(Broken(invariant, detail))

    def issued(self, command: bytes) -> None:
        """A client is about to propose a command, the first time that one is proposed."""
        self._issued.add(command)

    def leads(self, term: int, member_id: int, life: int) -> None:
        first = self._leaders.setdefault(term, (member_id, life))
        if first != (member_id, life):
            self.violate("one leader per term", f"{term}: member, life {first} and {(member_id, life)}")

    def applying(self, member_id: int, last: int, index: int, term: int, commands: Sequence[bytes]) -> None:
        """A member applies a batch; the one before was at `last`."""
        batch = (term, tuple(commands))
        self.probes.hit("an entry carries several commands", when=len(commands) > 1)
        self.probes.hit("an entry is larger than a sector", when=sum(map(len, commands)) > SECTOR_BYTES)
        known = self._batches.setdefault(index, batch)
        if known != batch:
            self.violate("one batch per index", f"member {member_id} at {index}: {batch} not {known}")
        if index <= last:
            self.violate("no member applies twice", f"member {member_id} goes from {last} to {index}")
        skipped = [between for between in range(last + 1, index) if between in self._batches]
        if skipped:
            self.violate("no member skips a batch", f"member {member_id} those at {skipped[:5]}")
        for command in commands:
            first = self._commands.setdefault(command, index)
            if first != index and command in self._issued:
                self.violate("a command is applied once", f"at {first} and {index}: {command!r}")
            if command in self._refused:
                self.violate("a command known lost stays lost", f"applied at {index}: {command!r}")

    def applied(self, member_id: int, index: int, engine: Engine) -> None:
        for observer in self.on_applied:
            observer(engine)
        if index % HASH_EVERY == 0:
            self.state(member_id, index, engine)

    def state(self, member_id: int, index: int, engine: Engine) -> None:
        """Compare a member's whole state with that of any other at the same index."""
        state = (engine.revision, engine.hash_kv(), engine.leases.checksum())
        first = self._states.setdefault(index, state)
        if first != state:
            self.violate("equal index means equal state", f"member {member_id} at {index}: {state}, {first}")

    def acknowledged(self, command: bytes) -> None:
        if command not in self._commands:
            self.violate("an acknowledged command is applied", f"nowhere: {command!r}")

    def unknown(self, command: bytes) -> None:
        self._unknown.append(command)

    def unknown_applied(self) -> int:
        """How many commands of unknown outcome were applied after all."""
        return sum(command in self._commands for command in self._unknown)

    def refused(self, command: bytes) -> None:
        """A client received the guarantee that its command is not and will not be applied."""
        self._refused.add(command)
        if command in self._commands:
            self.violate("a command known lost stays lost", f"at {self._commands[command]}: {command!r}")

    # ---- the core

    def iteration_done(self, core: RaftCore, now_s: float) -> None:
        self._iterations += 1
        now = (core.id, int(now_s * 1e6), core.term, core.leader, core.commit, core.applied, core.last_index)
        self.digest = crc32(b"%d %d %d %d %d %d %d" % now, self.digest)
        if self._iterations % CHECK_STATE_EVERY == 0:
            self.check_cores([core])

    def check_cores(self, cores: Iterable[RaftCore]) -> None:
        try:
            for core in cores:
                check_state(core)
                self._history.check([core])
        except InvariantViolated as violation:
            invariant, _, detail = str(violation).partition(": ")
            self.violate(invariant, detail)

    def restarted(self, member_id: int) -> None:
        """A member has a new incarnation, whose commit index may be lower."""
        self._history.forget(member_id)


class WitnessedEngine:
    """The state machine of the product; reports everything applied to the judge. Implements
    `StateMachine`."""

    def __init__(self, member_id: int, judge: Judge, engine: Engine) -> None:
        self.engine = engine
        self._member_id = member_id
        self._judge = judge
        self._last = 0
        """Index of the last batch applied by this incarnation or contained in what it loaded."""

    def starts_at(self, index: int) -> None:
        self._last = index

    def apply(self, index: int, term: int, commands: Sequence[bytes], wanted: bool) -> Sequence[object]:
        self._judge.applying(self._member_id, self._last, index, term, commands)
        self._last = index
        outcomes = self.engine.apply(index, term, commands, wanted)
        self._judge.applied(self._member_id, index, self.engine)
        return outcomes

    def apply_change(self, index: int, term: int, command: bytes, fits: bool) -> tuple[bool, object]:
        self._judge.applying(self._member_id, self._last, index, term, [command])
        self._last = index
        return self.engine.apply_change(index, term, command, fits)

    def fresh(self) -> WitnessedEngine:
        return WitnessedEngine(self._member_id, self._judge, self.engine.fresh())

    def replace(self, loaded: WitnessedEngine) -> None:
        self.engine.replace(loaded.engine)

    def peer_urls(self, member_id: int) -> tuple[str, ...] | None:
        return ()  # ids find peers in memory

    def is_removed(self, member_id: int) -> bool:
        return self.engine.is_removed(member_id)

    def drain_changes(self) -> list[Row]:
        return self.engine.drain_changes()

    def pending_change_bytes(self) -> int:
        return self.engine.pending_change_bytes()

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        self.engine.load(rows)

    def load_done(self) -> None:
        self.engine.load_done()

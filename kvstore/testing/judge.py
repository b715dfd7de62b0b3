"""Everything ever seen of a simulated cluster, held against everything that is seen next.

What one member does is compared with what any member ever did, over all crashes: who led a term, which
batch stands at an index, what the state is after it. Violations are collected, not raised, because they
are found in the middle of a member's turn, which would take an exception for its own failure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from zlib import crc32

from kvstore.engine import Engine
from raft.core.invariants import History, InvariantViolated, check_state
from raft.core.machine import RaftCore
from raft.storage.protocol import Row

HASH_EVERY = 64
"""Indexes between two comparisons of the whole state, which visits every revision ever written."""

CHECK_STATE_EVERY = 64
"""Turns of a member between two looks at its whole core, whose cost grows with the log."""


class Judge:
    """The oracles of one run."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self._leaders: dict[int, tuple[int, int]] = {}
        """Term to the only (member, life) that ever led it."""
        self._batches: dict[int, tuple[int, tuple[bytes, ...]]] = {}
        """Index to (term, commands) of every batch any member ever applied."""
        self._commands: dict[bytes, int] = {}
        """Command to the index at which it was applied; every command of a run is unique."""
        self._refused: set[bytes] = set()
        """Commands whose client was told that they never will be applied."""
        self._states: dict[int, tuple[int, int]] = {}
        """Index to (revision, hash) of the state after it."""
        self._history = History()
        self._turns = 0
        self.digest = 0
        """Of all that was applied anywhere, in order: equal for two runs of one seed."""

    @property
    def leaders(self) -> int:
        """Terms that had a leader."""
        return len(self._leaders)

    @property
    def applied_batches(self) -> int:
        """Indexes at which some member applied a batch."""
        return len(self._batches)

    def violate(self, text: str) -> None:
        self.violations.append(text)

    def leads(self, term: int, member_id: int, life: int) -> None:
        """A process became leader."""
        first = self._leaders.setdefault(term, (member_id, life))
        if first != (member_id, life):
            self.violate(f"two leaders in term {term}: member, life {first} and {(member_id, life)}")

    def applying(self, member_id: int, last: int, index: int, term: int, commands: Sequence[bytes]) -> None:
        """A member applies a batch; the one before was at `last`."""
        self.digest = crc32(b"%d %d %d" % (member_id, index, term), self.digest)
        batch = (term, tuple(commands))
        known = self._batches.setdefault(index, batch)
        if known != batch:
            self.violate(f"member {member_id} applies another batch at index {index}: {batch} not {known}")
        if index <= last:
            self.violate(f"member {member_id} goes back from index {last} to {index}")
        skipped = [between for between in range(last + 1, index) if between in self._batches]
        if skipped:
            self.violate(f"member {member_id} skips the batches at {skipped[:5]}")
        for command in commands:
            first = self._commands.setdefault(command, index)
            if first != index:
                self.violate(f"applied twice, at {first} and {index}: {command!r}")
            if command in self._refused:
                self.violate(f"applied at {index} after its client was told it never will be: {command!r}")

    def applied(self, member_id: int, index: int, engine: Engine) -> None:
        """A member has applied the batch at `index`."""
        if index % HASH_EVERY == 0:
            self.state(member_id, index, engine)

    def state(self, member_id: int, index: int, engine: Engine) -> None:
        """Compare a member's whole state with that of any other at the same index."""
        state = (engine.revision, engine.hash_kv())
        first = self._states.setdefault(index, state)
        if first != state:
            self.violate(f"member {member_id} holds another state at index {index}: {state} not {first}")

    def acknowledged(self, command: bytes) -> None:
        """A client was told that its command is applied."""
        if command not in self._commands:
            self.violate(f"acknowledged and applied nowhere: {command!r}")

    def refused(self, command: bytes) -> None:
        """A client was told that its command is not applied and never will be."""
        self._refused.add(command)
        if command in self._commands:
            self.violate(f"refused, yet applied at {self._commands[command]}: {command!r}")

    # ---- the core

    def turned(self, core: RaftCore) -> None:
        """A member has ended a turn."""
        self._turns += 1
        if self._turns % CHECK_STATE_EVERY == 0:
            self.look([core])

    def look(self, cores: Iterable[RaftCore]) -> None:
        """Check the invariants of the algorithm on whole cores."""
        try:
            for core in cores:
                check_state(core)
                self._history.check([core])
        except InvariantViolated as violation:
            self.violate(str(violation))

    def restarted(self, member_id: int) -> None:
        """A member runs as another process, which may know less to be committed."""
        self._history.forget(member_id)


class WitnessedEngine:
    """The state machine of the product, telling the judge whatever is applied. Implements `Machine`."""

    def __init__(self, member_id: int, judge: Judge, engine: Engine) -> None:
        self.engine = engine
        self._member_id = member_id
        self._judge = judge
        self._last = 0
        """Index of the last batch applied by this process or contained in its image."""

    def starts_at(self, index: int) -> None:
        """The image that was loaded stands at `index`."""
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

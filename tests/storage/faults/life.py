"""A short life of a member's storage, and what it must hold after each step: the measure of every fault.

The life writes everything that the log can hold (entries, an overwrite, a vote, a passed identity check, a
peer's disk, a compaction, rotations) and commits to the backend, whose journal is folded now and then.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from raft.core.ready import AppendToken, AppendWork
from raft.core.types import EMPTY_HARD_STATE, ConfState, Entry, EntryKind, HardState, SnapshotMeta
from raft.storage import Checkpoint, Recovered, Row

CLUSTER_ID, MEMBER_ID, DISK_ID = 7, 1, 0xD15C
CONF = ConfState((1, 2, 3))
BLOB = b"members" * 150
"""Large enough that the first frame of a segment fills several sectors."""
BASE = SnapshotMeta(0, 0, CONF)
SEGMENT_BYTES = 16 * 1024
"""The smallest allowed, so that a short life rotates."""


INSTALLED = Checkpoint(40, 5, CONF)
"""Checkpoint of another member's snapshot, which is installed towards the end."""
INSTALLED_ROWS = tuple((b"chunk%03d" % number, b"value %d" % number * 9) for number in range(200))


@dataclass(frozen=True)
class Model:
    """What a log holds, by the rules of the protocol and nothing else."""

    base: SnapshotMeta = BASE
    entries: tuple[Entry, ...] = ()
    hard_state: HardState = EMPTY_HARD_STATE
    peers: tuple[tuple[int, int], ...] = ()
    vote_eligible: bool = False

    @property
    def last_index(self) -> int:
        return self.base.index + len(self.entries)

    def differs(self, found: Recovered) -> str:
        """How a recovered log differs, '' if it does not. The commit index is a hint and may lag."""
        wrong = []
        if found.snapshot != self.base:
            wrong.append(f"base {found.snapshot[:2]} for {self.base[:2]}")
        if tuple(found.entries) != self.entries:
            wrong.append(f"{len(found.entries)} entries for {len(self.entries)}")
        if found.hard_state[:2] != self.hard_state[:2]:
            wrong.append(f"term and vote {found.hard_state[:2]} for {self.hard_state[:2]}")
        if not found.hard_state.commit <= max(self.hard_state.commit, self.base.index):
            wrong.append(f"commit {found.hard_state.commit} for {self.hard_state.commit}")
        if found.peer_disks != self.peers:
            wrong.append(f"peers {found.peer_disks}")
        if found.vote_eligible != self.vote_eligible:
            wrong.append("vote eligibility")
        return ", ".join(wrong)


@dataclass(frozen=True)
class Step:
    """One thing done to the log, and the model after it."""

    after: Model
    work: AppendWork | None = None
    peer: tuple[int, int] | None = None
    """Another member's disk to record."""
    vote_eligible_step: bool = False
    compact: SnapshotMeta | None = None

    @property
    def installs(self) -> bool:
        """A snapshot becomes the backend, and the log begins after it."""
        return self.work is not None and self.work.snapshot is not None

    @property
    def quiet(self) -> bool:
        """Its durability is not reported; later steps are durable after it."""
        return self.vote_eligible_step or self.compact is not None


@dataclass(frozen=True)
class Life:
    """Steps on the log, and commits of the backend between them."""

    steps: tuple[Step, ...]
    commits: dict[int, tuple[Checkpoint, tuple[Row, ...]]] = field(default_factory=dict)
    """After step number (from 1): a commit of the backend."""

    def models(self) -> list[tuple[Model, ...]]:
        """The log after 0, 1, ... steps: as written here, and without the compaction, which waits for the
        backend."""
        found: list[tuple[Model, ...]] = [(Model(),)]
        whole: tuple[Entry, ...] = ()
        for step in self.steps:
            model = step.after
            if step.installs or found[-1][0].base.index == INSTALLED.index:
                found.append((model,))
            elif model.base.index:
                whole = whole[: model.base.index] + model.entries
                found.append((model, replace(model, base=BASE, entries=whole)))
            else:
                whole = model.entries
                found.append((model,))
        return found

    def backend_rows(self) -> dict[int, dict[bytes, bytes]]:
        """The backend's rows by its index."""
        rows: dict[bytes, bytes] = {}
        found = {0: dict(rows), INSTALLED.index: dict(INSTALLED_ROWS)}
        for mark, changes in [commit for _, commit in sorted(self.commits.items())]:
            if mark.index > INSTALLED.index and max(found) == INSTALLED.index:
                rows = dict(INSTALLED_ROWS)
            for key, value in changes:
                if value is None:
                    rows.pop(key, None)
                else:
                    rows[key] = value
            found[mark.index] = dict(rows)
        return found


def make_life() -> Life:
    """The life every campaign runs."""
    steps: list[Step] = []
    model = Model()

    def add(after: Model, **what: object) -> None:
        nonlocal model
        model = after
        steps.append(Step(after, **what))  # type: ignore[arg-type]  # one of Step's fields

    def append(count: int, size: int, term: int, back: int = 0) -> None:
        first = model.last_index + 1 - back
        data = bytes([1 + len(steps)]) * size
        entries = [Entry(term, first + i, EntryKind.NORMAL, data) for i in range(count)]
        hard = HardState(term, 2, max(model.hard_state.commit, min(first - 1, model.last_index - back)))
        kept = model.entries[: len(model.entries) - back]
        work = AppendWork(
            AppendToken(term, len(steps), first + count - 1, term), entries, hard, must_sync=True
        )
        add(replace(model, entries=kept + tuple(entries), hard_state=hard), work=work)

    vote = HardState(1, 2, 0)
    add(
        replace(model, hard_state=vote),
        work=AppendWork(AppendToken(1, 0, 0, 0), hard_state=vote, must_sync=True),
    )
    add(replace(model, vote_eligible=True), vote_eligible_step=True)
    append(1, 40, 1)
    append(2, 700, 1)
    add(replace(model, peers=((2, 22),)), peer=(2, 22))
    append(3, 100, 2, back=1)
    append(1, 3900, 2)
    append(1, 3900, 2)
    append(1, 3900, 2)
    append(1, 3800, 3)
    base = SnapshotMeta(model.hard_state.commit, 2, CONF)
    kept = model.entries[base.index - model.base.index :]
    add(replace(model, base=base, entries=kept), compact=base)
    append(3, 1200, 3)
    append(1, 3900, 3)
    append(1, 0, 4)
    hard = HardState(5, 0, INSTALLED.index)
    add(
        replace(model, base=SnapshotMeta(*INSTALLED), entries=(), hard_state=hard),
        work=AppendWork(
            AppendToken(5, len(steps), INSTALLED.index, 5),
            hard_state=hard,
            snapshot=SnapshotMeta(*INSTALLED),
            must_sync=True,
        ),
    )
    append(1, 600, 5)
    append(1, 20, 5)
    commits = {}
    for number in (4, 6, 7, 8, 9, 10, 12, 13, 17):
        at = steps[number - 1].after
        index = at.hard_state.commit
        term = at.base.term if index == at.base.index else at.entries[index - at.base.index - 1].term
        rows: list[Row] = [(b"row%02d" % i, b"%d" % number * 120) for i in range(number % 3, 40, 3)]
        if index > max([mark.index for mark, _ in commits.values()], default=0):
            commits[number] = (Checkpoint(index, term, CONF), (*rows, (b"row%02d" % number, None)))
    assert max(mark.index for number, (mark, _) in commits.items() if number <= 10) >= base.index, (
        "the log is compacted up to what the backend holds"
    )
    return Life(tuple(steps), commits)

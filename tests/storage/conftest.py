"""A member's directory on the real disk and on `MemoryFiles`, and a model of what it must hold."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from raft.core.ready import AppendToken, AppendWork
from raft.core.types import EMPTY_HARD_STATE, ConfState, Entry, EntryKind, HardState, SnapshotMeta
from raft.storage import (
    Bootstrap,
    FileSystem,
    InlineBackground,
    MemberDirectory,
    MemoryBackendOpener,
    MemoryFiles,
    RealFiles,
    Recovered,
    open_member,
)
from raft.storage.log_recovery import LogContents

CONF = ConfState((1, 2, 3))
BASE = SnapshotMeta(0, 0, CONF)
BLOB = b"members" * 150
"""Large enough that the first frame of a segment fills several sectors."""
SEGMENT_BYTES = 16 * 1024
"""The smallest allowed, so that short workloads rotate."""


@dataclass
class Disk:
    """A file system and the path of a data directory on it."""

    files: FileSystem
    path: str
    opened: list[MemberDirectory] = field(default_factory=list)

    async def open(self, **overrides: Any) -> MemberDirectory:
        options: dict[str, Any] = {
            "cluster_id": 7,
            "member_id": 1,
            "bootstrap": Bootstrap(conf=CONF, blob=BLOB),
            "segment_bytes": SEGMENT_BYTES,
            "new_disk_id": lambda: 0xD15C,
        }
        if isinstance(self.files, MemoryFiles):
            options["open_state"] = MemoryBackendOpener(self.files)
            options["background"] = InlineBackground()
        member = await open_member(self.files, self.path, **{**options, **overrides})
        self.opened.append(member)
        return member

    def abandon(self) -> None:
        """Close what a failed test left open: a thread of SQLite's connection would outlive the run."""
        for member in self.opened:
            connection = getattr(member.state, "_connection", None)
            if connection is not None:
                connection.stop()
            member.snapshot_store.close()

    def segments(self) -> list[str]:
        """Paths of the log's segments, oldest first."""
        directory = f"{self.path}/wal"
        return [f"{directory}/{name}" for name in self.files.list(directory) if name.endswith(".wal")]

    def read(self, path: str) -> bytes:
        file = self.files.open(path)
        data = file.pread(file.size(), 0)
        file.close()
        return data

    def edit(self, path: str, change: Callable[[bytearray], None]) -> None:
        """Corrupt a file without a counted operation."""
        if isinstance(self.files, MemoryFiles):
            self.files.damage(path, change)
            return
        data = bytearray(Path(path).read_bytes())
        change(data)
        Path(path).write_bytes(data)

    def contents(self) -> dict[str, bytes]:
        """Every byte under the directory, to show that nothing was touched."""
        found = {path: self.read(path) for path in self.segments()}
        state = f"{self.path}/state.db"
        return {**found, state: self.read(state)} if self.files.exists(state) else found


async def close(member: MemberDirectory) -> None:
    member.log.close()
    await member.state.close()
    member.release()


@dataclass
class Model:
    """What a log holds after some works, by the rules of the protocol and nothing else."""

    base: SnapshotMeta = BASE
    entries: list[Entry] = field(default_factory=list)
    state: HardState = EMPTY_HARD_STATE

    @property
    def last_index(self) -> int:
        return self.base.index + len(self.entries)

    def after(self, work: AppendWork) -> Model:
        base, entries = self.base, list(self.entries)
        if work.snapshot is not None:
            base, entries = work.snapshot, []
        if work.entries:
            del entries[work.entries[0].index - base.index - 1 :]
            entries += work.entries
        return Model(base, entries, work.hard_state or self.state)

    def compacted(self, snapshot: SnapshotMeta) -> Model:
        return replace(self, base=snapshot, entries=self.entries[snapshot.index - self.base.index :])

    def matches(self, found: Recovered | LogContents) -> bool:
        expected = self.state._replace(commit=max(self.state.commit, self.base.index))
        return (
            found.hard_state == expected
            and found.snapshot == self.base
            and list(found.entries) == self.entries
        )


def append(sequence: int, model: Model, count: int, size: int, *, term: int = 0, back: int = 0) -> AppendWork:
    """Work that appends `count` entries after dropping `back` of the model's last ones."""
    term = term or max(model.state.term, 1)
    first = model.last_index + 1 - back
    data = bytes([1 + sequence % 255]) * size
    entries = [Entry(term, first + i, EntryKind.NORMAL, data) for i in range(count)]
    return AppendWork(
        token=AppendToken(term, sequence, first + count - 1, term),
        entries=entries,
        hard_state=HardState(term, 1, max(model.state.commit, min(first - 1, model.last_index - back))),
        must_sync=True,
    )


class Kit:
    """Everything above, for tests."""

    Disk = Disk
    Model = Model
    CONF = CONF
    BLOB = BLOB
    close = staticmethod(close)
    append = staticmethod(append)

    @staticmethod
    def in_memory(*, sync_works: bool = True) -> Disk:
        return Disk(MemoryFiles(sync_works=sync_works), "/member")

    @staticmethod
    def real() -> RealFiles:
        return RealFiles()

    @staticmethod
    def seeded(seed: int) -> random.Random:
        print(f"seed {seed}")
        return random.Random(seed)


@pytest.fixture
def kit() -> type[Kit]:
    return Kit


@pytest.fixture(params=["real", "memory"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "real":
        real = Disk(RealFiles(), str(tmp_path / "member"))
        yield real
        real.abandon()
    else:
        yield Kit.in_memory()

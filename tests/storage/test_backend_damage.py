"""A corrupted backend is refused or harmless; it never returns wrong rows.

Bit flips, truncations and old copies of the file and of its journal, on SQLite's real bytes. Harmless means
that the file holds the rows of its last commit, or of an earlier one, which the log can bring up to date.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raft.core.types import ConfState
from raft.storage import Checkpoint, Damaged, DirectoryUnrecognized, FormatUnknown, StorageError, backend
from raft.storage.storage_protocol import Identity

CONF = ConfState((1, 2, 3))
IDENTITY = Identity(cluster_id=7, member_id=1, disk_id=5)
COMMITS = 12
REFUSALS = (Damaged, DirectoryUnrecognized, FormatUnknown)

Contents = tuple[Checkpoint, list[tuple[bytes, bytes]]]


def rows_of(commit: int) -> list[tuple[bytes, bytes | None]]:
    rng = random.Random(commit)
    rows: list[tuple[bytes, bytes | None]] = [
        (b"key%03d" % rng.randrange(160), rng.randbytes(rng.choice([0, 10, 90, 300]))) for _ in range(25)
    ]
    return [*rows, (b"key%03d" % rng.randrange(160), None)]


def models() -> list[Contents]:
    """The file's mark and rows after each commit, from the empty one on."""
    contents: dict[bytes, bytes] = {}
    found: list[Contents] = [(Checkpoint(0, 0, ConfState()), [])]
    for commit in range(1, COMMITS + 1):
        for key, value in rows_of(commit):
            if value is None:
                contents.pop(key, None)
            else:
                contents[key] = value
        found.append((Checkpoint(commit * 10, 1, CONF), sorted(contents.items())))
    return found


MODELS = models()


async def commit(state: Any, number: int) -> None:
    await state.commit(MODELS[number][0], rows_of(number))


async def read(path: Path) -> Contents:
    """The file's mark and rows; raises StorageError. Leaves nothing open."""
    state = await backend.open_sqlite_backend(str(path), IDENTITY)
    try:
        return await state.mark(), [row async for chunk in state.scan(b"", None) for row in chunk]
    finally:
        await state.close()


def snapshot(folder: Path, target: Path) -> Path:
    """A copy of the file and its journal; the index of the journal is no data."""
    target.mkdir()
    for name in ("state.db", "state.db-wal"):
        if (folder / name).exists():
            shutil.copyfile(folder / name, target / name)
    return target / "state.db"


async def build(folder: Path, monkeypatch: pytest.MonkeyPatch, *, fold_after: int) -> list[Path]:
    """A life of `COMMITS` commits, the journal folded every `fold_after`; a copy after each commit."""
    monkeypatch.setattr(backend, "CHECKPOINT_BYTES", 1 << 40)
    live = folder / "live"
    live.mkdir()
    state = await backend.open_sqlite_backend(str(live / "state.db"), IDENTITY)
    copies = [snapshot(live, folder / "0")]
    for number in range(1, COMMITS + 1):
        fold = number % fold_after == 0
        monkeypatch.setattr(backend, "CHECKPOINT_BYTES", 0 if fold else 1 << 40)
        await commit(state, number)
        copies.append(snapshot(live, folder / str(number)))
    await state.close()
    return copies


async def outcome(path: Path) -> Contents | str:
    """The contents of an altered file, or the refusal, which must repeat at the next attempt."""
    try:
        return await read(path)
    except REFUSALS as refusal:
        text = str(refusal)
        assert "\n" not in text
        assert str(path) in text
        with pytest.raises(REFUSALS):
            await read(path)
        return text


def flip(path: Path, rng: random.Random) -> tuple[int, int]:
    data = bytearray(path.read_bytes())
    at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
    data[at] ^= bit
    path.write_bytes(data)
    return at, bit


@pytest.mark.parametrize(
    ("name", "fold_after"), [("state.db", COMMITS), ("state.db", 7), ("state.db-wal", 7)]
)
@pytest.mark.asyncio
async def test_a_flipped_bit_is_refused_or_harmless(
    name: str, fold_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the whole journal is folded, every page counts; else the journal holds most of the data."""
    flips = int(os.environ.get("KVSTORE_FLIPS", "80"))
    rng = random.Random(3)
    copies = await build(tmp_path, monkeypatch, fold_after=fold_after)
    source = copies[COMMITS].parent
    refused = 0
    for number in range(flips):
        path = snapshot(source, tmp_path / f"flip{number}")
        position = flip(path.parent / name, rng)
        found = await outcome(path)
        refused += isinstance(found, str)
        assert isinstance(found, str) or found in MODELS, f"flip {position} in {name} was not detected"
        shutil.rmtree(path.parent)
    assert await read(copies[COMMITS]) == MODELS[COMMITS]
    assert refused > flips // 10 or fold_after < COMMITS, "the flips met nothing that counts"


@pytest.mark.asyncio
async def test_a_truncated_file_or_journal_is_refused_or_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(4)
    copies = await build(tmp_path, monkeypatch, fold_after=7)
    source = copies[COMMITS].parent
    for name in ("state.db", "state.db-wal"):
        size = (source / name).stat().st_size
        positions = [
            0,
            1,
            99,
            100,
            512,
            4095,
            *range(4096, size, 4096),
            *(rng.randrange(size) for _ in range(20)),
        ]
        for number, kept in enumerate(positions):
            path = snapshot(source, tmp_path / f"{name}{number}")
            os.truncate(path.parent / name, kept)
            found = await outcome(path)
            assert isinstance(found, str) or found in MODELS, f"{name} of {kept} bytes was not detected"
            shutil.rmtree(path.parent)


@pytest.mark.asyncio
async def test_old_copies_beside_new_ones_are_refused_or_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every old file beside every other journal: SQLite alone would apply one to the other."""
    copies = await build(tmp_path, monkeypatch, fold_after=3)
    mixed = refused = 0
    for old in range(COMMITS + 1):
        for new in range(COMMITS + 1):
            target = tmp_path / f"mix{mixed}"
            target.mkdir()
            shutil.copyfile(copies[old], target / "state.db")
            shutil.copyfile(f"{copies[new]}-wal", target / "state.db-wal")
            found = await outcome(target / "state.db")
            refused += isinstance(found, str)
            assert isinstance(found, str) or found in MODELS, f"file of {old}, journal of {new}"
            shutil.rmtree(target)
            mixed += 1
    assert 0 < refused < mixed


@pytest.mark.asyncio
async def test_a_changed_row_differs_from_a_read_that_failed(tmp_path: Path) -> None:
    """The refusal names the damage and how to rejoin."""
    path = tmp_path / "state.db"
    state = await backend.open_sqlite_backend(str(path), IDENTITY)
    await commit(state, 1)
    await state.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE rows SET value = x'00' WHERE key = (SELECT min(key) FROM rows)")
    connection.commit()
    connection.close()
    with pytest.raises(StorageError, match=r"row .* was changed.*add it again as a new member"):
        await read(path)


def test_an_interrupted_creation_starts_again(tmp_path: Path) -> None:
    """SQLite writes the first pages under a journal of another kind, which only a writer may roll back."""
    path = tmp_path / "state.db"
    worker = (
        "import os, sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('PRAGMA cache_size = 2')\n"
        "connection.execute('CREATE TABLE t (x)')\n"
        "connection.execute('BEGIN')\n"
        "connection.executemany('INSERT INTO t VALUES (?)', [(bytes(3000),)] * 50)\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", worker, str(path)], check=True, timeout=60)
    assert Path(f"{path}-journal").stat().st_size
    assert path.stat().st_size
    assert asyncio.run(read(path)) == MODELS[0]

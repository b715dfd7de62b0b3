"""Backups: reading one, and creating a member from its rows.

A backup is a copy of a backend, checksums included, followed by the SHA-256 of the copy. SQLite's pages
make its size a multiple of 512 bytes plus 32, as etcd's tools require of a snapshot.

A restored member's log has a base above 0: the state replaces that prefix, so a member that joins later
cannot receive it as entries and receives a snapshot. Everything is durable before the first segment of the
log gets its name, which is the moment the member exists.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from raft.core.types import SnapshotMeta
from raft.storage.backend import open_sqlite_backend
from raft.storage.backend_check import READ_MARK, check_rows, connect_alone, decode_mark, inspect_alone
from raft.storage.directory import LOCK_NAME, LOG_NAME, Bootstrap
from raft.storage.files import FileSystem
from raft.storage.records import BootstrapItem
from raft.storage.snapshot_store import state_name
from raft.storage.storage_errors import Damaged, DirectoryUnrecognized, SnapshotInvalid
from raft.storage.storage_protocol import Checkpoint, Identity
from raft.storage.wal import SEGMENT_BYTES_DEFAULT, create_log

DIGEST_BYTES = 32
"""SHA-256, at the end of a backup."""

COPY_BYTES = 1 << 20
"""Bytes per read."""

HEADER_BYTES = 20
"""Enough to tell what kind of file it is."""

BBOLT_MAGIC = (0xED0CDAED).to_bytes(4, "little")
"""At byte 16 of the databases of etcd, whose snapshots are such files."""

FIRST_TERM = 1
"""Term of a restored log's base; no entry has it."""

_NEW_LOG_NAME = "wal.new"
_OLD_LOG_NAME = "wal.old"


class Backup(NamedTuple):
    mark: Checkpoint
    rows: dict[bytes, bytes]
    size_bytes: int
    """Of the file, its digest included."""


def read_backup(path: str, *, check_digest: bool | None = True) -> Backup:
    """Read and verify a backup where it lies; writes nothing.

    `check_digest=False` ignores the digest, and so takes a bare copy of a backend too; None checks it where
    there is one. Rows are verified all the same. Raises SnapshotInvalid, FormatUnknown or OSError.
    """
    size = _check_kind(path)
    has_digest = size % 512 == DIGEST_BYTES
    if check_digest and not has_digest:
        raise SnapshotInvalid("snapshot missing hash but --skip-hash-check=false")
    if has_digest and check_digest is not False:
        _check_digest(path, size - DIGEST_BYTES)
    try:
        inspect_alone(path)
        return Backup(*_read(path), size)
    except sqlite3.Error as error:
        raise SnapshotInvalid(f"snapshot file integrity check failed: {path}: {error}") from error
    except Damaged as error:
        raise SnapshotInvalid(f"snapshot file integrity check failed: {path}: {error.what}") from error


def _check_kind(path: str) -> int:
    """The size of a file that begins as a backend does. Raises SnapshotInvalid for another file."""
    with open(path, "rb") as file:
        header = file.read(HEADER_BYTES)
        if header.startswith(b"SQLite format 3\0"):
            return os.fstat(file.fileno()).st_size
    if header[16:20] == BBOLT_MAGIC:
        raise SnapshotInvalid(
            f"invalid database: {path} is a snapshot of etcd, which only etcd's own tools restore;"
            " to take over its keys, restore it there and mirror them (make-mirror)"
        )
    raise SnapshotInvalid(f"invalid database: {path} is not a snapshot")


def _check_digest(path: str, size: int) -> None:
    """Compare the first `size` bytes of the file with the digest behind them."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while size:
            data = file.read(min(size, COPY_BYTES))
            if not data:
                raise SnapshotInvalid(f"{path} became shorter while it was read")
            digest.update(data)
            size -= len(data)
        stated = file.read()
    if digest.digest() != stated:
        raise SnapshotInvalid(f"expected sha256 {_go_bytes(stated)}, got {_go_bytes(digest.digest())}")


def _go_bytes(data: bytes) -> str:
    """As Go prints an array of bytes, and so etcd a digest."""
    return f"[{' '.join(map(str, data))}]"


def _read(path: str) -> tuple[Checkpoint, dict[bytes, bytes]]:
    connection = connect_alone(path)
    try:
        mark = decode_mark(path, connection.execute(READ_MARK).fetchone()).mark
        return mark, dict(_rows(connection, path))
    finally:
        connection.close()


def _rows(connection: sqlite3.Connection, path: str) -> Iterator[tuple[bytes, bytes]]:
    cursor = connection.execute("SELECT key, value, sum FROM rows ORDER BY key")
    while chunk := cursor.fetchmany(2048):
        yield from check_rows(path, chunk)


async def create_member_with_state(
    files: FileSystem,
    path: str,
    identity: Identity,
    bootstrap: Bootstrap,
    rows: Mapping[bytes, bytes],
    *,
    segment_bytes: int = SEGMENT_BYTES_DEFAULT,
) -> None:
    """Create a member at `path` whose state is `rows`. Blocks on the disk.

    When it fails, the directory is as empty as before, so that it can be called again. Raises
    DirectoryUnrecognized when the directory is not empty, DirectoryLocked, BackendFull, BackendFailed or
    OSError.
    """
    try:
        files.make_directory(path)
    except FileExistsError:
        raise _unusable(path) from None
    if [name for name in files.list(path) if name not in (LOCK_NAME, "lost+found")]:
        raise _unusable(path)
    lock = files.lock(f"{path}/{LOCK_NAME}")
    try:
        base = SnapshotMeta(1, FIRST_TERM, bootstrap.conf)
        await _write_state(files, path, identity, base, rows)
        _write_log(files, path, LOG_NAME, identity, bootstrap, base, segment_bytes)
        files.sync_directory(os.path.dirname(path) or ".")
    except BaseException:
        _discard(files, f"{path}/{LOG_NAME}")  # first: with the log the member is gone
        _discard_state(files, path, base)
        raise
    finally:
        lock.release()


def _unusable(path: str) -> DirectoryUnrecognized:
    return DirectoryUnrecognized(f'data-dir "{path}" not empty or could not be read')  # etcd's words


async def replace_member(
    files: FileSystem,
    path: str,
    identity: Identity,
    bootstrap: Bootstrap,
    rows: Mapping[bytes, bytes],
    *,
    backend: int,
    segment_bytes: int = SEGMENT_BYTES_DEFAULT,
) -> None:
    """Give the member at `path`, whose lock the caller holds, another identity and `rows` as its state.

    `backend` is the index in the name of the current backend (`SnapshotStore.in_use`). After a crash the
    directory holds the old member or the new one, or `finish_replacement` completes the new one.
    Raises BackendFull, BackendFailed or OSError.
    """
    _discard(files, f"{path}/{_NEW_LOG_NAME}")
    base = SnapshotMeta(backend + 1, FIRST_TERM, bootstrap.conf)
    await _write_state(files, path, identity, base, rows)
    _write_log(files, path, _NEW_LOG_NAME, identity, bootstrap, base, segment_bytes)
    files.rename(f"{path}/{LOG_NAME}", f"{path}/{_OLD_LOG_NAME}")
    files.sync_directory(path)
    _finish(files, path)


def finish_replacement(files: FileSystem, path: str) -> None:
    """Complete a replacement that a crash interrupted; otherwise do nothing.

    Raises DirectoryLocked while another process runs one.
    """
    if any(files.exists(f"{path}/{name}") for name in (_OLD_LOG_NAME, _NEW_LOG_NAME)):
        lock = files.lock(f"{path}/{LOCK_NAME}")
        try:
            _finish(files, path)
        finally:
            lock.release()


def _finish(files: FileSystem, path: str) -> None:
    old, new = f"{path}/{_OLD_LOG_NAME}", f"{path}/{_NEW_LOG_NAME}"
    if files.exists(old) and files.exists(new):
        files.rename(new, f"{path}/{LOG_NAME}")
        files.sync_directory(path)
    _discard(files, old)
    _discard(files, new)


def _discard(files: FileSystem, directory: str) -> None:
    if files.exists(directory):
        for name in files.list(directory):
            files.unlink(f"{directory}/{name}")
        os.rmdir(directory)


def _discard_state(files: FileSystem, path: str, base: SnapshotMeta) -> None:
    name = f"{path}/{state_name(base.index)}"
    for stale in (name, f"{name}-wal", f"{name}-shm"):
        if files.exists(stale):
            files.unlink(stale)


async def _write_state(
    files: FileSystem, path: str, identity: Identity, base: SnapshotMeta, rows: Mapping[bytes, bytes]
) -> None:
    _discard_state(files, path, base)
    name = f"{path}/{state_name(base.index)}"
    state = await open_sqlite_backend(name, identity)
    try:
        await state.commit(Checkpoint(base.index, base.term, base.conf), list(rows.items()))
    finally:
        await state.close()


def _write_log(
    files: FileSystem,
    path: str,
    name: str,
    identity: Identity,
    bootstrap: Bootstrap,
    base: SnapshotMeta,
    segment_bytes: int,
) -> None:
    files.make_directory(f"{path}/{name}")
    files.sync_directory(path)
    item = BootstrapItem(bootstrap.conf, bootstrap.blob)
    create_log(files, f"{path}/{name}", identity, item, segment_bytes, base=base)

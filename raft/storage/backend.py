"""The backend of a real node: SQLite through aiosqlite, off the request path.

One commit is one large transaction, durable when it returns (WAL journal, synchronous=FULL, both read
back). The journal is folded into the file after a commit, never inside one. Every call is a hop to the
connection's thread, so calls are few and rows many.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import aiosqlite

from raft.core.types import ConfState
from raft.storage.backend_check import (
    APPLICATION_ID,
    READ_MARK,
    StoredMark,
    check_rows,
    check_version,
    decode_mark,
    inspect,
    mark_values,
    row_checksum,
)
from raft.storage.files import RealFiles
from raft.storage.records import FORMAT_VERSION
from raft.storage.storage_errors import BackendFailed, BackendFull, Damaged, DirectoryUnrecognized
from raft.storage.storage_protocol import Checkpoint, Identity, Row

CHECKPOINT_BYTES = 16 * 1024 * 1024
"""The journal is folded into the file when it passes this: large enough to be rare and to merge
rewrites of the same pages, small enough that folding takes well under a second."""

SCAN_ROWS = 2048
"""Rows per chunk of a scan: a hop to the thread costs as much as reading some hundred rows."""

PUT_ROWS = 128
"""Rows per statement of a commit. The interpreter's lock is given up and taken back around each statement:
with one row a statement, the connection's thread and the loop would wait for each other at every row."""

CACHE_KIB = 16 * 1024
"""SQLite's page cache. The rows of a commit are spread over some thousand pages of 4 KiB; pages that do not
fit are written to the journal early, and again when the next row changes them."""

COPY_LOOK_STEPS = 10_000
"""Steps of SQLite's virtual machine between two checks for cancellation of a copy: some milliseconds."""

BUSY_TIMEOUT_MS = 5000
"""Only our own connections share the file; a writer meets a reader only when it folds the journal."""

_SCHEMA = (
    "CREATE TABLE rows (key BLOB PRIMARY KEY, value BLOB NOT NULL, sum INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE mark (only INTEGER PRIMARY KEY, log_index, log_term, conf, identity, folded, sum)",
)
_PUT = (
    "INSERT INTO rows (key, value, sum) VALUES (?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value, sum = excluded.sum"
)
_PUT_MANY = _PUT.replace("(?, ?, ?)", ", ".join(["(?, ?, ?)"] * PUT_ROWS))
_DELETE = "DELETE FROM rows WHERE key = ?"
_NEW_MARK = "INSERT INTO mark VALUES (0, ?, ?, ?, ?, ?, ?)"
_MARK = "UPDATE mark SET log_index = ?, log_term = ?, conf = ?, identity = ?, folded = ?, sum = ?"


def encode_identity(identity: Identity) -> bytes:
    """24 bytes: cluster, member and disk id, little-endian."""
    return b"".join(
        number.to_bytes(8, "little") for number in (identity.cluster_id, identity.member_id, identity.disk_id)
    )


def check_identity(path: str, stored: bytes, identity: Identity) -> None:
    """Raise DirectoryUnrecognized when the backend belongs to another member or disk than its log."""
    if stored != encode_identity(identity):
        raise DirectoryUnrecognized(
            f"{path}: the backend belongs to another member or disk than the log beside it"
        )


def check_cluster(path: str, stored: bytes, identity: Identity) -> None:
    """Raise DirectoryUnrecognized when a snapshot comes from another cluster."""
    if stored[:8] != encode_identity(identity)[:8]:
        raise DirectoryUnrecognized(f"{path}: the snapshot belongs to another cluster")


class SqliteBackend:
    """Implements `Backend`. Make one with `open_sqlite_backend`."""

    def __init__(self, path: str, identity: Identity) -> None:
        self._path = path
        self._identity = identity
        self._connection: aiosqlite.Connection | None = None
        """The writing connection; None after an error until the next call reopens it."""
        self._mark = Checkpoint(0, 0, ConfState())
        """As last read from or committed to the file."""
        self._folded = 0
        """Index at which the journal was last folded into the file, all of it."""
        self._copying = False
        """A copy is being made: its read transaction keeps the journal from being folded."""
        self._closed = False

    async def mark(self) -> Checkpoint:
        await self._connect()
        return self._mark

    async def commit(self, mark: Checkpoint, rows: Sequence[Row]) -> None:
        """See Backend. Raises BackendFull (unchanged, try later) or BackendFailed."""
        connection = await self._connect()
        if mark.index <= self._mark.index:
            raise BackendFailed(f"{self._path}: cannot go from index {self._mark.index} to {mark.index}")
        final = dict(rows)  # the last change of a key wins
        try:
            await connection.execute("BEGIN IMMEDIATE")
            rest: list[bytes] = []
            await connection.executemany(_PUT_MANY, _puts(final, rest))
            await connection.executemany(_PUT, (_values(final, [key]) for key in rest))
            if None in final.values():
                await connection.executemany(_DELETE, _deletes(final))
            stored = StoredMark(mark, encode_identity(self._identity), self._folded)
            await connection.execute(_MARK, mark_values(stored))
            await connection.commit()
        except sqlite3.Error as error:
            await self._recover(mark, error)
        except BaseException:
            await self._disconnect()  # cancelled half-way: the transaction must not linger
            raise
        self._mark = mark
        await self._checkpoint()

    async def _recover(self, wanted: Checkpoint, error: sqlite3.Error) -> None:
        """After a failed commit the outcome is unknown: discard the connection and read the mark back."""
        await self._disconnect()
        await self._connect()
        if self._mark != wanted:
            raise _translate(self._path, error) from error

    async def _checkpoint(self) -> None:
        """Fold the journal into the file when it has grown. The commit is durable either way."""
        if self._copying or self._connection is None or _size(self._path + "-wal") < CHECKPOINT_BYTES:
            return
        try:
            async with self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)") as cursor:
                row = await cursor.fetchone()
            if row is not None and not row[0]:  # else a reader kept part of it from being folded
                self._folded = self._mark.index
        except sqlite3.Error as error:
            translated = _translate(self._path, error)
            await self._disconnect()
            if not isinstance(translated, BackendFull):
                raise translated from error
            # Disk full: the journal grows until there is space again, or a commit raises BackendFull.

    def copy_to(self, path: str, wanted: Callable[[], bool]) -> Checkpoint:
        """See Backend. Runs beside the writer, on a connection of its own."""
        self._copying = True
        try:
            connection = sqlite3.connect(self._path, isolation_level=None)
            try:
                connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
                connection.set_progress_handler(lambda: not wanted(), COPY_LOOK_STEPS)
                connection.execute("VACUUM INTO ?", (path,))
            finally:
                connection.close()
            mark = _read_copy(path)
            _sync(path)  # SQLite does not
        except (sqlite3.Error, OSError) as error:
            raise _translate(path, error) from error
        finally:
            self._copying = False
        return mark

    async def scan(self, low: bytes, high: bytes | None) -> AsyncIterator[Sequence[tuple[bytes, bytes]]]:
        """See Backend. Reads the state as of its first chunk, whatever is committed meanwhile.

        Raises Damaged when a row fails its checksum.
        """
        query, bounds = "SELECT key, value, sum FROM rows WHERE key >= ?", [low]
        if high is not None:
            query, bounds = query + " AND key < ?", [low, high]
        try:
            connection = await _open(self._path)
            try:
                async with connection.execute(query + " ORDER BY key", bounds) as cursor:
                    while chunk := await cursor.fetchmany(SCAN_ROWS):
                        yield check_rows(self._path, chunk)
            finally:
                await connection.close()
        except sqlite3.Error as error:
            raise _translate(self._path, error) from error

    def size_bytes(self) -> int:
        """The file with its journal."""
        return _size(self._path) + _size(self._path + "-wal")

    async def close(self) -> None:
        """Close the connection; SQLite folds the journal unless the disk is full."""
        self._closed = True
        await self._disconnect()

    async def _connect(self) -> aiosqlite.Connection:
        if self._closed:
            raise BackendFailed(f"{self._path}: the backend is closed")
        if self._connection is None:
            try:
                # Nothing in the journal: all of it is in the file.
                whole = not _size(self._path + "-wal")
                connection = await _open(self._path)
                try:
                    stored = await _read_mark(connection, self._path, self._identity)
                    self._mark = stored.mark
                    self._folded = stored.mark.index if whole else stored.folded
                except BaseException:
                    await connection.close()
                    raise
            except sqlite3.Error as error:
                raise _translate(self._path, error) from error
            self._connection = connection
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close()
            except sqlite3.Error as error:
                # Closing may fold the journal. A full disk loses nothing: the next open finds the journal.
                if not isinstance(_translate(self._path, error), BackendFull):
                    raise BackendFailed(f"{self._path}: {error}") from error


def _puts(final: dict[bytes, bytes | None], rest: list[bytes]) -> Iterator[Sequence[bytes | int | None]]:
    """The values of statements for PUT_ROWS rows each; the keys left over go to `rest`.

    Ascending keys: neighbours share a page, which then changes once. Consumed on the connection's thread,
    sorting included.
    """
    keys = sorted(key for key, value in final.items() if value is not None)
    whole = len(keys) - len(keys) % PUT_ROWS
    for start in range(0, whole, PUT_ROWS):
        yield _values(final, keys[start : start + PUT_ROWS])
    rest += keys[whole:]


def _values(final: dict[bytes, bytes | None], keys: Sequence[bytes]) -> Sequence[bytes | int | None]:
    values: list[bytes | int | None] = []
    for key in keys:
        value = final[key]
        assert value is not None
        values += (key, value, row_checksum(key, value))
    return values


def _deletes(final: dict[bytes, bytes | None]) -> Iterator[tuple[bytes]]:
    return ((key,) for key, value in final.items() if value is None)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _translate(path: str, error: sqlite3.Error | OSError) -> BackendFull | BackendFailed | Damaged:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
        return BackendFull(f"{path}: disk full")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Damaged(f"backend is damaged ({error})", path)
    return BackendFailed(f"{path}: {error}")


async def _pragma(connection: aiosqlite.Connection, text: str) -> object:
    async with connection.execute(f"PRAGMA {text}") as cursor:
        row = await cursor.fetchone()
    return row[0] if row is not None else None


def _inspect(path: str) -> None:
    try:
        inspect(path)
    except (sqlite3.Error, OSError) as error:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR:
            # Our own schema supports every statement of `inspect`.
            raise Damaged(f"backend is damaged ({error})", path) from error
        raise _translate(path, error) from error


async def _open(path: str) -> aiosqlite.Connection:
    """A connection with our settings, each read back."""
    connection = await aiosqlite.connect(path, isolation_level=None)
    try:
        version = await _pragma(connection, "user_version")
        application = await _pragma(connection, "application_id")
        if version or application:  # a new file has neither, and gets its settings below
            if application != APPLICATION_ID:
                raise Damaged("not a backend file", path)
            assert isinstance(version, int)
            check_version(path, version)
        await _pragma(connection, f"busy_timeout = {BUSY_TIMEOUT_MS}")
        mode = await _pragma(connection, "journal_mode = WAL")
        await _pragma(connection, "synchronous = FULL")
        await _pragma(connection, "wal_autocheckpoint = 0")
        await _pragma(connection, f"cache_size = -{CACHE_KIB}")
        synchronous = await _pragma(connection, "synchronous")
        if mode != "wal" or synchronous != 2:
            raise BackendFailed(f"{path}: SQLite refuses durable settings ({mode=}, {synchronous=})")
    except BaseException:
        await connection.close()
        raise
    return connection


async def _read_mark(connection: aiosqlite.Connection, path: str, identity: Identity) -> StoredMark:
    async with connection.execute(READ_MARK) as cursor:
        row = await cursor.fetchone()
    stored = decode_mark(path, row)
    check_identity(path, stored.identity, identity)
    return stored


def _read_copy(path: str) -> Checkpoint:
    """The mark of a closed file."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return decode_mark(path, connection.execute(READ_MARK).fetchone()).mark
    finally:
        connection.close()


def _sync(path: str) -> None:
    file = RealFiles().open(path)
    try:
        file.sync()
    finally:
        file.close()


def _adopt(path: str, identity: Identity) -> Checkpoint:
    _inspect(path)
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise Damaged("not a backend file", path)
            stored = decode_mark(path, connection.execute(READ_MARK).fetchone())
            check_cluster(path, stored.identity, identity)
            # No journal needed: after a crash the log does not name this file, and it is deleted.
            connection.execute("PRAGMA journal_mode = OFF")
            own = StoredMark(stored.mark, encode_identity(identity), stored.mark.index)
            connection.execute(_MARK, mark_values(own))
        finally:
            connection.close()
        return _read_copy(path)
    except sqlite3.Error as error:
        raise _translate(path, error) from error


class SqliteBackendOpener:
    """Implements `BackendOpener`."""

    async def __call__(self, path: str, identity: Identity) -> SqliteBackend:
        """Open the backend at `path`, creating an empty one in one transaction if there is none.

        Raises FormatUnknown, DirectoryUnrecognized, Damaged, BackendFull or BackendFailed.
        """
        # Reads the whole file: a running member that opens a received snapshot must not block the loop.
        await asyncio.to_thread(_inspect, path)
        state = SqliteBackend(path, identity)
        try:
            connection = await _open(path)
            try:
                if not await _pragma(connection, "user_version"):
                    await connection.execute("BEGIN IMMEDIATE")
                    for statement in _SCHEMA:
                        await connection.execute(statement)
                    nothing = StoredMark(Checkpoint(0, 0, ConfState()), encode_identity(identity), 0)
                    await connection.execute(_NEW_MARK, mark_values(nothing))
                    await connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    await connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
                    await connection.commit()
            finally:
                await connection.close()
            await state.mark()
        except sqlite3.Error as error:
            raise _translate(path, error) from error
        return state

    def adopt(self, path: str, identity: Identity) -> Checkpoint:
        return _adopt(path, identity)


open_sqlite_backend = SqliteBackendOpener()

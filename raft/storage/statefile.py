"""The state file of a real node: SQLite through aiosqlite, off the request path.

One commit is one large transaction, durable when it returns (WAL journal, synchronous=FULL, read
back). Checkpoints are taken deliberately, after a commit and never inside one. Every call is a
hop to the connection's thread, so calls are few and rows many.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence

import aiosqlite

from raft.core.types import ConfState
from raft.storage.errors import Damaged, DirectoryForeign, FormatUnknown, StateFileFailed, StateFileFull
from raft.storage.files import RealFiles
from raft.storage.protocol import Identity, Row, StateMark
from raft.storage.records import FORMAT_VERSION, decode_conf, encode_conf

APPLICATION_ID = 0x52414654
"""SQLite's application_id of a state file: "RAFT"."""

CHECKPOINT_BYTES = 16 * 1024 * 1024
"""The journal is folded into the file when it passes this: large enough to be rare and to merge
rewrites of the same pages, small enough that folding takes well under a second."""

SQLITE_HEADER_BYTES = 100

SCAN_ROWS = 2048
"""Rows per chunk of a scan: a hop to the thread costs as much as reading some hundred rows."""

BUSY_TIMEOUT_MS = 5000
"""Only our own connections share the file; a writer meets a reader at checkpoints only."""

_SCHEMA = (
    "CREATE TABLE rows (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE mark (only INTEGER PRIMARY KEY, log_index, log_term, conf BLOB, identity BLOB)",
)
_PUT = "INSERT INTO rows (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
_DELETE = "DELETE FROM rows WHERE key = ?"
_MARK = "UPDATE mark SET log_index = ?, log_term = ?, conf = ? WHERE only = 0"


def encode_identity(identity: Identity) -> bytes:
    """24 bytes: cluster, member and disk id, little-endian."""
    return b"".join(
        number.to_bytes(8, "little") for number in (identity.cluster_id, identity.member_id, identity.disk_id)
    )


def check_identity(path: str, stored: bytes, identity: Identity) -> None:
    """Raise DirectoryForeign when a state file belongs to another member or disk than the log beside it."""
    if stored != encode_identity(identity):
        raise DirectoryForeign(
            f"{path}: the state file belongs to another member or disk than the log beside it"
        )


def check_cluster(path: str, stored: bytes, identity: Identity) -> None:
    """Raise DirectoryForeign when an image comes from another cluster."""
    if stored[:8] != encode_identity(identity)[:8]:
        raise DirectoryForeign(f"{path}: the image belongs to another cluster")


def check_version(path: str, version: int) -> None:
    """Raise FormatUnknown for any version but ours."""
    if version != FORMAT_VERSION:
        raise FormatUnknown(
            f"{path}: format version {version} is not known to this program "
            f"(it knows {FORMAT_VERSION}); nothing was changed"
        )


class SqliteStateFile:
    """Implements `StateFile`. Make one with `open_sqlite_state`."""

    def __init__(self, path: str, identity: Identity) -> None:
        self._path = path
        self._identity = identity
        self._connection: aiosqlite.Connection | None = None
        """The writing connection; None after an error until the next call reopens it."""
        self._mark = StateMark(0, 0, ConfState())
        """As last read from or committed to the file."""
        self._copying = False
        """A copy is being made: its view of the journal stands in the way of folding that."""
        self._closed = False

    async def mark(self) -> StateMark:
        """See StateFile."""
        await self._connect()
        return self._mark

    async def commit(self, mark: StateMark, rows: Sequence[Row]) -> None:
        """See StateFile. Raises StateFileFull (unchanged, try later) or StateFileFailed."""
        connection = await self._connect()
        if mark.index <= self._mark.index:
            raise StateFileFailed(f"{self._path}: cannot go from index {self._mark.index} to {mark.index}")
        final = dict(rows)  # the last change of a key wins
        try:
            await connection.execute("BEGIN IMMEDIATE")
            await connection.executemany(_PUT, _puts(final))
            if None in final.values():
                await connection.executemany(_DELETE, _deletes(final))
            await connection.execute(_MARK, (mark.index, mark.term, encode_conf(mark.conf)))
            await connection.commit()
        except sqlite3.Error as error:
            await self._recover(mark, error)
        except BaseException:
            await self._disconnect()  # cancelled half-way: the transaction must not linger
            raise
        self._mark = mark
        await self._checkpoint()

    async def _recover(self, wanted: StateMark, error: sqlite3.Error) -> None:
        """After a failed commit only the file itself knows what is durable: discard the connection, look."""
        await self._disconnect()
        await self._connect()
        if self._mark != wanted:
            raise _translate(self._path, error) from error

    async def _checkpoint(self) -> None:
        """Fold the journal into the file when it has grown. The commit is durable either way."""
        if self._copying or self._connection is None or _size(self._path + "-wal") < CHECKPOINT_BYTES:
            return
        try:
            await self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            translated = _translate(self._path, error)
            await self._disconnect()
            if not isinstance(translated, StateFileFull):
                raise translated from error
            # No room to fold: the journal keeps growing until there is, and a commit says so.

    def copy_to(self, path: str) -> StateMark:
        """See StateFile. Runs beside the writer, on a connection of its own."""
        self._copying = True
        try:
            connection = sqlite3.connect(self._path, isolation_level=None)
            try:
                connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
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
        """See StateFile. Sees the image as of its first chunk, whatever is committed meanwhile."""
        query, bounds = "SELECT key, value FROM rows WHERE key >= ?", [low]
        if high is not None:
            query, bounds = query + " AND key < ?", [low, high]
        try:
            connection = await _open(self._path)
            try:
                async with connection.execute(query + " ORDER BY key", bounds) as cursor:
                    while chunk := await cursor.fetchmany(SCAN_ROWS):
                        yield [(key, value) for key, value in chunk]
            finally:
                await connection.close()
        except sqlite3.Error as error:
            raise _translate(self._path, error) from error

    def size_bytes(self) -> int:
        """The file with its journal."""
        return _size(self._path) + _size(self._path + "-wal")

    async def close(self) -> None:
        """Close the connection; the journal is folded in when there is room."""
        self._closed = True
        await self._disconnect()

    async def _connect(self) -> aiosqlite.Connection:
        if self._closed:
            raise StateFileFailed(f"{self._path}: the state file is closed")
        if self._connection is None:
            try:
                connection = await _open(self._path)
                try:
                    self._mark = await _read_mark(connection, self._path, self._identity)
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
                # Closing may try to fold the journal; on a full or failing disk the next open tells.
                if not isinstance(_translate(self._path, error), StateFileFull):
                    raise StateFileFailed(f"{self._path}: {error}") from error


def _puts(final: dict[bytes, bytes | None]) -> Iterator[tuple[bytes, bytes]]:
    """Consumed on the connection's thread."""
    return ((key, value) for key, value in final.items() if value is not None)


def _deletes(final: dict[bytes, bytes | None]) -> Iterator[tuple[bytes]]:
    return ((key,) for key, value in final.items() if value is None)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _translate(path: str, error: sqlite3.Error | OSError) -> StateFileFull | StateFileFailed | Damaged:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
        return StateFileFull(f"{path}: disk full")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Damaged(f"state file is damaged ({error})", path)
    return StateFileFailed(f"{path}: {error}")


async def _pragma(connection: aiosqlite.Connection, text: str) -> object:
    async with connection.execute(f"PRAGMA {text}") as cursor:
        row = await cursor.fetchone()
    return row[0] if row is not None else None


def _check_header(path: str) -> None:
    """Refuse a foreign or newer file before SQLite opens it, because closing it may already write to it.

    The fields' places are part of SQLite's own file format. A file just born may have them in its
    journal only; then `_open` reads them through SQLite.
    """
    try:
        with open(path, "rb") as file:
            header = file.read(SQLITE_HEADER_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StateFileFailed(f"{path}: {error}") from error
    if not header:
        return
    if len(header) < SQLITE_HEADER_BYTES or not header.startswith(b"SQLite format 3\0"):
        raise Damaged("not a state file", path)
    version = int.from_bytes(header[60:64], "big")
    if version:
        check_version(path, version)


async def _open(path: str) -> aiosqlite.Connection:
    """A connection with our settings, each read back."""
    connection = await aiosqlite.connect(path, isolation_level=None)
    try:
        version = await _pragma(connection, "user_version")
        application = await _pragma(connection, "application_id")
        if version or application:  # a fresh file has neither, and gets its settings below
            if application != APPLICATION_ID:
                raise Damaged("not a state file", path)
            assert isinstance(version, int)
            check_version(path, version)
        await _pragma(connection, f"busy_timeout = {BUSY_TIMEOUT_MS}")
        mode = await _pragma(connection, "journal_mode = WAL")
        await _pragma(connection, "synchronous = FULL")
        await _pragma(connection, "wal_autocheckpoint = 0")
        synchronous = await _pragma(connection, "synchronous")
        if mode != "wal" or synchronous != 2:
            raise StateFileFailed(f"{path}: SQLite refuses durable settings ({mode=}, {synchronous=})")
    except BaseException:
        await connection.close()
        raise
    return connection


async def _read_mark(connection: aiosqlite.Connection, path: str, identity: Identity) -> StateMark:
    async with connection.execute("SELECT log_index, log_term, conf, identity FROM mark") as cursor:
        row = await cursor.fetchone()
    if row is None:
        raise Damaged("the mark is missing", path)
    check_identity(path, row[3], identity)
    conf, _ = decode_conf(row[2])
    return StateMark(row[0], row[1], conf)


def _read_copy(path: str) -> StateMark:
    """The mark of a closed image."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        row = connection.execute("SELECT log_index, log_term, conf FROM mark").fetchone()
    finally:
        connection.close()
    if row is None:
        raise Damaged("the mark is missing", path)
    conf, _ = decode_conf(row[2])
    return StateMark(row[0], row[1], conf)


def _sync(path: str) -> None:
    file = RealFiles().open(path)
    try:
        file.sync()
    finally:
        file.close()


def _adopt(path: str, identity: Identity) -> StateMark:
    _check_header(path)
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise Damaged("not a state file", path)
            stored = connection.execute("SELECT identity FROM mark").fetchone()
            if stored is None:
                raise Damaged("the mark is missing", path)
            check_cluster(path, stored[0], identity)
            # No journal: a crash leaves a file that the log does not name.
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("UPDATE mark SET identity = ?", (encode_identity(identity),))
        finally:
            connection.close()
        return _read_copy(path)
    except sqlite3.Error as error:
        raise _translate(path, error) from error


class SqliteStateFormat:
    """State files in SQLite. Implements `StateFormat`."""

    async def __call__(self, path: str, identity: Identity) -> SqliteStateFile:
        """Open the state file at `path`, creating an empty one in one transaction if there is none.

        Raises FormatUnknown, DirectoryForeign, Damaged, StateFileFull or StateFileFailed.
        """
        _check_header(path)
        state = SqliteStateFile(path, identity)
        try:
            connection = await _open(path)
            try:
                if not await _pragma(connection, "user_version"):
                    await connection.execute("BEGIN IMMEDIATE")
                    for statement in _SCHEMA:
                        await connection.execute(statement)
                    await connection.execute(
                        "INSERT INTO mark VALUES (0, 0, 0, ?, ?)",
                        (encode_conf(ConfState()), encode_identity(identity)),
                    )
                    await connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    await connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
                    await connection.commit()
            finally:
                await connection.close()
            await state.mark()
        except sqlite3.Error as error:
            raise _translate(path, error) from error
        return state

    def adopt(self, path: str, identity: Identity) -> StateMark:
        """See StateFormat."""
        return _adopt(path, identity)


open_sqlite_state = SqliteStateFormat()

"""Verification of a backend: checksums of rows and mark, and an inspection before it is used.

SQLite checks its journal but not the file itself, and applies any journal to any file. So each row and
the mark carry a checksum, `inspect` verifies the structure at start, and file and journal must be of one
history: the mark records the index at which the journal was last folded, and the index of the file without
its journal must lie between that and the index of the two together. The inspection writes nothing.
"""

from __future__ import annotations

import os
import sqlite3
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from crc32c import crc32c

from raft.core.types import ConfState
from raft.storage.records import FORMAT_VERSION, decode_conf, encode_conf
from raft.storage.storage_errors import Damaged, FormatUnknown
from raft.storage.storage_protocol import Checkpoint

APPLICATION_ID = 0x52414654
"""SQLite's application_id of a backend: "RAFT"."""

SQLITE_HEADER_BYTES = 100

READ_MARK = "SELECT log_index, log_term, conf, identity, folded, sum FROM mark"


class StoredMark(NamedTuple):
    """The one row of the table `mark`."""

    mark: Checkpoint
    identity: bytes
    folded: int
    """Index at which the journal was last folded into the file, all of it."""


def row_checksum(key: bytes, value: bytes) -> int:
    """CRC32C stored with each row."""
    return crc32c(value, crc32c(key))


def mark_values(stored: StoredMark) -> tuple[int, int, bytes, bytes, int, int]:
    """What the row of the mark holds, in the order of READ_MARK."""
    mark = stored.mark
    fields = (mark.index, mark.term, encode_conf(mark.conf), stored.identity, stored.folded)
    return *fields, _mark_checksum(*fields)


def _mark_checksum(index: int, term: int, conf: bytes, identity: bytes, folded: int) -> int:
    return crc32c(b"%d %d %d " % (index, term, folded) + conf + identity)


def decode_mark(path: str, row: Sequence[Any] | None) -> StoredMark:
    """The mark in a row; raises Damaged when it fails its checksum."""
    if row is None:
        raise Damaged("the mark is missing", path)
    *fields, checksum = row
    types = (int, int, bytes, bytes, int)
    if tuple(map(type, fields)) != types or _mark_checksum(*fields) != checksum:
        raise Damaged("the mark was changed", path)
    index, term, conf, identity, folded = fields
    return StoredMark(Checkpoint(index, term, decode_conf(conf)[0]), identity, folded)


def check_rows(path: str, chunk: Iterable[Sequence[Any]]) -> list[tuple[bytes, bytes]]:
    """The rows without their checksums; raises Damaged when one does not match."""
    rows = []
    for key, value, checksum in chunk:
        if type(key) is not bytes or type(value) is not bytes or row_checksum(key, value) != checksum:
            raise Damaged(f"row {key!r} was changed", path)
        rows.append((key, value))
    return rows


def check_version(path: str, version: int) -> None:
    """Raise FormatUnknown for any version but ours."""
    if version != FORMAT_VERSION:
        raise FormatUnknown(
            f"{path}: format version {version} is not known to this program "
            f"(it knows {FORMAT_VERSION}); nothing was changed"
        )


def inspect(path: str) -> None:
    """Refuse a file of another program, of a newer version, or damaged, before SQLite may write to it.

    Raises FormatUnknown, Damaged, OSError or sqlite3.Error. A missing file passes, and so does one whose
    creation was interrupted before it had a schema.
    """
    try:
        with open(path, "rb") as file:
            header = file.read(SQLITE_HEADER_BYTES)
    except FileNotFoundError:
        return
    if not header:
        return
    if len(header) < SQLITE_HEADER_BYTES or not header.startswith(b"SQLite format 3\0"):
        raise Damaged("not a backend file", path)
    # SQLite's own file format fixes the field's offset; in a new file the value may still be in the journal.
    version = int.from_bytes(header[60:64], "big")
    if version:
        check_version(path, version)
    try:
        together = _read_mark(path, _TOGETHER, check_structure=True)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK:
            return  # a crash interrupted its creation; SQLite's rollback journal undoes that at the next open
        raise
    if together is None:
        return
    try:
        alone = _read_mark(path, _ALONE, check_structure=False)
    except (Damaged, sqlite3.Error):
        # A crash while the journal was being folded leaves any mix of pages in the file alone.
        return
    if alone is None:
        alone = StoredMark(Checkpoint(0, 0, ConfState()), together.identity, 0)
    if alone.mark.index < together.folded:
        raise Damaged(
            f"the file is at index {alone.mark.index}, its journal begins after {together.folded}", path
        )
    if alone.mark.index > together.mark.index:
        raise Damaged(
            f"the file is at index {alone.mark.index}, its journal ends at {together.mark.index}", path
        )


def inspect_alone(path: str) -> None:
    """As `inspect`, for a file without a journal that is never written to, in a directory of anybody's.

    Raises FormatUnknown, Damaged or sqlite3.Error.
    """
    if _read_mark(path, _ALONE, check_structure=True) is None:
        raise Damaged("it holds no backend", path)


def connect_alone(path: str) -> sqlite3.Connection:
    """Connect to a file without a journal; makes no file beside it."""
    return _connect(path, _ALONE)


_TOGETHER, _ALONE = "mode=ro", "immutable=1"
"""File and journal, or the file alone; neither folds the journal in."""


def _connect(path: str, how: str) -> sqlite3.Connection:
    uri = f"file:{urllib.parse.quote(os.path.abspath(path))}?{how}"
    return sqlite3.connect(uri, uri=True, isolation_level=None)


def _read_mark(path: str, how: str, *, check_structure: bool) -> StoredMark | None:
    """The mark, after a check of the file's structure where asked for; None in a file without a schema."""
    connection = _connect(path, how)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        if not version and not application:
            return None
        if application != APPLICATION_ID:
            raise Damaged("not a backend file", path)
        check_version(path, version)
        if check_structure:
            wrong = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if wrong != "ok":
                raise Damaged(f"backend is damaged ({' '.join(wrong.split())})", path)
        return decode_mark(path, connection.execute(READ_MARK).fetchone())
    finally:
        connection.close()

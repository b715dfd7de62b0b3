"""The in-memory implementation of `Backend`, for simulation: the same guarantees, on a `FileSystem`.

One file of checksummed frames, one per commit, and all rows in memory. The file is rewritten when most of it
is superseded. No call ever waits, so it runs on a virtual-time loop; on `MemoryFiles` a crash loses no more
and no less than a real backend may lose.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Callable, Sequence
from struct import Struct

from crc32c import crc32c

from raft.core.types import ConfState
from raft.storage.backend import check_cluster, check_identity, encode_identity
from raft.storage.backend_check import check_version
from raft.storage.files import File, FileSystem
from raft.storage.records import FORMAT_VERSION, decode_conf, encode_conf
from raft.storage.storage_errors import BackendFailed, BackendFull, Damaged
from raft.storage.storage_protocol import Checkpoint, Identity, Row

_HEADER = Struct("<H24s")  # version, identity
_FRAME = Struct("<II")  # length, CRC32C
_MARK = Struct("<QQ")
_ROW = Struct("<Ii")  # key length, value length or -1

SCAN_ROWS = 2048

SUPERSEDED_BYTES_MAX = 4 << 20
"""A file longer than twice its rows and this is rewritten. A seed of half a minute writes a sixth of it, so
that the runs of a campaign never get there."""


class MemoryBackend:
    """Implements `Backend`. Make one with `MemoryBackendOpener`."""

    def __init__(self, files: FileSystem, path: str, identity: Identity) -> None:
        self._files = files
        self._path = self.opened_as = path
        """Its path, and the path at which the file was opened: injected disk faults go by the latter."""
        self._rows: dict[bytes, bytes] = {}
        """The state at `_mark`."""
        self._mark = Checkpoint(0, 0, ConfState())
        self._closed = False
        self._head = head = _HEADER.pack(FORMAT_VERSION, encode_identity(identity))
        try:
            if files.exists(path):
                self._file: File = files.open(path)
            else:
                unfinished = self.opened_as = f"{path}.tmp"
                if files.exists(unfinished):
                    files.unlink(unfinished)
                self._file = files.open(unfinished, create=True)
                self._file.pwrite(head, 0)
                self._file.sync()
                files.rename(unfinished, path)
                files.sync_directory(path.rpartition("/")[0])
            self._file.datasync()
            data = self._file.pread(self._file.size(), 0)
        except OSError as error:
            raise _translate(path, error) from error
        if len(data) < _HEADER.size:
            raise Damaged("not a backend file", path)
        version, stored = _HEADER.unpack_from(data)
        check_version(path, version)
        check_identity(path, stored, identity)
        self._end = self._replay(data)
        """Where the next frame goes."""
        self._rewrite_at = SUPERSEDED_BYTES_MAX
        """The file is measured again when it is longer than this."""

    def _replay(self, data: bytes) -> int:
        offset = _HEADER.size
        while offset + _FRAME.size <= len(data):
            length, crc = _FRAME.unpack_from(data, offset)
            body = data[offset + _FRAME.size : offset + _FRAME.size + length]
            if length == 0 or len(body) < length or crc32c(body) != crc:
                break  # a crash interrupted this commit, so it never completed
            self._take(body)
            offset += _FRAME.size + length
        return offset

    def _take(self, body: bytes) -> None:
        index, term = _MARK.unpack_from(body)
        conf, at = decode_conf(body, _MARK.size)
        while at < len(body):
            key_length, value_length = _ROW.unpack_from(body, at)
            at += _ROW.size
            key = body[at : at + key_length]
            at += key_length
            if value_length < 0:
                self._rows.pop(key, None)
            else:
                self._rows[key] = body[at : at + value_length]
                at += value_length
        self._mark = Checkpoint(index, term, conf)

    async def mark(self) -> Checkpoint:
        """See Backend."""
        return self._mark

    async def commit(self, mark: Checkpoint, rows: Sequence[Row]) -> None:
        """See Backend."""
        if self._closed:
            raise BackendFailed(f"{self._path}: the backend is closed")
        if mark.index <= self._mark.index:
            raise BackendFailed(f"{self._path}: cannot go from index {self._mark.index} to {mark.index}")
        body = _encode(mark, rows)
        frame = _frame(body)
        try:
            self._file.pwrite(frame, self._end)
            self._file.datasync()
        except OSError as error:
            raise _translate(self._path, error) from error
        self._take(body)
        self._end += len(frame)
        if self._end > self._rewrite_at:
            self._rewrite()

    def _rewrite(self) -> None:
        """Replace the file by one of the present rows, unless those are most of it. Without space for it, the
        file stays as it is.

        Raises BackendFailed if the new name cannot be synced: a crash might bring the old file back.
        """
        content = self._head + _frame(_encode(self._mark, list(self._rows.items())))
        worth_it = 2 * len(content) + SUPERSEDED_BYTES_MAX
        if self._end <= worth_it:
            self._rewrite_at = worth_it
            return
        self._rewrite_at = self._end + SUPERSEDED_BYTES_MAX  # the next attempt, should this one fail
        unfinished = f"{self._path}.tmp"
        try:
            if self._files.exists(unfinished):
                self._files.unlink(unfinished)
            file = self._files.open(unfinished, create=True)
            file.pwrite(content, 0)
            file.sync()
        except OSError:
            return
        try:
            self._files.rename(unfinished, self._path)
            self._files.sync_directory(self._path.rpartition("/")[0])
        except OSError as error:
            self._closed = True
            raise BackendFailed(f"{self._path}: {error}") from error
        self._file.close()
        self._file, self.opened_as, self._end = file, unfinished, len(content)
        self._rewrite_at = worth_it

    def copy_to(self, path: str, wanted: Callable[[], bool]) -> Checkpoint:
        """See Backend."""
        body = _encode(self._mark, list(self._rows.items()))
        try:
            file = self._files.open(path, create=True)
            try:
                file.pwrite(self._head + _frame(body), 0)
                file.sync()
            finally:
                file.close()
        except OSError as error:
            raise _translate(path, error) from error
        return self._mark

    async def scan(self, low: bytes, high: bytes | None) -> AsyncIterator[Sequence[tuple[bytes, bytes]]]:
        """See Backend."""
        snapshot = dict(self._rows)
        keys = sorted(key for key in snapshot if key >= low and (high is None or key < high))
        for start in range(0, len(keys), SCAN_ROWS):
            yield [(key, snapshot[key]) for key in keys[start : start + SCAN_ROWS]]

    def size_bytes(self) -> int:
        """Of all frames, superseded ones included until the file is rewritten."""
        return self._end

    async def close(self) -> None:
        """Close the file."""
        self._closed = True
        with contextlib.suppress(OSError):  # closing guarantees nothing
            self._file.close()


def _encode(mark: Checkpoint, rows: Sequence[Row]) -> bytes:
    parts = [_MARK.pack(mark.index, mark.term), encode_conf(mark.conf)]
    for key, value in rows:
        parts += (_ROW.pack(len(key), -1 if value is None else len(value)), key, value or b"")
    return b"".join(parts)


def _frame(body: bytes) -> bytes:
    return _FRAME.pack(len(body), crc32c(body)) + body


def _translate(path: str, error: OSError) -> BackendFull | BackendFailed:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BackendFull(f"{path}: disk full")
    return BackendFailed(f"{path}: {error}")


class MemoryBackendOpener:
    """Implements `BackendOpener` on one file system; passed to `open_member` as `open_state`."""

    def __init__(self, files: FileSystem) -> None:
        self._files = files

    async def __call__(self, path: str, identity: Identity) -> MemoryBackend:
        return MemoryBackend(self._files, path, identity)

    def adopt(self, path: str, identity: Identity) -> Checkpoint:
        """See BackendOpener."""
        try:
            file = self._files.open(path)
            try:
                head = file.pread(_HEADER.size, 0)
                if len(head) < _HEADER.size:
                    raise Damaged("not a backend file", path)
                version, stored = _HEADER.unpack(head)
                check_version(path, version)
                check_cluster(path, stored, identity)
                file.pwrite(_HEADER.pack(version, encode_identity(identity)), 0)
                file.sync()
            finally:
                file.close()
        except OSError as error:
            raise _translate(path, error) from error
        backend = MemoryBackend(self._files, path, identity)
        backend._file.close()
        return backend._mark

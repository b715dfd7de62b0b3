"""Durability: the write-ahead log, the backend, and the data directory that holds both.

Contract, in the order of use:

1. `open_member` locks the data directory, checks identity, formats and every byte of the log, and
   returns what it recovered. It refuses damage with one line. It truncates a torn tail and reports that
   (`Recovered.tail_truncated`): the member neither votes nor acknowledges until a leader has confirmed its
   log, which `LogWriter.record_vote_eligible` then records.
2. A writer takes over the open log. `submit` queues work; `done` runs on the loop, in order, never from
   inside `submit`, and only after the work is durable. All work that queues while one sync runs shares
   the next (group commit). After an error the writer calls `fatal` and completes nothing more.
3. The backend lags behind the log. Its checkpoint never passes the durable log, and `LogWriter.compact`
   never passes its checkpoint.
4. A snapshot is a copy of the backend. A received one becomes the backend once the log names it
   (`snapshot_store`).
5. Close the writer, then the backend, then `release` the directory.

On disk: base of the log <= checkpoint of the backend <= last index of the log. Anything else is damage.
Two operations meet a full disk, and neither loses anything: preparing the log's next segment
(`on_space(False)`; the rest of the current one is the reserve), and a commit of the backend
(BackendFull; the file is unchanged).

The same code runs on `RealFiles` and on `MemoryFiles`, whose crash loses whatever was not synced.
docs/format.md describes the bytes.
"""

from raft.storage.directory import Bootstrap, MemberDirectory, holds_member, open_member
from raft.storage.files import FileSystem, RealFiles
from raft.storage.memory_backend import MemoryBackendOpener
from raft.storage.memory_files import MemoryFiles
from raft.storage.snapshot_store import IncomingSnapshot, InlineBackground, Snapshot, SnapshotStore
from raft.storage.storage_errors import (
    BackendFailed,
    BackendFull,
    Damaged,
    DirectoryEmpty,
    DirectoryLocked,
    DirectoryUnrecognized,
    DirectoryUnusable,
    EntryTooLarge,
    FormatUnknown,
    LogFailed,
    LogFull,
    SnapshotInvalid,
    StorageError,
)
from raft.storage.storage_protocol import (
    Backend,
    Checkpoint,
    Identity,
    LogWriter,
    Recovered,
    Row,
    WriterStatistics,
)
from raft.storage.watchdog import Watchdog
from raft.storage.writer import InlineLogWriter, ThreadedLogWriter

__all__ = [
    "Backend",
    "BackendFailed",
    "BackendFull",
    "Bootstrap",
    "Checkpoint",
    "Damaged",
    "DirectoryEmpty",
    "DirectoryLocked",
    "DirectoryUnrecognized",
    "DirectoryUnusable",
    "EntryTooLarge",
    "FileSystem",
    "FormatUnknown",
    "Identity",
    "IncomingSnapshot",
    "InlineBackground",
    "InlineLogWriter",
    "LogFailed",
    "LogFull",
    "LogWriter",
    "MemberDirectory",
    "MemoryBackendOpener",
    "MemoryFiles",
    "RealFiles",
    "Recovered",
    "Row",
    "Snapshot",
    "SnapshotInvalid",
    "SnapshotStore",
    "StorageError",
    "ThreadedLogWriter",
    "Watchdog",
    "WriterStatistics",
    "holds_member",
    "open_member",
]

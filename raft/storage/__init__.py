"""Durability: the write-ahead log, the state file, and the directory that holds both.

Contract, in the order of use:

1. `open_member` locks the data directory, checks identity, formats and every byte of the log, and
   returns what was recovered. Damage is refused with one line; a torn tail is cut and reported
   (`Recovered.tail_truncated`): such a member neither votes nor acknowledges until a leader has confirmed its
   log, and then says so with `LogWriter.record_vote_eligible`.
2. A writer takes over the open log. Work goes in by `submit`; `done` comes back on the loop, in
   order, never from inside `submit`, and only after the work is durable. Everything that queues
   while one sync runs shares the next. An error ends it all: `fatal` is called, nothing completes.
3. The state file follows behind. Its mark never passes what the log holds durably, and
   `LogWriter.compact` never passes its mark.
4. An image of the state goes to others as a copy of the state file; one that is received becomes the
   state file when the log names it (`snapshots`).
5. Close the writer, then the state file, then `release` the directory.

Order of what is on disk: log base <= state mark <= last log index. Anything else is damage.
A full disk is met only where nothing is at stake: preparing the log's next segment
(`on_space(False)`; what is left of the current one is the reserve), or committing to the state
file (BackendFull; nothing changed).

The same code runs on `RealFiles` and on `MemoryFiles`, which loses at a crash whatever was not
synced. See docs/format.md for the bytes.
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
    "SnapshotStore",
    "StorageError",
    "ThreadedLogWriter",
    "Watchdog",
    "WriterStatistics",
    "holds_member",
    "open_member",
]

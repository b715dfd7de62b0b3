"""The errors of this package. Each message is one clear line for an operator.

StorageError
+-- DirectoryLocked     another process (or node) holds the data directory
+-- DirectoryUnusable   the operating system refuses access to the data directory
+-- DirectoryUnrecognized   the data directory belongs to another cluster or member
+-- DirectoryEmpty      there is no member here and nothing was given to make one from
+-- FormatUnknown       written by another (newer) version; left untouched
+-- Damaged             durable bytes are missing or changed: rejoin as a new member
+-- SnapshotInvalid     a file or a transfer is no snapshot, or not what was saved or sent
+-- LogFailed           a write or sync of the log failed: its outcome is unknown, stop
|   +-- LogFull         the log needs its next segment and the disk has no space for it
|   +-- EntryTooLarge   one entry does not fit into one segment
+-- BackendFull         the disk is full; the backend's durable state is unchanged
+-- BackendFailed       the backend cannot be read or written for another reason
"""

from __future__ import annotations


class StorageError(Exception):
    """Base of every error of this package."""


class DirectoryLocked(StorageError):
    """Another process holds the data directory's exclusive lock."""


class DirectoryUnusable(StorageError):
    """The data directory cannot be made, read or written."""


class DirectoryUnrecognized(StorageError):
    """The data directory belongs to another cluster or another member."""


class DirectoryEmpty(StorageError):
    """The data directory holds no member, and no bootstrap was given to create one."""


class FormatUnknown(StorageError):
    """A file carries a format version this program does not know; nothing was changed."""


class Damaged(StorageError):
    """Durable bytes are missing or changed. The member must not vote or acknowledge on them."""

    def __init__(self, what: str, path: str) -> None:
        super().__init__(
            f"{path}: {what}; this member's data cannot be trusted: "
            "remove the member from the cluster, delete its data directory, and add it again as a new member"
        )
        self.what = what
        self.path = path


class SnapshotInvalid(StorageError):
    """A file given to read, or a transfer received, is no snapshot, or not the one saved or sent.

    The data of no member is concerned, and nothing was changed.
    """


class LogFailed(StorageError):
    """A write or sync of the log failed. The outcome is unknown: stop, never retry."""


class LogFull(LogFailed):
    """The current segment is used up and the disk has no space for the next."""


class EntryTooLarge(LogFailed):
    """One entry is larger than a whole segment: the bound on proposals is set wrongly."""


class BackendFull(StorageError):
    """The disk is full. The file is unchanged, and the same commit may be retried later."""


class BackendFailed(StorageError):
    """The backend cannot be read or written, for a reason other than a full disk."""

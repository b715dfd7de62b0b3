"""A member's data directory: how it is opened or created, and what is checked in which order.

<data-dir>/lock         exclusive lock, taken before anything else is opened
<data-dir>/wal/         the log; the member exists from the moment its first segment has its name
<data-dir>/state.db     the backend, which the log can always bring up to date; `snapshot_store` describes
                        its other names, and the snapshots beside it
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from raft.core.types import ConfState
from raft.storage.backend import open_sqlite_backend
from raft.storage.files import FileSystem, Lock
from raft.storage.log_recovery import LogContents, read_log
from raft.storage.records import BootstrapItem
from raft.storage.snapshot_store import (
    STATE_NAME,
    BackendOpener,
    Background,
    SnapshotStore,
    ThreadBackground,
    is_state_name,
    state_name,
)
from raft.storage.storage_errors import (
    Damaged,
    DirectoryEmpty,
    DirectoryUnrecognized,
    DirectoryUnusable,
    LogFailed,
)
from raft.storage.storage_protocol import Backend, Checkpoint, Identity, Recovered
from raft.storage.wal import SEGMENT_BYTES_DEFAULT, Log, create_log

LOCK_NAME = "lock"
LOG_NAME = "wal"

# Names allowed where a member is created: its own files, and what file systems put at their roots.
_HARMLESS_NAMES = frozenset({LOCK_NAME, LOG_NAME, STATE_NAME, "lost+found"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """What a new member starts from; stored in the log and returned at every start."""

    conf: ConfState
    """Configuration at index 0: the cluster's first voters, the same on every member."""
    blob: bytes = b""
    """Opaque bytes of the layer above (names and addresses of the initial members)."""


@dataclass(slots=True, kw_only=True)
class MemberDirectory:
    """An open data directory. Close the writer (which owns `log`) and `state` before `release`."""

    recovered: Recovered
    bootstrap: Bootstrap
    fresh: bool
    """Created by this call."""
    log: Log
    state: Backend
    """The backend as found; the node replaces it when it installs a snapshot."""
    snapshot_store: SnapshotStore
    lock: Lock

    def release(self) -> None:
        self.snapshot_store.close()
        self.lock.release()


def holds_member(files: FileSystem, path: str) -> bool:
    """Whether a member was ever created in the data directory. Takes no lock and changes nothing."""
    log = f"{path}/{LOG_NAME}"
    return files.exists(log) and any(name.endswith(".wal") for name in files.list(log))


async def open_member(
    files: FileSystem,
    path: str,
    *,
    cluster_id: int | None = None,
    member_id: int | None = None,
    bootstrap: Bootstrap | None = None,
    open_state: BackendOpener = open_sqlite_backend,
    background: Background | None = None,
    segment_bytes: int = SEGMENT_BYTES_DEFAULT,
    new_disk_id: Callable[[], int] = lambda: secrets.randbits(64),
) -> MemberDirectory:
    """Open the member at `path`, or create it from `bootstrap` when there is none.

    `cluster_id` and `member_id`, when given, must match what is stored; creation needs both.
    `segment_bytes` matters at creation only. `background` copies snapshots, on threads of its own by
    default. Blocks on the disk: call it before serving.

    Raises DirectoryLocked, DirectoryUnusable, DirectoryUnrecognized, DirectoryEmpty, FormatUnknown, Damaged,
    LogFailed, BackendFull or BackendFailed.
    """
    try:
        files.make_directory(path)
        if not holds_member(files, path):
            _check_empty(files, path)
        lock = files.lock(f"{path}/{LOCK_NAME}")
    except OSError as error:
        raise DirectoryUnusable(f"{path}: cannot use the data directory: {error}") from error
    try:
        return await _open_locked(
            files,
            path,
            lock,
            cluster_id,
            member_id,
            bootstrap,
            open_state,
            background or ThreadBackground(),
            segment_bytes,
            new_disk_id,
        )
    except OSError as error:
        lock.release()
        raise DirectoryUnusable(f"{path}: cannot use the data directory: {error}") from error
    except BaseException:
        lock.release()
        raise


async def _open_locked(
    files: FileSystem,
    path: str,
    lock: Lock,
    cluster_id: int | None,
    member_id: int | None,
    bootstrap: Bootstrap | None,
    open_state: BackendOpener,
    background: Background,
    segment_bytes: int,
    new_disk_id: Callable[[], int],
) -> MemberDirectory:
    log_path = f"{path}/{LOG_NAME}"
    contents = read_log(files, log_path)
    fresh = contents is None
    if contents is None:
        if files.exists(f"{path}/{STATE_NAME}"):
            raise Damaged("the log is missing", log_path)
        if bootstrap is None or cluster_id is None or member_id is None:
            raise DirectoryEmpty(f"{path}: there is no member in this data directory")
        identity = Identity(cluster_id=cluster_id, member_id=member_id, disk_id=new_disk_id())
        _create(files, path, identity, bootstrap, segment_bytes)
        contents = read_log(files, log_path)
        assert contents is not None
    check_member(path, contents.identity, cluster_id, member_id)
    state_path = f"{path}/{state_name(contents.backend)}"
    if not files.exists(state_path) and contents.snapshot.index > 0:
        raise Damaged("the backend is missing and the log no longer begins at its first entry", state_path)
    state = await open_state(state_path, contents.identity)
    try:
        files.sync_directory(path)
        _check_agreement(state_path, contents, await state.mark())
        snapshot_store = SnapshotStore(
            files,
            path,
            contents.identity,
            open_backend=open_state,
            background=background,
            backend=contents.backend,
        )
        snapshot_store.sweep()
        recovered = Recovered(
            identity=contents.identity,
            hard_state=contents.hard_state,
            snapshot=contents.snapshot,
            entries=contents.entries,
            tail_truncated=contents.tail_truncated,
            vote_eligible=contents.vote_eligible,
            peer_disks=tuple(sorted(contents.peers.items())),
        )
        log = Log(files, log_path, contents)
    except BaseException:
        await state.close()
        raise
    return MemberDirectory(
        recovered=recovered,
        bootstrap=Bootstrap(conf=contents.bootstrap.conf, blob=contents.bootstrap.blob),
        fresh=fresh,
        log=log,
        state=state,
        snapshot_store=snapshot_store,
        lock=lock,
    )


def _create(
    files: FileSystem, path: str, identity: Identity, bootstrap: Bootstrap, segment_bytes: int
) -> None:
    log_path = f"{path}/{LOG_NAME}"
    try:
        files.make_directory(log_path)
        files.sync_directory(os.path.dirname(path) or ".")
        files.sync_directory(path)
        create_log(files, log_path, identity, BootstrapItem(bootstrap.conf, bootstrap.blob), segment_bytes)
    except OSError as error:
        raise LogFailed(f"{path}: cannot create the log: {error}") from error


def _check_empty(files: FileSystem, path: str) -> None:
    """Refuse to create a member among files of another program: the path may be a mistake."""
    for name in files.list(path):
        if name not in _HARMLESS_NAMES and not name.startswith(".") and not is_state_name(name):
            raise DirectoryUnrecognized(
                f"{path}: the directory holds {name!r}, which is not data of this program"
            )


def check_member(path: str, identity: Identity, cluster_id: int | None, member_id: int | None) -> None:
    """Raise DirectoryUnrecognized when the member at `path` is not the one expected; None expects nothing."""
    if cluster_id is not None and identity.cluster_id != cluster_id:
        raise DirectoryUnrecognized(
            f"{path}: the data directory belongs to cluster {identity.cluster_id:x}, not to {cluster_id:x}"
        )
    if member_id is not None and identity.member_id != member_id:
        raise DirectoryUnrecognized(
            f"{path}: the data directory belongs to member {identity.member_id:x}, not to {member_id:x}"
        )


def _check_agreement(state_path: str, contents: LogContents, mark: Checkpoint) -> None:
    """Refuse a backend whose index the log does not hold, or whose term differs from the log's there."""
    base = contents.snapshot
    last_index = base.index + len(contents.entries)
    if mark.index > last_index:
        raise Damaged(f"backend is at index {mark.index} but the log ends at {last_index}", state_path)
    if mark.index < base.index:
        raise Damaged(f"backend is at index {mark.index} but the log begins after {base.index}", state_path)
    term = base.term if mark.index == base.index else contents.entries[mark.index - base.index - 1].term
    if mark.term != term:
        raise Damaged(f"backend has term {mark.term} at index {mark.index}, the log has {term}", state_path)

"""Disaster recovery: a cluster restored from a backup, or forced from its last member.

Both bootstrap a *new* cluster with another id, which no member of the old one can reach, and raise the
revision far beyond any that the old one may have acknowledged. A member keeps its `Bootstrap` record in its
log: the bootstrap members for consensus and for the engine and, if it joined later, the voters at that
moment.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kvstore.configuration.member_config import Config
from kvstore.engine import Engine, Member
from kvstore.engine.backend_rewrite import REVISION_BUMP, recovered_rows
from kvstore.server.initial_cluster import InitialCluster, bootstrap_cluster, cluster_id_of
from kvstore.server.joining import Joined
from raft.core.confchange import ConfChange
from raft.core.types import ConfState, Entry, EntryKind
from raft.node.envelope import decode_envelope
from raft.storage import Bootstrap, FileSystem, Identity, MemberDirectory, RealFiles, open_member
from raft.storage.backup import create_member_with_state, read_backup, replace_member

logger = logging.getLogger("kvstore.server")

_VOTERS = "found_voters"
"""The key of `Kept.bootstrap_voters` in the log, where other versions read it too."""


class Kept(NamedTuple):
    members: tuple[Member, ...]
    bootstrap_voters: tuple[int, ...] | None
    """Of a member that joined later: the voters at that moment."""
    recovered: bool
    """By restore or force-new-cluster: the ids do not follow from the bootstrap members."""


def bootstrap_of(joined: Joined, *, recovered: bool = False) -> Bootstrap:
    """Voters for consensus, the rest as JSON."""
    bootstrap_members = joined.initial_cluster.members
    rows = [[member.id, member.name, list(member.peer_urls)] for member in bootstrap_members]
    kept: dict[str, object] = {"members": rows}
    if joined.bootstrap_voters:
        kept[_VOTERS] = joined.bootstrap_voters
    if recovered:
        kept["recovered"] = True
    voters = tuple(member.id for member in bootstrap_members)
    return Bootstrap(conf=ConfState(voters=voters), blob=json.dumps(kept).encode())


def read_bootstrap(bootstrap: Bootstrap) -> Kept:
    kept = json.loads(bootstrap.blob)
    members = tuple(Member(id=row[0], name=row[1], peer_urls=tuple(row[2])) for row in kept["members"])
    voters = kept.get(_VOTERS)
    return Kept(members, None if voters is None else tuple(voters), kept.get("recovered", False))


async def close_directory(directory: MemberDirectory) -> None:
    directory.log.close()
    await directory.state.close()
    directory.release()


async def restore(
    backup: Path,
    data_dir: Path,
    *,
    name: str,
    initial: Mapping[str, Sequence[str]],
    token: str,
    check_digest: bool = True,
    revision_bump: int = REVISION_BUMP,
    mark_compacted: bool = True,
) -> InitialCluster:
    """Create the member `name` of a new cluster of `initial` (peer URLs by name) with the state of a backup.

    Each member is restored separately from the same file, and all compute the same ids from the token, the
    URLs and the content. Raises StorageError, OSError, BackendError, or ValueError
    for members with equal URLs.
    """
    held = read_backup(str(backup), check_digest=check_digest)
    engine = Engine()
    engine.load(sorted(held.rows.items()))
    engine.load_done()
    content = f"{held.mark.index} {held.mark.term} {engine.revision} {engine.hash_kv():x}"
    initial_cluster = bootstrap_cluster(initial, name, f"{token} restored {content}")
    rows = recovered_rows(
        engine,
        held.rows,
        members=initial_cluster.members,
        revision_bump=revision_bump,
        mark_compacted=mark_compacted,
    )
    identity = Identity(
        cluster_id=initial_cluster.cluster_id,
        member_id=initial_cluster.member_id,
        disk_id=secrets.randbits(64),
    )
    bootstrap = bootstrap_of(Joined(initial_cluster, ()), recovered=True)
    await create_member_with_state(RealFiles(), str(data_dir), identity, bootstrap, rows)
    return initial_cluster


async def force_new_cluster(config: Config, files: FileSystem) -> None:
    """Make the member in the data directory the only one of a new cluster, with its whole log.

    Keeps uncommitted entries: with the majority lost, any of them may have been acknowledged. Keeps its name
    and peer URLs too, as etcd does, whatever the configuration says. Does nothing for a cluster of one.
    Raises what `open_member` raises.
    """
    directory = await open_member(files, str(config.directory))
    try:
        recovered = directory.recovered
        kept = read_bootstrap(directory.bootstrap)
        engine = Engine(members=kept.members)
        rows: dict[bytes, bytes] = {}
        async for chunk in directory.state.scan(b"", None):
            rows.update(chunk)
        engine.load(sorted(rows.items()))
        engine.load_done()
        applied = (await directory.state.mark()).index
        for entry in recovered.entries[applied - recovered.snapshot.index :]:
            _replay(engine, entry)
        if kept.recovered and len(engine.members()) == 1:
            logger.warning("this member is a cluster by itself already: force-new-cluster does nothing")
            return
        known = engine.member(recovered.identity.member_id)
        name = known.name if known else config.name
        urls = known.peer_urls if known else tuple(map(str, config.advertise_peer))
        member = Member(recovered.identity.member_id, name, urls)
        cluster_id = cluster_id_of((member.id, secrets.randbits(64)))
        bootstrap = bootstrap_of(Joined(InitialCluster(cluster_id, member.id, (member,)), ()), recovered=True)
        identity = Identity(cluster_id=cluster_id, member_id=member.id, disk_id=secrets.randbits(64))
        new_rows = recovered_rows(engine, rows, members=(member,))
        backend = directory.snapshot_store.in_use
        await replace_member(files, str(config.directory), identity, bootstrap, new_rows, backend=backend)
        logger.warning("forced this member to be cluster %x, with %d rows", cluster_id, len(new_rows))
    finally:
        await close_directory(directory)


def _replay(engine: Engine, entry: Entry) -> None:
    if not entry.data:
        return
    if entry.kind is EntryKind.NORMAL:
        engine.apply(entry.index, entry.term, decode_envelope(entry.data).commands, False)
    elif context := ConfChange.decode(entry.data).context:
        (command,) = decode_envelope(context).commands
        engine.apply_change(entry.index, entry.term, command, True)

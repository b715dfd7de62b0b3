"""A member's data directory as the configuration wants it: found, founded, joined or recovered."""

from __future__ import annotations

from typing import NamedTuple

from kvstore.server.config import Config
from kvstore.server.joining import Ask, CannotJoin, Joined, join
from kvstore.server.membership import InitialCluster, found
from kvstore.server.recovery import bootstrap_of, close_directory, force_new_cluster, read_bootstrap
from raft.storage import FileSystem, MemberDirectory, holds_member, open_member
from raft.storage.backup import finish_replacement
from raft.storage.directory import check_member


class Opened(NamedTuple):
    """An open data directory and what it says of its member."""

    directory: MemberDirectory
    initial_cluster: InitialCluster
    """`members` are the founders of the cluster."""
    bootstrap_voters: tuple[int, ...] | None
    """Of a member that joined later: who voted when it did."""


async def open_data_directory(config: Config, files: FileSystem, ask: Ask) -> Opened:
    """Open the directory; make it when it is new, by founding the cluster or by joining it.

    Raises CannotJoin, ConfigError, and what `open_member` raises.
    """
    path = str(config.directory)
    finish_replacement(files, path)
    fresh = not holds_member(files, path)
    if config.force_new_cluster and not fresh:
        await force_new_cluster(config, files)
    existing = config.initial_cluster_state == "existing"
    expected: Joined | None = None
    if fresh and existing:
        expected = await _join(config, ask)
    elif fresh or (config.initial_cluster and not existing):
        initial = {name: [str(url) for url in urls] for name, urls in config.initial_members().items()}
        try:
            expected = Joined(found(initial, config.name, config.initial_cluster_token), ())
        except ValueError as error:
            raise CannotJoin(str(error)) from error
    directory = await open_member(
        files,
        path,
        cluster_id=expected.initial_cluster.cluster_id if expected and fresh else None,
        member_id=expected.initial_cluster.member_id if expected and fresh else None,
        bootstrap=bootstrap_of(expected) if expected else None,
    )
    try:
        kept = read_bootstrap(directory.bootstrap)
        if expected is not None and not kept.recovered:
            check_member(
                path,
                directory.recovered.identity,
                expected.initial_cluster.cluster_id,
                expected.initial_cluster.member_id,
            )
    except BaseException:
        await close_directory(directory)
        raise
    identity = directory.recovered.identity
    initial_cluster = InitialCluster(identity.cluster_id, identity.member_id, kept.members)
    return Opened(directory, initial_cluster, kept.bootstrap_voters)


async def _join(config: Config, ask: Ask) -> Joined:
    members = config.initial_members()
    others = [str(url) for name, urls in members.items() if name != config.name for url in urls]
    if not others:
        raise CannotJoin("initial-cluster names no other member of the existing cluster to ask")
    return await join(others, [str(url) for url in config.advertise_peer], ask)

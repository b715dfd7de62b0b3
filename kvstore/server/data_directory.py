"""Opens a member's data directory: with existing data, bootstrapped, joined or recovered."""

from __future__ import annotations

from typing import NamedTuple

from kvstore.configuration.member_config import Config
from kvstore.server.disaster_recovery import bootstrap_of, close_directory, force_new_cluster, read_bootstrap
from kvstore.server.initial_cluster import InitialCluster, bootstrap_cluster
from kvstore.server.joining import Ask, CannotJoin, Joined, join
from raft.storage import FileSystem, MemberDirectory, holds_member, open_member
from raft.storage.backup import finish_replacement
from raft.storage.directory import check_member


class Opened(NamedTuple):
    directory: MemberDirectory
    initial_cluster: InitialCluster
    """`members` are the bootstrap members of the cluster."""
    bootstrap_voters: tuple[int, ...] | None
    """Of a member that joined later: the voters at that moment."""


async def open_data_directory(config: Config, files: FileSystem, ask: Ask) -> Opened:
    """Open the directory; create a new one by bootstrapping the cluster or joining it.

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
            expected = Joined(bootstrap_cluster(initial, config.name, config.initial_cluster_token), ())
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

"""Opens a member's data directory: with existing data, bootstrapped, joined or recovered.

What only a first start needs (`initial-cluster` and its companions) is read only where the directory holds no
member. A member with data knows its cluster from its log, so it starts with whatever these settings say: the
list that `member add` printed, an outdated one, or none.
"""

from __future__ import annotations

from typing import NamedTuple

from kvstore.configuration.member_config import Config
from kvstore.server.disaster_recovery import bootstrap_of, close_directory, force_new_cluster, read_bootstrap
from kvstore.server.initial_cluster import InitialCluster, bootstrap_cluster, bootstrap_urls
from kvstore.server.joining import Ask, CannotJoin, Joined, join
from raft.storage import FileSystem, MemberDirectory, holds_member, open_member
from raft.storage.backup import finish_replacement


class Opened(NamedTuple):
    directory: MemberDirectory
    initial_cluster: InitialCluster
    """`members` are the bootstrap members of the cluster."""
    bootstrap_voters: tuple[int, ...] | None
    """Of a member that joined later: the voters at that moment."""


async def open_data_directory(config: Config, files: FileSystem, ask: Ask) -> Opened:
    """Open the directory; create a new one by bootstrapping the cluster or joining it.

    Raises CannotJoin, ConfigError, and what `open_member` raises. The first two come before anything is made.
    """
    path = str(config.directory)
    finish_replacement(files, path)
    if holds_member(files, path):
        if config.force_new_cluster:
            await force_new_cluster(config, files)
        directory = await open_member(files, path)
    else:
        joined = await (_join(config, ask) if config.joins_existing else _bootstrap(config))
        directory = await open_member(
            files,
            path,
            cluster_id=joined.initial_cluster.cluster_id,
            member_id=joined.initial_cluster.member_id,
            bootstrap=bootstrap_of(joined),
        )
    try:
        kept = read_bootstrap(directory.bootstrap)
    except BaseException:
        await close_directory(directory)
        raise
    identity = directory.recovered.identity
    initial_cluster = InitialCluster(identity.cluster_id, identity.member_id, kept.members)
    return Opened(directory, initial_cluster, kept.bootstrap_voters)


async def _bootstrap(config: Config) -> Joined:
    initial = await bootstrap_urls(config)
    try:
        return Joined(bootstrap_cluster(initial, config.name, config.initial_cluster_token), ())
    except ValueError as error:
        raise CannotJoin(str(error)) from error


async def _join(config: Config, ask: Ask) -> Joined:
    """As in etcd, this member is the one with the URLs that the list gives it, whatever it advertises."""
    members = config.initial_members()
    others = [str(url) for name, urls in members.items() if name != config.name for url in urls]
    if not others:
        raise CannotJoin("initial-cluster names no other member of the existing cluster to ask")
    return await join(others, members[config.name], ask)

"""A member's data directory as the configuration wants it: found, founded, or joined.

What a member starts from is kept in its log for ever (`Bootstrap`): the founders as consensus and as
the state machine see them and, for one that joined later, the voters it found.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from kvstore.engine import Member
from kvstore.server.config import Config
from kvstore.server.joining import Ask, CannotJoin, Joined, join
from kvstore.server.membership import Founding, found
from raft.core.types import ConfState
from raft.storage import Bootstrap, FileSystem, MemberDirectory, holds_member, open_member


class Opened(NamedTuple):
    """An open data directory and what it says of its member."""

    directory: MemberDirectory
    founding: Founding
    """`members` are the founders of the cluster."""
    found_voters: tuple[int, ...] | None
    """Of a member that joined later: who voted when it did."""


async def open_data_directory(config: Config, files: FileSystem, ask: Ask) -> Opened:
    """Open the directory; make it when it is new, by founding the cluster or by joining it.

    Raises CannotJoin, ConfigError, and what `open_member` raises.
    """
    path = str(config.directory)
    fresh = not holds_member(files, path)
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
        cluster_id=expected.founding.cluster_id if expected else None,
        member_id=expected.founding.member_id if expected else None,
        bootstrap=bootstrap_of(expected) if expected else None,
    )
    identity = directory.recovered.identity
    members, voters = _read(directory.bootstrap)
    return Opened(directory, Founding(identity.cluster_id, identity.member_id, members), voters)


async def _join(config: Config, ask: Ask) -> Joined:
    members = config.initial_members()
    others = [str(url) for name, urls in members.items() if name != config.name for url in urls]
    if not others:
        raise CannotJoin("initial-cluster names no other member of the existing cluster to ask")
    return await join(others, [str(url) for url in config.advertise_peer], ask)


def bootstrap_of(joined: Joined) -> Bootstrap:
    """What the data directory keeps: voters for consensus, the rest as JSON."""
    founders = joined.founding.members
    rows = [[member.id, member.name, list(member.peer_urls)] for member in founders]
    kept: dict[str, object] = {"members": rows}
    if joined.found_voters:
        kept["found_voters"] = joined.found_voters
    voters = tuple(member.id for member in founders)
    return Bootstrap(conf=ConfState(voters=voters), blob=json.dumps(kept).encode())


def _read(bootstrap: Bootstrap) -> tuple[tuple[Member, ...], tuple[int, ...] | None]:
    kept = json.loads(bootstrap.blob)
    members = tuple(Member(id=row[0], name=row[1], peer_urls=tuple(row[2])) for row in kept["members"])
    voters = kept.get("found_voters")
    return members, None if voters is None else tuple(voters)

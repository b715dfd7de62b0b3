"""Joining a cluster: a new member fetches the description of a running one, and every member publishes
itself.

A new member finds its id by its peer URLs, under which it was added. The description also has the cluster id
and the bootstrap members: the log begins with their configuration, so a replay of the log must start from it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from kvstore.configuration.config_setting import Url, parse_url
from kvstore.engine import Member, MemberResult, Outcome, SetMemberAttributes
from kvstore.errors import KVError, ServerStopped
from kvstore.replica.replica import Replica
from kvstore.server.initial_cluster import InitialCluster
from kvstore.server.url_matching import difference

logger = logging.getLogger("kvstore.server")

ASK_SECONDS = 2.0
"""Timeout of one request for a description."""

PATIENCE_SECONDS = 5.0
"""Of the whole join: the first member to answer may not have applied our addition yet."""

RETRY_SECONDS = 0.2

PUBLISH_RETRY_SECONDS = 0.5
"""Between two attempts. Publishing is idempotent, so it is retried even after an unknown outcome."""

DESCRIPTION_VERSION = 1

Ask = Callable[[str, float], Awaitable[bytes | None]]
"""Fetches the description of the member at a peer URL, with a timeout in seconds; None without an answer."""


class CannotJoin(Exception):
    """The cluster was not found, or does not expect this member; the text is one line for an operator."""


class Description(NamedTuple):
    cluster_id: int
    bootstrap_members: tuple[Member, ...]
    members: tuple[Member, ...]
    """The current ones."""


class Joined(NamedTuple):
    """This member in a running cluster."""

    initial_cluster: InitialCluster
    bootstrap_voters: tuple[int, ...]
    """The voters when it joined."""


def encode_description(description: Description) -> bytes:
    value = {
        "version": DESCRIPTION_VERSION,
        "cluster_id": description.cluster_id,
        "founders": [list(member) for member in description.bootstrap_members],
        "members": [list(member) for member in description.members],
    }
    return json.dumps(value).encode()


def decode_description(data: bytes) -> Description:
    """Raises ValueError for malformed data and for another version."""
    try:
        value = json.loads(data)
        if value["version"] != DESCRIPTION_VERSION:
            raise ValueError(f"a description of version {value['version']}")
        return Description(value["cluster_id"], _members(value["founders"]), _members(value["members"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"no description of a cluster: {error!r}") from error


def _members(rows: Iterable[Sequence[Any]]) -> tuple[Member, ...]:
    return tuple(
        Member(id_, name, tuple(peer_urls), tuple(client_urls), is_learner)
        for id_, name, peer_urls, client_urls, is_learner in rows
    )


async def join(peers: Sequence[str], own_urls: Sequence[Url], ask: Ask) -> Joined:
    """Find this member in the cluster of `peers` (peer URLs of others). Raises CannotJoin."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + PATIENCE_SECONDS
    while True:
        answered: Description | None = None
        for url in peers:
            data = await ask(url, ASK_SECONDS)
            if data is None:
                continue
            try:
                description = decode_description(data)
            except ValueError as error:
                logger.warning("the member at %s sent no valid description: %s", url, error)
                continue
            if (joined := await _own_member(description, own_urls)) is not None:
                return joined
            answered = description
        if loop.time() >= end_s:
            break
        await asyncio.sleep(RETRY_SECONDS)
    if answered is None:
        raise CannotJoin(
            "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given"
            f" URLs ({','.join(peers)})"
        )
    known = ", ".join(f"{one.name or 'unstarted'}={','.join(one.peer_urls)}" for one in answered.members)
    raise CannotJoin(
        f"error validating peerURLs: cluster {answered.cluster_id:x} has no member with the peer URLs"
        f" {','.join(map(str, own_urls))}; it must be added first (member add). Its members: {known}"
    )


async def _own_member(description: Description, own_urls: Sequence[Url]) -> Joined | None:
    """None when no member has our URLs, or their addresses. Raises CannotJoin when the member with our URLs
    has run before.
    """
    for member in description.members:
        if not await _has_urls(member, own_urls):
            continue
        if member.client_urls:
            raise CannotJoin(
                f"member {member.id:x} has already run with another data directory, whose votes and"
                " acknowledgements are binding. Remove it (member remove) and add it anew (member add)"
            )
        voters = tuple(sorted(one.id for one in description.members if not one.is_learner))
        return Joined(
            InitialCluster(description.cluster_id, member.id, description.bootstrap_members), voters
        )
    return None


async def _has_urls(member: Member, urls: Sequence[Url]) -> bool:
    try:
        return not await difference(urls, [parse_url(url) for url in member.peer_urls])
    except ValueError:  # of another version: no URL that we could have
        return False


async def publish(replica: Replica, name: str, client_urls: tuple[str, ...]) -> bool:
    """Write this member's name and client URLs into the cluster; False when this member stops first."""
    command = SetMemberAttributes(member_id=replica.member_id, name=name, client_urls=client_urls)
    while True:
        applied: asyncio.Future[Outcome[MemberResult]] = asyncio.get_running_loop().create_future()
        replica.propose(command, partial(_published, applied))
        outcome = await applied
        if not isinstance(outcome, KVError):
            return True
        if isinstance(outcome, ServerStopped):
            return False
        logger.warning("could not publish this member's client URLs yet: %s", outcome)
        await asyncio.sleep(PUBLISH_RETRY_SECONDS)


def _published(future: asyncio.Future[Outcome[MemberResult]], outcome: Outcome[MemberResult]) -> None:
    if not future.done():
        future.set_result(outcome)

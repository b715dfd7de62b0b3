"""Joining a running cluster: what a new process asks of the members, and what it makes of the answer.

It finds itself among the members by its peer URLs, as the one that was added under them; from the
answer it has its id, the cluster's, and the founders. The log begins with the founders' configuration,
so that whoever replays it from its first entry must start from them, as every member did.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple

from kvstore.engine import Member
from kvstore.server.membership import InitialCluster

logger = logging.getLogger("kvstore.server")

ASK_SECONDS = 2.0
"""How long one member may take to answer."""

PATIENCE_SECONDS = 5.0
"""How long to go on asking: whoever answers first may not have applied our addition yet."""

RETRY_SECONDS = 0.2

DESCRIPTION_VERSION = 1

Ask = Callable[[str, float], Awaitable[bytes | None]]
"""Asks the member at a peer URL, within so many seconds, for its description; None for no answer."""


class CannotJoin(Exception):
    """The cluster was not found, or does not expect this member; the text is one line for an operator."""


class Description(NamedTuple):
    """A cluster as one of its members knows it."""

    cluster_id: int
    bootstrap_members: tuple[Member, ...]
    """The members the log begins with."""
    members: tuple[Member, ...]
    """As of now."""


class Joined(NamedTuple):
    """A place in a running cluster."""

    initial_cluster: InitialCluster
    bootstrap_voters: tuple[int, ...]
    """Who voted when it was found."""


def encode_description(description: Description) -> bytes:
    """For `decode_description`."""
    value = {
        "version": DESCRIPTION_VERSION,
        "cluster_id": description.cluster_id,
        "founders": [list(member) for member in description.bootstrap_members],
        "members": [list(member) for member in description.members],
    }
    return json.dumps(value).encode()


def decode_description(data: bytes) -> Description:
    """Raises ValueError for what is none, or of another version."""
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


async def join(peers: Sequence[str], own_urls: Sequence[str], ask: Ask) -> Joined:
    """Find our place in the cluster of `peers` (peer URLs of others). Raises CannotJoin."""
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
                logger.warning("the member at %s cannot be understood: %s", url, error)
                continue
            if (joined := _position(description, own_urls)) is not None:
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
        f" {','.join(own_urls)}; it must be added first (member add). Its members: {known}"
    )


def _position(description: Description, own_urls: Sequence[str]) -> Joined | None:
    """Our place. None when nobody has our URLs; raises CannotJoin when somebody had them before us."""
    for member in description.members:
        if sorted(member.peer_urls) != sorted(own_urls):
            continue
        if member.client_urls:
            raise CannotJoin(
                f"member {member.id:x} has already run with another data directory: what it promised there is"
                " binding. Remove it (member remove) and add it anew (member add)"
            )
        voters = tuple(sorted(one.id for one in description.members if not one.is_learner))
        return Joined(
            InitialCluster(description.cluster_id, member.id, description.bootstrap_members), voters
        )
    return None

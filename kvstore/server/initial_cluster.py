"""The members of a new cluster and their ids.

Ids are derived as in etcd (`server/etcdserver/api/membership`): every bootstrap member computes the same ids
from the same configuration without a message to the others, and a wrong token or list shows as another
cluster id in the first handshake.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from kvstore.engine import Member


class InitialCluster(NamedTuple):
    cluster_id: int
    member_id: int
    """The member of this configuration."""
    members: tuple[Member, ...]
    """All bootstrap members, by id; the same on each of them."""


def member_id_of(peer_urls: Iterable[str], token: str) -> int:
    """64 bits of SHA-1 over the sorted peer URLs and the cluster token."""
    text = "".join(sorted(peer_urls)) + token
    return int.from_bytes(hashlib.sha1(text.encode(), usedforsecurity=False).digest()[:8], "big")


def cluster_id_of(member_ids: Iterable[int]) -> int:
    """64 bits of SHA-1 over the sorted ids of the bootstrap members."""
    data = b"".join(member_id.to_bytes(8, "big") for member_id in sorted(member_ids))
    return int.from_bytes(hashlib.sha1(data, usedforsecurity=False).digest()[:8], "big")


def bootstrap_cluster(initial: Mapping[str, Sequence[str]], name: str, token: str) -> InitialCluster:
    """The cluster of `initial` (peer URLs by member name), seen from the member `name`.

    Raises ValueError when two members have the same URLs, and so the same id.
    """
    assert name in initial, "the configuration was validated"
    ids = {member: member_id_of(urls, token) for member, urls in initial.items()}
    if len(set(ids.values())) != len(ids):
        raise ValueError("two members of the initial cluster have the same peer URLs")
    members = sorted(
        Member(id=ids[member], name=member, peer_urls=tuple(sorted(urls)), client_urls=(), is_learner=False)
        for member, urls in initial.items()
    )
    return InitialCluster(cluster_id_of(ids.values()), ids[name], tuple(members))

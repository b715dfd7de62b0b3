"""The members of a new cluster and their ids.

Ids are derived as in etcd (`server/etcdserver/api/membership`): every bootstrap member computes the same ids
from the same configuration without a message to the others, and a wrong token or list shows as another
cluster id in the first handshake.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from kvstore.configuration.config_setting import ConfigError, Url
from kvstore.configuration.member_config import Config
from kvstore.engine import Member
from kvstore.server.url_matching import RESOLVE_SECONDS, difference


class InitialCluster(NamedTuple):
    cluster_id: int
    member_id: int
    """The member of this configuration."""
    members: tuple[Member, ...]
    """All bootstrap members, by id; the same on each of them."""


async def bootstrap_urls(config: Config) -> dict[str, list[str]]:
    """The peer URLs, by member name, of the new cluster that a configuration describes.

    Raises ConfigError, in etcd's words, when they do not fit the configuration; resolving a name may take
    RESOLVE_SECONDS.
    """
    members = config.initial_members()
    listed, advertised = members[config.name], config.advertise_peer
    reason = await difference(advertised, listed, patience_s=RESOLVE_SECONDS)
    if reason:
        raise ConfigError(_mismatch(config.name, listed, advertised, reason))
    return {name: [str(url) for url in urls] for name, urls in members.items()}


def _mismatch(name: str, listed: Sequence[Url], advertised: Sequence[Url], reason: str) -> str:
    texts = ",".join(map(str, advertised))
    pairs = ",".join(f"{name}={url}" for url in advertised)
    if missing := [f"{name}={url}" for url in listed if url not in advertised]:
        where = f"missing from --initial-advertise-peer-urls={texts}"
        return f"--initial-cluster has {','.join(missing)} but {where} ({reason})"
    if extra := [str(url) for url in advertised if url not in listed]:
        where = f"missing from --initial-cluster={pairs}"
        return f"--initial-advertise-peer-urls has {','.join(extra)} but {where}"
    return f"failed to resolve {texts} to match --initial-cluster={pairs} ({reason})"


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

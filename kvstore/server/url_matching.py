"""Whether two lists of peer URLs mean the same addresses, as etcd compares them.

A host name and its address are equal (`pkg/netutil.URLStringsEqual`), except `localhost`, which is not
resolved.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Sequence

from kvstore.configuration.config_setting import Url
from kvstore.configuration.go_values import quote

logger = logging.getLogger("kvstore.server")

RESOLVE_SECONDS = 30.0
"""Of patience with a resolver that does not know a name yet: a new machine's name may take a while."""

RETRY_SECONDS = 1.0


class _Unresolved(Exception):
    """A name has no address; the text says why."""


async def difference(ours: Sequence[Url], theirs: Sequence[Url], *, patience_s: float = 0.0) -> str:
    """Why the two lists are not equal, in etcd's words; empty when they are. Equal texts are not resolved."""
    ours, theirs = sorted(ours, key=str), sorted(theirs, key=str)
    if len(ours) != len(theirs):
        return f"len({_go_list(ours)}) != len({_go_list(theirs)})"
    if ours == theirs:
        return ""
    end_s = asyncio.get_running_loop().time() + patience_s
    try:
        addresses = {url: await _addresses(url, end_s) for url in {*ours, *theirs}}
    except _Unresolved as error:
        return str(error)
    unmatched = list(theirs)
    for url in ours:
        equal = next((one for one in unmatched if _equal(url, one, addresses)), None)
        if equal is None:
            other = unmatched[0]
            return f"{_resolved(url, addresses)} != {_resolved(other, addresses)}"
        unmatched.remove(equal)
    return ""


def _equal(ours: Url, theirs: Url, addresses: dict[Url, tuple[str, ...]]) -> bool:
    same_port = (ours.scheme, ours.port) == (theirs.scheme, theirs.port)
    return same_port and not set(addresses[ours]).isdisjoint(addresses[theirs])


async def _addresses(url: Url, end_s: float) -> tuple[str, ...]:
    """All addresses of a URL's host, the preferred one first. Raises _Unresolved at `end_s`."""
    if url.host == "localhost":
        return (url.host,)
    try:
        return (str(ipaddress.ip_address(url.host)),)
    except ValueError:
        pass  # a name
    loop = asyncio.get_running_loop()
    while True:
        try:
            found = await loop.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
            return tuple(dict.fromkeys(str(address[0]) for *_, address in found))
        except OSError as error:
            if loop.time() >= end_s:
                raise _Unresolved(f"failed to resolve {quote(str(url))} ({error.strerror})") from None
            logger.warning("failed to resolve URL Host", extra={"url": str(url), "error": error.strerror})
        await asyncio.sleep(RETRY_SECONDS)


def _resolved(url: Url, addresses: dict[Url, tuple[str, ...]]) -> str:
    found = Url(url.scheme, addresses[url][0], url.port)
    return f"{quote(str(found))}(resolved from {quote(str(url))})"


def _go_list(urls: Sequence[Url]) -> str:
    return f"[{' '.join(quote(str(url)) for url in urls)}]"

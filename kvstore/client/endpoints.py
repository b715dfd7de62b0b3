"""Where a cluster is: endpoints as people write them."""

from __future__ import annotations

from dataclasses import dataclass


class EndpointError(ValueError):
    """An endpoint that cannot be used; the text is one line."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    text: str
    """As it was given, for printing."""
    target: str
    """`host:port`, for dialling."""


def parse_endpoints(text: str) -> tuple[Endpoint, ...]:
    """Read `host:port` or `http://host:port`, separated by commas; EndpointError when none is usable."""
    found = tuple(_parse_endpoint(part) for part in text.split(",") if part.strip())
    if not found:
        raise EndpointError("etcdclient: no available endpoints")
    return found


def _parse_endpoint(text: str) -> Endpoint:
    scheme, separator, address = text.strip().rpartition("://")
    if separator and scheme != "http":
        raise EndpointError(f'endpoint "{text}": only http:// is supported')
    address = address.rstrip("/")
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise EndpointError(f'endpoint "{text}": address {address}: missing port in address')
    return Endpoint(text.strip(), address)

"""Where a cluster is: endpoints as people write them."""

from __future__ import annotations

from dataclasses import dataclass

PORT_MAX = 65535


class EndpointError(ValueError):
    """An endpoint that cannot be used; the text is one line."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    text: str
    """As it was given, for printing."""
    target: str
    """`host:port`, for dialling."""


def parse_endpoints(text: str) -> tuple[Endpoint, ...]:
    """Read `host:port` or `http://host:port`, separated by commas; EndpointError when one cannot be used.

    Ports are checked here, since gRPC takes them modulo 65536. As in Go a path is ignored, and a host left
    out is this one.
    """
    found = tuple(_parse_endpoint(part) for part in text.split(",") if part.strip())
    if not found:
        raise EndpointError("etcdclient: no available endpoints")
    return found


def _parse_endpoint(text: str) -> Endpoint:
    scheme, separator, address = text.strip().rpartition("://")
    if separator and scheme != "http":
        raise EndpointError(f'endpoint "{text}": only http:// is supported')
    if separator:
        address = address.partition("/")[0]
    host, _, port = address.rpartition(":")
    problem = ""
    if not address:
        problem = "missing address"
    elif ":" not in address.rpartition("]")[2] or not port:
        problem = f"address {address}: missing port in address"
    elif ":" in host and not (host.startswith("[") and host.endswith("]")):
        problem = f"address {address}: too many colons in address"
    elif not (port.isascii() and port.isdecimal() and int(port) <= PORT_MAX):
        problem = f"address {port}: invalid port"
    if problem:
        raise EndpointError(f'endpoint "{text.strip()}": {problem}')
    return Endpoint(text.strip(), address if host else f"localhost{address}")

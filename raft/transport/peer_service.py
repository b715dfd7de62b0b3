"""The methods of the peer service, as gRPC spells them, and the addresses at which members serve them."""

from __future__ import annotations

from urllib.parse import urlsplit

STREAM_METHOD = "/raft.transport.wire.Peer/Stream"
PROBE_METHOD = "/raft.transport.wire.Peer/Probe"
DESCRIBE_METHOD = "/raft.transport.wire.Peer/Describe"
SNAPSHOT_METHOD = "/raft.transport.wire.Peer/Image"


def host_port(url: str) -> tuple[str, int]:
    """Split a peer URL such as `http://10.0.0.1:2380`; raises ValueError for one without scheme or port."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.port is None:
        raise ValueError(f"a peer URL must look like http://host:port, not {url!r}")
    return parts.hostname, parts.port

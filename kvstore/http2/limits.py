"""The bounds of a server, beside those that the engine enforces (`engine.EngineBounds`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvstore.http2.acceptor import connections_max
from kvstore.http2.engine import EngineBounds

PIECE_BYTES = 32 * 1024
"""Of one stream's data in the engine at a time. The engine sends it whole, so this is what a small reply
waits for behind a long one; two frames of 16 KiB, since a smaller piece costs more calls and no less time."""

WRITE_BUFFER_BYTES = 256 * 1024
"""Written and not yet taken by the kernel; beyond it a connection passes nothing on until half is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What one server allows its clients."""

    message_bytes: int
    """Largest message of a request, as received and decompressed."""
    engine: EngineBounds = field(default_factory=EngineBounds)
    connections: int = field(default_factory=connections_max)
    """Open at once; one more is closed as soon as it is accepted, and its client tries again."""
    handshake_s: float = 20.0
    """From the accept to the client's SETTINGS: whatever does not speak HTTP/2 must not hold a descriptor.
    Longer than a paused virtual machine or a lossy network takes."""
    keepalive_interval_s: float = 2 * 60 * 60
    """A connection on which nothing was received for so long is pinged (etcd's default)."""
    keepalive_timeout_s: float = 20.0
    """Without anything received for so long after a ping the connection is closed (etcd's default)."""
    unfinished_bytes: int = 128 * 1024 * 1024
    """Received on one connection and not taken by a handler: incomplete messages, and whole ones of held
    streams. Enough for 64 requests of 2 MiB at once; the call that goes beyond is refused."""
    replies_bytes: int = 16 * 1024 * 1024
    """Of replies that a connection's client does not read: while there are more, its further requests wait,
    and streams send one message at a time. What the requests in flight produce comes on top."""

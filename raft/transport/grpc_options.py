"""grpc.aio's channel and server settings for the peer protocol."""

from __future__ import annotations

from raft.transport.liveness import FRAME_BYTES_MAX, MESSAGE_BYTES_MAX, SILENCE_TIMEOUT_S

_PING_MS = int(SILENCE_TIMEOUT_S * 1000 / 2)
"""An idle connection is pinged after half of SILENCE_TIMEOUT_S; the answer has the other half."""

_COMMON_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX + FRAME_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX + FRAME_BYTES_MAX),
    ("grpc.keepalive_time_ms", _PING_MS),
    # gRPC takes the longer one of the two, and a minute for the second by itself.
    ("grpc.keepalive_timeout_ms", _PING_MS),
    ("grpc.http2.ping_timeout_ms", _PING_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    *_COMMON_OPTIONS,
    # A fresh channel must mean a fresh connection, not one shared with its failed predecessor.
    ("grpc.use_local_subchannel_pool", 1),
    # Members connect directly; a proxy variable meant for the web must not apply.
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
]

SERVER_OPTIONS: list[tuple[str, int]] = [
    *_COMMON_OPTIONS,
    # Peers ping every _PING_MS; by default gRPC treats that as abuse and closes the connection.
    ("grpc.http2.max_ping_strikes", 0),
    # Two processes on one port would each get some of the connections: fail instead.
    ("grpc.so_reuseport", 0),
]


def target_of(host: str, port: int) -> str:
    """Return gRPC's name for an address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

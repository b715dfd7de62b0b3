"""What a member says of itself, asked through etcd's Maintenance/Status."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc

from kvstore.wire import rpc_pb2

STATUS_METHOD = "/etcdserverpb.Maintenance/Status"
STATUS_TIMEOUT_S = 0.5
"""A member that answers does so in a millisecond; one that is paused must not hold up the table."""

_CHANNEL_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    # A restarted member shall show up at once, not after gRPC's usual wait of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 300),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """One row of the table. Everything after `unreachable_from` is 0 when the member did not answer."""

    number: int
    name: str
    client_address: str
    process: str
    """running, paused, killed, stopped, or exited (with its code)."""
    pid: int
    unreachable_from: tuple[int, ...]
    """Members that a partition separates from this one."""
    answered: bool = False
    member_id: int = 0
    leader_id: int = 0
    """0 when it knows of no leader."""
    term: int = 0
    raft_index: int = 0
    applied_index: int = 0
    database_bytes: int = 0
    version: str = ""
    errors: tuple[str, ...] = ()

    @property
    def role(self) -> str:
        """leader or follower; none without a known leader; empty when it did not answer."""
        if not self.answered:
            return ""
        if not self.leader_id:
            return "none"
        return "leader" if self.leader_id == self.member_id else "follower"


class StatusProbe:
    """A channel to one member's client port, kept open between requests."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._ask: Any = self._channel.unary_unary(
            STATUS_METHOD,
            request_serializer=rpc_pb2.StatusRequest.SerializeToString,
            response_deserializer=rpc_pb2.StatusResponse.FromString,
        )

    async def ask(self) -> rpc_pb2.StatusResponse | None:
        """Return the member's answer, None when it gives none in time."""
        try:
            response: rpc_pb2.StatusResponse = await self._ask(
                rpc_pb2.StatusRequest(), timeout=STATUS_TIMEOUT_S
            )
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return None
        return response

    async def close(self) -> None:
        await self._channel.close()

"""One plain grpc.aio client for this store and for etcd, over raw messages: no retry, no cleverness."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, Self, TypeVar

import grpc.aio

from kvstore.wire import rpc_pb2

OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 100),  # a killed member is found again quickly
    ("grpc.use_local_subchannel_pool", 1),  # one connection per channel
]


class Message(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802 -- protobuf's name


Reply = TypeVar("Reply")


class Store:
    """The calls of one endpoint, on one connection. Close it, or use it as an async context manager."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.channel = grpc.aio.insecure_channel(endpoint, options=OPTIONS)
        self.range = self._unary("KV/Range", rpc_pb2.RangeRequest, rpc_pb2.RangeResponse)
        self.put = self._unary("KV/Put", rpc_pb2.PutRequest, rpc_pb2.PutResponse)
        self.delete = self._unary("KV/DeleteRange", rpc_pb2.DeleteRangeRequest, rpc_pb2.DeleteRangeResponse)
        self.txn = self._unary("KV/Txn", rpc_pb2.TxnRequest, rpc_pb2.TxnResponse)
        self.compact = self._unary("KV/Compact", rpc_pb2.CompactionRequest, rpc_pb2.CompactionResponse)
        self.lease_grant = self._unary(
            "Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest, rpc_pb2.LeaseGrantResponse
        )
        self.snapshot = self.channel.unary_stream(
            "/etcdserverpb.Maintenance/Snapshot",
            request_serializer=rpc_pb2.SnapshotRequest.SerializeToString,
            response_deserializer=rpc_pb2.SnapshotResponse.FromString,
        )
        self.status = self._unary("Maintenance/Status", rpc_pb2.StatusRequest, rpc_pb2.StatusResponse)

    def _unary(
        self, method: str, request: type[Message], reply: type[Reply]
    ) -> Callable[..., Awaitable[Reply]]:
        call: Callable[..., Awaitable[Reply]] = self.channel.unary_unary(
            f"/etcdserverpb.{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=reply.FromString,  # type: ignore[attr-defined]  # every message class has it
        )
        return call

    async def close(self) -> None:
        await self.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

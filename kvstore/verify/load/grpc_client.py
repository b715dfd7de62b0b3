"""A client that adds nothing to grpc.aio: one channel to one member, one request per call, no retry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from kvstore.client.outcomes import OUTCOME_TRAILER, error_from_status
from kvstore.errors import Code, OutcomeUnknown
from kvstore.verify.load.client_protocol import (
    CertainFailureError,
    NotServedError,
    UnknownOutcomeError,
    WatchReply,
)
from kvstore.verify.load.etcd_messages import EtcdClient, prefix_end
from kvstore.wire import rpc_pb2, v3lock_pb2

OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),  # a member that was killed is found again quickly
    ("grpc.use_local_subchannel_pool", 1),  # one connection per client, as many users have
]


class ThinClient(EtcdClient):
    """One channel. Calls end within `timeout_s`."""

    def __init__(self, endpoint: str, timeout_s: float) -> None:
        super().__init__(rpc_pb2)
        self._timeout_s = timeout_s
        self._channel = grpc.aio.insecure_channel(endpoint, options=OPTIONS)
        self._calls: dict[tuple[str, str], Any] = {}
        """Multi-callables by service and method, made at first use."""

    async def unary(self, service: str, method: str, request: Any, *, changes: bool) -> Any:
        return await self._send("etcdserverpb", service, method, request, changes, self._timeout_s)

    async def _send(
        self, package: str, service: str, method: str, request: Any, changes: bool, timeout_s: float
    ) -> Any:
        call = self._calls.get((service, method))
        if call is None:
            replies: Any = v3lock_pb2 if package == "v3lockpb" else rpc_pb2
            name = type(request).__name__.removesuffix("Request") + "Response"
            call = self._calls[service, method] = self._channel.unary_unary(
                f"/{package}.{service}/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=getattr(replies, name).FromString,
            )
        try:
            return await call(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _sorted(error, changes) from None

    async def lease_keep_alive(self, lease: int) -> int:
        call: Any = self._channel.stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=rpc_pb2.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=rpc_pb2.LeaseKeepAliveResponse.FromString,
        )(timeout=self._timeout_s)
        try:
            await call.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease))
            reply = await call.read()
            if reply is grpc.aio.EOF:
                raise UnknownOutcomeError("the stream ended")
            return int(reply.TTL)
        except grpc.aio.AioRpcError as error:
            raise _sorted(error, changes=True) from None
        except asyncio.InvalidStateError as error:  # grpc.aio's word for a stream that has ended meanwhile
            raise UnknownOutcomeError(str(error)) from None
        finally:
            call.cancel()

    async def lock(self, name: str, lease: int, timeout_s: float) -> tuple[str, int]:
        request = v3lock_pb2.LockRequest(name=name.encode(), lease=lease)
        reply = await self._send("v3lockpb", "Lock", "Lock", request, True, timeout_s)
        return reply.key.decode(), reply.header.revision

    async def unlock(self, key: str) -> int:
        request = v3lock_pb2.UnlockRequest(key=key.encode())
        reply = await self._send("v3lockpb", "Lock", "Unlock", request, True, self._timeout_s)
        return int(reply.header.revision)

    async def watch(
        self, prefix: str, start: int, *, previous: bool, no_put: bool = False, no_delete: bool = False
    ) -> AsyncIterator[WatchReply]:
        filters = [*([rpc_pb2.WatchCreateRequest.NOPUT] if no_put else [])]
        filters += [rpc_pb2.WatchCreateRequest.NODELETE] if no_delete else []
        create = rpc_pb2.WatchCreateRequest(
            key=prefix.encode(),
            range_end=prefix_end(prefix.encode()),
            start_revision=start,
            prev_kv=previous,
            progress_notify=True,
            filters=filters,
        )
        call: Any = self._channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=rpc_pb2.WatchRequest.SerializeToString,
            response_deserializer=rpc_pb2.WatchResponse.FromString,
        )()
        try:
            await call.write(rpc_pb2.WatchRequest(create_request=create))
            while (reply := await call.read()) is not grpc.aio.EOF:
                yield WatchReply(
                    reply.header.revision,
                    [_event(event) for event in reply.events],
                    created=reply.created,
                    compacted=reply.compact_revision,
                    canceled=reply.canceled,
                )
        except grpc.aio.AioRpcError as error:
            raise _sorted(error, changes=False) from None
        except asyncio.InvalidStateError as error:  # grpc.aio's word for a stream that has ended meanwhile
            raise CertainFailureError(str(error)) from None
        finally:
            call.cancel()

    async def close(self) -> None:
        await self._channel.close()


def _event(event: Any) -> dict[str, Any]:
    deleted = event.type == 1
    return {
        "type": "delete" if deleted else "put",
        "key": event.kv.key.decode(),
        "value": None if deleted else event.kv.value.decode(),
        "mod": event.kv.mod_revision,
        "create": event.kv.create_revision,
        "version": event.kv.version,
        "prev": [event.prev_kv.value.decode(), event.prev_kv.mod_revision]
        if event.HasField("prev_kv")
        else None,
    }


def _sorted(error: grpc.aio.AioRpcError, changes: bool) -> Exception:
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return NotServedError(error.details() or "unimplemented")
    trailer = next(
        (str(value) for name, value in error.trailing_metadata() or () if name == OUTCOME_TRAILER), None
    )
    code: int = error.code().value[0]
    typed = error_from_status(Code(code), error.details() or "", trailer, changes=changes)
    text = f"{error.code().name} {error.details()}"
    return UnknownOutcomeError(text) if isinstance(typed, OutcomeUnknown) else CertainFailureError(text)

"""Plain gRPC calls to one member: raw messages, no retry.

The wire and the command line are all that these tests know of a member, so that they outlive its names.
"""

from __future__ import annotations

import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from bench.clusters import Member, pause
from kvstore.wire import rpc_pb2

CALL_SECONDS_MAX = 10.0
"""More than a member takes to refuse: etcd's 5 s and two election timeouts."""

OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # a member that starts again is dialled anew, without a back-off
    ("grpc.enable_http_proxy", 0),
]

Result = TypeVar("Result")


class Calls:
    """The calls of one member, on one connection, by service and method (`KV/Put`)."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def __call__(self, method: str, request: Message, seconds: float = CALL_SECONDS_MAX) -> Any:
        """The reply. Raises grpc.RpcError."""
        return self.begin(method, request, seconds).result()

    def begin(self, method: str, request: Message, seconds: float = CALL_SECONDS_MAX) -> grpc.Future[Any]:
        """The same call while it runs."""
        call = self._channel.unary_unary(
            _path(method, request),
            request_serializer=type(request).SerializeToString,
            response_deserializer=_reply_of(request).FromString,
        )
        return call.future(request, timeout=seconds)

    def stream(self, method: str, request: Message, seconds: float = CALL_SECONDS_MAX) -> Any:
        """The replies to one request on a stream that stays open. Iterating raises grpc.RpcError."""
        call = self._channel.stream_stream(
            _path(method, request),
            request_serializer=type(request).SerializeToString,
            response_deserializer=_reply_of(request).FromString,
        )
        return call(iter([request]), timeout=seconds)


def _path(method: str, request: Message) -> str:
    return f"/{request.DESCRIPTOR.file.package}.{method}"


def _reply_of(request: Message) -> Any:
    """The class of the reply, which stands beside that of the request."""
    name = type(request).__name__.replace("Request", "Response")
    return getattr(sys.modules[type(request).__module__], name)


@contextmanager
def connected(member: Member) -> Iterator[Calls]:
    """The calls of a member, on a new connection."""
    with grpc.insecure_channel(member.endpoint, options=OPTIONS) as channel:
        yield Calls(channel)


def metric(member: Member, name: str) -> float:
    """The value of an unlabelled metric of a member that was started with --listen-metrics-urls."""
    flag = "--listen-metrics-urls="
    url = next(argument.removeprefix(flag) for argument in member.command if argument.startswith(flag))
    with urllib.request.urlopen(f"{url}/metrics", timeout=CALL_SECONDS_MAX) as page:  # noqa: S310  our own
        lines = page.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def first_index(member: Member) -> float:
    """The index of the oldest log entry that the member still holds."""
    status = rpc_pb2.StatusRequest()
    with connected(member) as calls:
        newest: int = calls("Maintenance/Status", status).raftIndex
        return newest - metric(member, "kvstore_log_entries") + 1


def until(what: str, ready: Callable[[], Result], seconds: float = 30.0) -> Result:
    """Ask again until `ready` returns something true, and return that; grpc.RpcError counts as not yet."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = ready()
        except grpc.RpcError as error:
            last = error
        else:
            if last:
                return last
        pause()
    raise AssertionError(f"not within {seconds} s: {what}; last seen: {last!r}")

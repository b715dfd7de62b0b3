"""What the bindings share: the gate, their bounds, and how a message becomes bytes."""

from __future__ import annotations

import logging
from typing import Protocol

from google.protobuf.message import EncodeError, Message

from kvstore.errors import Code, KVError, OutcomeUnknown, ServerStopped
from kvstore.rpc.call import Call, HandlerFault, Method

logger = logging.getLogger("kvstore.rpc")

FRAMING_BYTES_MAX = 512 * 1024
"""A message may be larger than a request by this much, as in etcd (`grpcOverheadBytes`)."""

UNREAD_MESSAGES_MAX = 1024
"""Messages of one streaming reply that wait for its caller; beyond it the call fails."""

UNREAD_LOW_MESSAGES = 64
UNREAD_LOW_BYTES = 256 * 1024
"""Unread part of a streaming reply that still `has_room`: enough to keep a connection busy between two loop
iterations, little enough to afford ten thousand callers that never read."""

KEEPALIVE_INTERVAL_S = 2 * 60 * 60.0
KEEPALIVE_TIMEOUT_S = 20.0
"""HTTP/2 pings of idle connections, and the timeout of one: etcd's defaults."""


class SlowCaller(KVError):
    code, text = Code.RESOURCE_EXHAUSTED, "kvstore: the caller reads too slowly"


class Abandoned(OutcomeUnknown):
    """The member failed during a call, whose effects, such as a queue entry, may remain."""

    text = ServerStopped.text


class RpcServer(Protocol):
    """A server of one of the bindings."""

    def add_insecure_port(self, address: str) -> int:
        """Bind `host:port`; returns the port. Raises OSError or RuntimeError."""

    async def start(self) -> None:
        """Serve."""

    async def stop(self, grace: float | None) -> None:
        """Take no more calls, and end those that last longer than `grace` seconds."""


class Gate:
    """Admits calls until the member fails; then it is shut for good."""

    def __init__(self) -> None:
        self.is_open = True
        self._open: dict[Call, None] = {}
        """Unanswered calls, and streams."""

    def enter(self, call: Call) -> None:
        """The call waits; every `enter` has its `leave`."""
        self._open[call] = None
        if not self.is_open:
            call.fail(Abandoned())

    def leave(self, call: Call) -> None:
        """The call is complete. Harmless without an `enter`."""
        self._open.pop(call, None)

    def shut(self) -> None:
        """Refuse calls from now on, and fail those that wait: no answer would ever come."""
        self.is_open = False
        for call in list(self._open):
            call.fail(Abandoned())


def encode(method: Method, message: Message | bytes) -> bytes:
    """The bytes of a reply, counted. Raises HandlerFault for one larger than a message can be."""
    try:
        data = message if isinstance(message, bytes) else message.SerializeToString()
    except (ValueError, EncodeError):
        logger.exception("a reply of %s cannot be encoded", method.path)
        raise HandlerFault from None
    method.statistics.sent_bytes += len(data)
    return data

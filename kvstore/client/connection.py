"""One client's connections, one per endpoint, and the calls over them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Self

import grpc
import grpc.aio

from kvstore.client.causes import Cause, cause_of, in_words
from kvstore.client.endpoints import Endpoint
from kvstore.client.methods import Method, Reply, Request
from kvstore.client.outcomes import error_from_status
from kvstore.client.streams import GrpcStream, Metadata, status_of
from kvstore.errors import Code, KVError, OutcomeUnknown, Unavailable

RECONNECT_BACKOFF_MAX_MS = 100
"""A member that restarts is found again within this; gRPC's own default is two minutes."""

# Between two rounds over endpoints none of which can be reached or has a leader: long enough not to
# burden a cluster that elects, short against an election.
ROUND_PAUSE_S = 0.05

# How often to look whether a connection stands. gRPC's own watch of a channel cannot be cancelled
# without an event left behind for a loop that may be gone.
CONNECTING_POLL_S = 0.004

# A replaced member's address must be refused, not connected to for gRPC's default 20 s.
CONNECT_TIMEOUT_MS = 2000

KEEPALIVE_TIME_S = 10.0
"""A member with a call under way that says nothing for so long is asked whether it lives: the shortest that
Go's client, and so etcdctl, grants itself, and twice what an etcd server tolerates."""

KEEPALIVE_TIMEOUT_S = 6.0
"""How long it may take to answer before the connection is given up: etcdctl's default."""

_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_BACKOFF_MAX_MS // 2),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_BACKOFF_MAX_MS),
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),  # gRPC's name for the connect timeout
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),  # whether to send again is decided here
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # one client's trouble is not another's
    ("grpc.http2.max_pings_without_data", 0),  # a watch may have nothing to tell for days
)

TIMED_OUT_TEXT = "context deadline exceeded"
"""etcd's client says so when its own patience ends."""


# Asked of a channel that is not connected, which fails at once and says why; harmless should it be by now.
_PROBE_PATH = "/grpc.health.v1.Health/Check"
_PROBE_TIMEOUT_S = 0.1


class TimedOut(Unavailable):
    """No endpoint took the request in time; it was never sent, or only read.

    Where no connection could be made the text ends with the reason of each endpoint.
    """

    code, text = Code.DEADLINE_EXCEEDED, TIMED_OUT_TEXT


class NoSuchHost(Unavailable):
    """The names of all endpoints are unknown. Raised at once, but not once a connection has been made."""


def timed_out(method: Method[Request, Reply]) -> KVError:
    """The error of a call that was sent and not answered in time."""
    if not method.changes:
        return TimedOut()
    error = OutcomeUnknown(TIMED_OUT_TEXT)
    error.code = Code.DEADLINE_EXCEEDED
    return error


class Connection:
    """Connections to some endpoints of one cluster. Use it as `async with`; one event loop only."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        timeout_s: float,
        keepalive_time_s: float = KEEPALIVE_TIME_S,
        keepalive_timeout_s: float = KEEPALIVE_TIMEOUT_S,
        on_waiting: Callable[[str], None] | None = None,
    ) -> None:
        """`timeout_s` bounds every call, connecting included. A connection whose member is silent for
        `keepalive_time_s`, and then for `keepalive_timeout_s` after it was asked, is given up with the
        calls on it; so a stream to a paused member ends. What has no time limit, such as a watch, calls
        `on_waiting` with the reasons, once, when the first connection has taken longer than `timeout_s`.
        Raises ValueError without endpoints.
        """
        if not endpoints:
            raise ValueError("at least one endpoint is needed")
        self._endpoints = tuple(endpoints)
        self._timeout_s = timeout_s
        self._on_waiting = on_waiting
        self._was_connected = False
        options = (
            *_CHANNEL_OPTIONS,
            ("grpc.keepalive_time_ms", round(1000 * keepalive_time_s)),
            # gRPC takes the longer one of the two, and a minute for the second by itself.
            ("grpc.keepalive_timeout_ms", round(1000 * keepalive_timeout_s)),
            ("grpc.http2.ping_timeout_ms", round(1000 * keepalive_timeout_s)),
        )
        self._channels = [
            grpc.aio.insecure_channel(endpoint.target, options=options) for endpoint in endpoints
        ]
        # Index of the channel that served last: stays until it fails.
        self._preferred = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)

    async def call(self, method: Method[Request, Reply], request: Request) -> Reply:
        """Make one call. Raises `kvstore.errors.KVError`: see the package's guarantees."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        last_error: Unavailable | None = None
        while loop.time() < deadline:
            index = await self._ready_channel(deadline)
            if index is None:
                raise await self._timed_out(last_error)
            try:
                return await self._send(self._channels[index], method, request, deadline)
            except Unavailable as error:  # certainly not applied
                if error.code is not Code.UNAVAILABLE:
                    raise
                last_error = error
            self._preferred = (index + 1) % len(self._channels)
            await asyncio.sleep(ROUND_PAUSE_S)
        raise last_error or TimedOut()

    async def channel(self, deadline: float) -> grpc.aio.Channel:
        """A connected channel, for a call that this class does not know. Raises TimedOut, NoSuchHost."""
        index = await self._ready_channel(deadline)
        if index is None:
            raise await self._timed_out(None)
        self._preferred = index
        return self._channels[index]

    def avoid(self) -> None:
        """What `channel` gave has failed: prefer the next."""
        self._preferred = (self._preferred + 1) % len(self._channels)

    async def open(
        self,
        method: Method[Request, Reply],
        request: Request | None = None,
        *,
        metadata: Metadata = (),
        deadline: float = math.inf,
    ) -> GrpcStream[Request, Reply]:
        """Begin a call that goes on: see `StreamCaller`."""
        return GrpcStream(await self.channel(deadline), method, request, metadata)

    async def _ready_channel(self, deadline: float) -> int | None:
        """The preferred channel if it is connected, else the first to connect; None at the deadline.

        Raises NoSuchHost.
        """
        loop = asyncio.get_running_loop()
        order = [(self._preferred + step) % len(self._channels) for step in range(len(self._channels))]
        patient_until = loop.time() + self._timeout_s
        asked = False
        while loop.time() < deadline:
            failed = 0
            for index in order:
                state = self._channels[index].get_state(try_to_connect=True)
                if state is grpc.ChannelConnectivity.READY:
                    self._was_connected = True
                    return index
                failed += state is grpc.ChannelConnectivity.TRANSIENT_FAILURE
            if not self._was_connected and failed == len(order) and not asked:
                asked = True
                await self._refuse_unknown_names()
            if not self._was_connected and self._on_waiting is not None and loop.time() > patient_until:
                on_waiting, self._on_waiting = self._on_waiting, None
                on_waiting(in_words(await self._causes()))
            await asyncio.sleep(CONNECTING_POLL_S)
        return None

    async def _refuse_unknown_names(self) -> None:
        causes = await self._causes()
        if len(causes) == len(self._channels) and all(cause.certain for _, cause in causes):
            raise NoSuchHost(in_words(causes))

    async def _timed_out(self, last_error: Unavailable | None) -> Unavailable:
        """What to raise when no channel is connected in time."""
        causes = await self._causes()
        if causes:
            return TimedOut(f"{TIMED_OUT_TEXT}: last error: {in_words(causes)}")
        return last_error or TimedOut()

    async def _causes(self) -> list[tuple[str, Cause]]:
        """Why endpoints cannot be reached, by endpoint; those of which nothing is known are left out."""
        found = await asyncio.gather(*map(self._cause, self._channels))
        targets = [endpoint.target for endpoint in self._endpoints]
        return [(target, cause) for target, cause in zip(targets, found, strict=True) if cause is not None]

    @staticmethod
    async def _cause(channel: grpc.aio.Channel) -> Cause | None:
        try:
            probe: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_PROBE_PATH)
            await probe(b"", timeout=_PROBE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return cause_of(error.details() or "")
        except grpc.aio.UsageError:  # the channel was closed meanwhile
            return None
        return None

    async def _send(
        self, channel: grpc.aio.Channel, method: Method[Request, Reply], request: Request, deadline: float
    ) -> Reply:
        stub = channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.reply.FromString,
        )
        patience_s = deadline - asyncio.get_running_loop().time()
        try:
            reply: Reply = await stub(request, timeout=patience_s)
        except grpc.aio.AioRpcError as error:
            code, text, outcome = status_of(error)
            if code is Code.DEADLINE_EXCEEDED and outcome is None:
                raise timed_out(method) from None
            raise error_from_status(code, text, outcome, changes=method.changes) from None
        return reply

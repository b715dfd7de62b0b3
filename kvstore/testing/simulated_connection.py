"""A client's connection to simulated members: what `kvstore.client.Connection` is, in memory.

Requests and replies travel as bytes through the event loop. A call to a process that dies fails like one
whose connection broke. A paused process takes requests and answers later, or is given up as by gRPC's pings.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, Protocol, Self

from kvstore.client import Method, TimedOut
from kvstore.client.connection import KEEPALIVE_TIME_S, KEEPALIVE_TIMEOUT_S, ROUND_PAUSE_S, timed_out
from kvstore.client.methods import Reply, Request
from kvstore.client.outcomes import error_from_status
from kvstore.client.streams import Metadata
from kvstore.errors import Code, KVError, Unavailable
from kvstore.rpc.call import outcome_of
from kvstore.testing.services import ConnectionLost, MemberServices, MemoryCall

UNTAKEN_BYTES_MAX = 65_535
"""Requests of a stream that the member has not taken, before its client has to wait: what HTTP/2's flow
control grants a new stream."""


class Servers(Protocol):
    def services_of(self, member_id: int) -> MemberServices | None:
        """A member's services; None while it is down or has failed."""

    def paused(self, member_id: int) -> bool:
        """Whether the member is paused: it accepts requests and answers later."""


class SimulatedConnection:
    """A client's connection to some members. Implements `kvstore.client.StreamCaller`, so that watches,
    sessions, locks and elections of `kvstore.client` run over it.

    With the same guarantees: a call returns its reply or raises one error in time, and a request of unknown
    outcome is never retried.
    """

    def __init__(self, servers: Servers, members: Sequence[int], *, timeout_s: float) -> None:
        self._servers = servers
        self._members = tuple(members)
        self._timeout_s = timeout_s
        self._preferred = 0
        self._streams: dict[Callable[[], None], None] = {}
        """How to cancel each stream that has not ended, in the order of opening."""
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the streams that are open, as the end of a client's process does. No call is sent any more."""
        self._closed = True
        for cancel in list(self._streams):
            cancel()

    async def call(self, method: Method[Request, Reply], request: Request) -> Reply:
        """Make one call. Raises `kvstore.errors.KVError`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        last: Unavailable = TimedOut()
        while (remaining_s := deadline - loop.time()) > 0:
            if self._servers.paused(self._members[self._preferred]):
                await asyncio.sleep(ROUND_PAUSE_S)  # the request waits in the process's socket
                continue
            services = self._reached()
            if services is not None:
                try:
                    return await self._once(services, method, request, remaining_s)
                except Unavailable as error:  # certainly not applied
                    if error.code is not Code.UNAVAILABLE:
                        raise
                    last = error
            self.avoid()
            await asyncio.sleep(ROUND_PAUSE_S)
        raise last

    async def open(
        self,
        method: Method[Request, Reply],
        request: Request | None = None,
        *,
        metadata: Metadata = (),
        deadline: float = math.inf,
    ) -> SimulatedStream[Request, Reply]:
        """Begin a call that goes on: see `StreamCaller`."""
        loop = asyncio.get_running_loop()
        while loop.time() < deadline:
            services = self._reached()
            if services is not None:
                member_id = self._members[self._preferred]
                stream = SimulatedStream(self._servers, member_id, services, method, metadata)
                self._streams[stream.cancel] = None
                stream.on_end = partial(self._streams.pop, stream.cancel, None)
                stream.begin(request)
                return stream
            self.avoid()
            await asyncio.sleep(ROUND_PAUSE_S)
        raise TimedOut

    def avoid(self) -> None:
        """What this member was asked has failed: prefer the next."""
        self._preferred = (self._preferred + 1) % len(self._members)

    def _reached(self) -> MemberServices | None:
        """The services of the preferred member, if it can be connected to."""
        return None if self._closed else self._servers.services_of(self._members[self._preferred])

    async def _once(
        self, services: MemberServices, method: Method[Request, Reply], request: Request, timeout_s: float
    ) -> Reply:
        call = services.begin(method.path, request.SerializeToString())
        try:
            data = await asyncio.wait_for(call.next_reply(), timeout_s)
        except TimeoutError:
            raise timed_out(method) from None
        except KVError as error:
            raise _as_client_error(error, method) from None
        finally:
            call.mark_gone()
        assert data is not None, "a unary call has a reply"
        return method.reply.FromString(data)


def _as_client_error(error: KVError, method: Method[Request, Reply]) -> KVError:
    """What a client makes of an error of the server, of which it knows code, text and outcome."""
    return error_from_status(error.code, str(error), outcome_of(error), changes=method.changes)


class SimulatedStream(Generic[Request, Reply]):
    """One call in progress at one incarnation of a member. Implements `kvstore.client.Stream`."""

    def __init__(
        self,
        servers: Servers,
        member_id: int,
        services: MemberServices,
        method: Method[Request, Reply],
        metadata: Metadata,
    ) -> None:
        self.on_end: Callable[[], object] = lambda: None
        """Called when the call has ended, by either side; perhaps more than once."""
        self._servers = servers
        self._member_id = member_id
        self._services = services
        self._method = method
        self._call = MemoryCall(dict(metadata))
        self._is_open = False
        """The member knows of the call."""
        self._timer: asyncio.TimerHandle | None = None
        """Looks again whether the process goes on; what is sent to it meanwhile waits in its socket."""

    def begin(self, request: Request | None) -> None:
        """Send the call to the member, with its only request or, for a stream of them, without any."""
        if request is not None:
            self._call.queue(request.SerializeToString())
            self._call.queue(None)
        self._deliver()

    async def write(self, request: Request) -> None:
        """Send one more request; dropped when the call has ended."""
        self._call.queue(request.SerializeToString())
        if self._timer is None:
            self._deliver()
        await asyncio.sleep(0)
        while self._call.queued_bytes > UNTAKEN_BYTES_MAX:  # noqa: ASYNC110  it polls, as all here does
            await asyncio.sleep(ROUND_PAUSE_S)

    async def read(self) -> Reply | None:
        """The next reply, or None after the last one. Raises KVError."""
        try:
            data = await self._next()
        except KVError as error:
            self.on_end()
            raise _as_client_error(error, self._method) from None
        except asyncio.CancelledError:
            self.cancel()
            raise
        if data is not None:
            return self._method.reply.FromString(data)
        self.on_end()
        return None

    def cancel(self) -> None:
        """End the call."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._call.cancel()
        self.on_end()

    async def _next(self) -> bytes | None:
        while True:
            try:
                async with asyncio.timeout(KEEPALIVE_TIME_S):
                    data = await self._call.next_reply()
            except TimeoutError:
                await self._while_paused()
                if not self._is_alive:
                    self._call.reset()  # its end is the next reply
            else:
                await self._while_paused()  # what a process sent before it was paused may arrive afterwards
                return data

    async def _while_paused(self) -> None:
        """Return when the process goes on. Raises ConnectionLost when that takes too long."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + KEEPALIVE_TIMEOUT_S
        while self._servers.paused(self._member_id):
            if loop.time() >= end_s:
                self._call.reset()
                raise ConnectionLost("keepalive watchdog timeout")
            await asyncio.sleep(ROUND_PAUSE_S)

    @property
    def _is_alive(self) -> bool:
        return self._servers.services_of(self._member_id) is self._services

    def _deliver(self) -> None:
        """Pass on what the client has sent: at once, or when the process goes on."""
        self._timer = None
        if not self._is_alive:
            self._call.reset()
        elif self._servers.paused(self._member_id):
            self._timer = asyncio.get_running_loop().call_later(ROUND_PAUSE_S, self._deliver)
        else:
            if not self._is_open:
                self._is_open = True
                self._services.open(self._method.path, self._call)
            self._call.deliver_queued()

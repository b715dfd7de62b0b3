"""A watch that goes on: after a member or leader is lost it resumes on another, where it left off."""

from __future__ import annotations

import asyncio
from typing import Self

from kvstore.client.connection import ROUND_PAUSE_S
from kvstore.client.methods import WATCH
from kvstore.client.streams import Stream, StreamCaller
from kvstore.errors import Code, KVError
from kvstore.wire import rpc_pb2

_REQUIRE_LEADER = (("hasleader", "true"),)
"""A partitioned member ends the stream instead of staying silent during the partition."""

# How a stream ends when a member goes; a watch changes nothing, so it is simply begun again.
_LOST = frozenset({Code.UNAVAILABLE, Code.CANCELLED, Code.UNKNOWN, Code.INTERNAL})

_Stream = Stream[rpc_pb2.WatchRequest, rpc_pb2.WatchResponse]


class Watching:
    """Responses to one creation request, as an async iterator; use it as `async with`.

    Each revision comes whole, once and in order, however often the connection is lost. Ends after a
    response that says `canceled`: refused, or (with `compact_revision`) its next revision is compacted.
    Raises KVError when the cluster cannot be watched. What says `created` and nothing else is left out.
    """

    def __init__(self, connection: StreamCaller, request: rpc_pb2.WatchCreateRequest) -> None:
        self._connection = connection
        self._request = rpc_pb2.WatchCreateRequest()
        self._request.CopyFrom(request)
        self._request.watch_id = 0
        self._request.fragment = False  # a revision in pieces could be lost in the middle
        self._call: _Stream | None = None
        self._canceled = False
        self.reconnects = 0
        """Times it was begun anew."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._end()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> rpc_pb2.WatchResponse:
        while not self._canceled:
            if self._call is None:
                self._call = await self._begin()
            try:
                response = await self._call.read()
            except KVError as error:
                if error.code not in _LOST:
                    raise
                response = None
            if response is None:
                self._end()
                self._connection.avoid()
                self.reconnects += 1
                await asyncio.sleep(ROUND_PAUSE_S)
                continue
            self._heard(response)
            if not response.created or response.canceled:
                return response
        raise StopAsyncIteration

    async def request_progress(self) -> None:
        """Request a response without events whose revision covers every event sent so far.

        Nothing comes when the stream is lost meanwhile.
        """
        if self._call is not None:
            await self._call.write(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))

    async def _begin(self) -> _Stream:
        call = await self._connection.open(WATCH, metadata=_REQUIRE_LEADER)
        await call.write(rpc_pb2.WatchRequest(create_request=self._request))
        return call

    def _end(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _heard(self, response: rpc_pb2.WatchResponse) -> None:
        request = self._request
        if response.canceled:
            self._canceled = True
        elif response.events:
            request.start_revision = response.events[-1].kv.mod_revision + 1
        elif not response.created or request.start_revision == 0:
            # Progress, or the revision that a watch from now on begins behind.
            request.start_revision = max(request.start_revision, response.header.revision + 1)

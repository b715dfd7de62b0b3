"""etcdserverpb.Watch: one stream of requests and responses, many watchers (`api/v3rpc/watch.go`).

`kvstore.watch` decides which events a watcher gets and when; this module encodes them. An event is encoded
once, as the part of a response that holds it, for all its watchers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

from kvstore.engine import Event
from kvstore.errors import NoLeader
from kvstore.rpc import convert
from kvstore.rpc.call import HAS_LEADER_KEY, Call, Method
from kvstore.rpc.convert import Headers
from kvstore.server.local_member import LocalMember
from kvstore.watch.watch_hub import WatchEvent
from kvstore.watch.watch_stream import StreamWatcher, WatchStream
from kvstore.wire import kv_pb2
from kvstore.wire import rpc_pb2 as pb

SERVICE = "etcdserverpb.Watch"

FRAGMENT_OVERHEAD_BYTES = 512 * 1024
"""A fragment may be larger than a request by this much, as in etcd (`grpcOverheadBytes`)."""

PROGRESS_JITTER = 0.1
"""Up to this part of the interval is added per stream, so that their timers do not coincide."""

NOPUT, NODELETE = pb.WatchCreateRequest.NOPUT, pb.WatchCreateRequest.NODELETE


class WatchService:
    def __init__(self, member: LocalMember, headers: Headers) -> None:
        self._member = member
        self._headers = headers
        # Spreads timers, guards no secret; seeded so that a simulated member repeats its steps.
        self._rng = random.Random(member.member_id)  # noqa: S311  see above

    def methods(self) -> tuple[Method, ...]:
        return (Method(service=SERVICE, name="Watch", request_type=pb.WatchRequest, opens=self.open),)

    def open(self, call: Call) -> Conversation:
        return Conversation(self._member, self._headers, call, self._rng)


class Conversation:
    """One call: its requests in (Inbound), its responses out (Sink)."""

    def __init__(self, member: LocalMember, headers: Headers, call: Call, rng: random.Random) -> None:
        self._rng = rng
        self._member = member
        self._headers = headers
        self._call = call
        self._stream = WatchStream(member.watches, self)
        self._fragment_bytes = member.limits.request_bytes_max + FRAGMENT_OVERHEAD_BYTES
        self._timer: asyncio.TimerHandle | None = None
        """Of periodic progress; set once a watcher requested it."""
        call.on_gone(self._gone)
        call.on_drained(self._drained)
        if call.metadata(HAS_LEADER_KEY) == "true":
            member.leader_loss.add(self._leader_lost)

    # -- requests --------------------------------------------------------------------------------

    def receive(self, request: pb.WatchRequest) -> None:
        kind = request.WhichOneof("request_union")
        if kind == "create_request":
            self._create(request.create_request)
        elif kind == "cancel_request":
            self._stream.cancel(request.cancel_request.watch_id)
        elif kind == "progress_request":
            self._stream.request_progress()
        if self._stream.busy:
            self._call.hold_requests()

    def _create(self, request: pb.WatchCreateRequest) -> None:
        self._stream.create(
            request.key,
            request.range_end,
            start_revision=request.start_revision,
            watch_id=request.watch_id,
            no_put=NOPUT in request.filters,
            no_delete=NODELETE in request.filters,
            with_prev=request.prev_kv,
            fragment=request.fragment,
            progress_notify=request.progress_notify,
        )
        if request.progress_notify and self._timer is None:
            self._plan_tick()

    def half_closed(self) -> None:
        """A caller that has closed its side still gets events, as in etcd."""

    def _drained(self) -> None:
        self._stream.pump()
        if not self._stream.busy:
            self._call.resume_requests()

    def _gone(self) -> None:
        self._stream.close()
        self._member.leader_loss.remove(self._leader_lost)
        if self._timer is not None:
            self._timer.cancel()

    def _leader_lost(self) -> None:
        self._call.fail(NoLeader())

    def _plan_tick(self) -> None:
        interval_s = self._member.limits.progress_interval_s
        interval_s *= 1 + PROGRESS_JITTER * self._rng.random()
        self._timer = asyncio.get_running_loop().call_later(interval_s, self._tick)

    def _tick(self) -> None:
        self._stream.tick()
        self._plan_tick()

    # -- responses -------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        return self._call.has_room

    def created(self, watch_id: int, revision: int, refusal: str) -> None:
        header = self._headers.at(revision)
        self._call.send(
            pb.WatchResponse(
                header=header, watch_id=watch_id, created=True, canceled=bool(refusal), cancel_reason=refusal
            )
        )

    def canceled(self, watch_id: int, revision: int) -> None:
        self._call.send(pb.WatchResponse(header=self._headers.at(revision), watch_id=watch_id, canceled=True))

    def compacted(self, watch_id: int, compact_revision: int) -> None:
        header = self._headers.without_revision()
        self._call.send(
            pb.WatchResponse(
                header=header, watch_id=watch_id, canceled=True, compact_revision=compact_revision
            )
        )

    def progress(self, watch_id: int, revision: int) -> None:
        self._call.send(pb.WatchResponse(header=self._headers.at(revision), watch_id=watch_id))

    def events(self, watcher: StreamWatcher, revision: int, events: list[WatchEvent]) -> None:
        with_prev = watcher.with_prev
        parts = [event.encoded(encode_event, with_prev=with_prev) for event in events]
        head = pb.WatchResponse(header=self._headers.at(revision), watch_id=watcher.tag)
        if not watcher.fragment:
            self._call.send(b"".join((head.SerializeToString(), *parts)))
            return
        start = head.SerializeToString()
        head.fragment = True
        start_of_fragment = head.SerializeToString()
        bounds = list(self._fragments(parts, len(start)))
        for begin, end in bounds:
            last = end == len(parts)
            self._call.send(b"".join((start if last else start_of_fragment, *parts[begin:end])))

    def _fragments(self, parts: list[bytes], overhead: int) -> Iterator[tuple[int, int]]:
        """Bounds of fragments, each below the size limit or a single event."""
        begin, nbytes = 0, overhead
        for position, part in enumerate(parts):
            if position > begin and nbytes + len(part) >= self._fragment_bytes:
                yield begin, position
                begin, nbytes = position, overhead
            nbytes += len(part)
        yield begin, len(parts)


def encode_event(event: Event) -> bytes:
    """The part of a WatchResponse that holds one event; parts concatenate to a response."""
    kind = kv_pb2.Event.DELETE if event.is_delete else kv_pb2.Event.PUT
    if event.is_delete:
        pair = kv_pb2.KeyValue(key=event.kv.key, mod_revision=event.kv.mod_revision)
    else:
        pair = convert.key_value(event.kv)
    prev = convert.key_value(event.prev) if event.prev is not None else None
    return pb.WatchResponse(events=[kv_pb2.Event(type=kind, kv=pair, prev_kv=prev)]).SerializeToString()

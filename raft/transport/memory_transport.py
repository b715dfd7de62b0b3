"""The in-memory implementation: several transports in one loop, with faults on every directed link.

Theory of operation. A `Network` holds the listening transports. Each transport dials each of its peers, as
the gRPC one does, so a pair of members has two streams, one per direction. A stream has two lanes; a message
becomes due after the link's delay, and one timer per stream delivers, urgent before bulk, each lane in order.
Only `call_soon`, `call_later` and `time` of the loop are used, and one seeded generator makes every choice,
so on a virtual-time loop a seed repeats bit for bit.

Faults, per directed link (`LinkConditions`):

* *blocked* is silence, as in a network partition: messages are held without a report, and after
  SILENCE_TIMEOUT_S each end closes the stream by itself. A handshake needs both directions.
* *drop* and *duplicate* are harsher than TCP and apply to consensus messages only; forwarded batches and
  their answers rely on the order of one connection, and are lost only with it.
* `disconnect`, `crash` and `reset_connections` are resets, which the far end sees after the delay.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from raft.core.messages import Message
from raft.transport.liveness import (
    BULK_BOUNDS,
    HANDSHAKE_TIMEOUT_S,
    PROBE_TIMEOUT_S,
    SILENCE_TIMEOUT_S,
    URGENT_BOUNDS,
    Backoff,
    Incarnations,
    is_bulk,
    judge_answer,
    judge_incarnation,
    message_bytes,
)
from raft.transport.memory_snapshots import OneWay, SnapshotConnection
from raft.transport.snapshot_stream import receive_snapshot, send_snapshot
from raft.transport.transport_protocol import (
    ChangeReply,
    ChangeRequest,
    Handshake,
    HandshakeReply,
    Liveness,
    PeerMessage,
    PeerStatistics,
    ReadSnapshot,
    Receiver,
    SnapshotFailed,
    SnapshotOffer,
)


@dataclass(slots=True, kw_only=True)
class LinkConditions:
    """Delays and faults from one member to another. May be changed at any time."""

    delay_min_s: float = 0.0
    delay_max_s: float = 0.0
    """One-way delay is drawn evenly from [delay_min_s, delay_max_s]; order in a lane is kept."""
    drop_probability: float = 0.0
    duplicate_probability: float = 0.0
    blocked: bool = False
    """Set by `Network.block` and `unblock` only, which also wake what waits for it."""


class Network:
    """Everything between the members of one simulated cluster."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        *,
        delay_min_s: float = 0.0,
        delay_max_s: float = 0.0,
    ) -> None:
        self.loop = loop
        self.rng = rng
        self._delay_s = (delay_min_s, delay_max_s)
        self._conditions: dict[tuple[int, int], LinkConditions] = {}
        self._listeners: dict[int, MemoryTransport] = {}
        """The transport that listens under each member id."""
        self._streams: list[_Stream] = []
        """Every stream that has not ended, oldest first."""
        self._snapshot_connections: list[tuple[int, int, SnapshotConnection]] = []
        """(sender, receiver, connection) of every snapshot in flight."""
        self.snapshot_chunk_bytes = 0
        """Size of a snapshot's chunks; 0 for SNAPSHOT_CHUNK_BYTES."""

    def transport(self) -> MemoryTransport:
        return MemoryTransport(self)

    def conditions(self, source: int, target: int) -> LinkConditions:
        found = self._conditions.get((source, target))
        if found is None:
            low, high = self._delay_s
            found = LinkConditions(delay_min_s=low, delay_max_s=high)
            self._conditions[source, target] = found
        return found

    def block(self, source: int, target: int) -> None:
        """Let nothing through from `source` to `target`, silently, until `unblock` or `heal`."""
        conditions = self.conditions(source, target)
        if conditions.blocked:
            return
        conditions.blocked = True
        for stream in self._streams:
            if (stream.source_id, stream.target_id) == (source, target):
                stream.watch_silence()

    def unblock(self, source: int, target: int) -> None:
        self.conditions(source, target).blocked = False
        for stream in list(self._streams):
            if (stream.source_id, stream.target_id) == (source, target):
                stream.resume()

    def partition(self, *groups: Iterable[int]) -> None:
        """Block both directions between members of different groups; members in no group are untouched."""
        sides = [sorted(group) for group in groups]
        for side in sides:
            for other in sides:
                if side is not other:
                    for source in side:
                        for target in other:
                            self.block(source, target)

    def isolate(self, member_id: int) -> None:
        """Block both directions between one member and all others that listen."""
        self.partition([member_id], [other for other in self._listeners if other != member_id])

    def heal(self) -> None:
        """Unblock everything; delays, drops and duplicates stay as they are."""
        for (source, target), conditions in sorted(self._conditions.items(), key=lambda item: item[0]):
            if conditions.blocked:
                self.unblock(source, target)

    def disconnect(self, source: int, target: int) -> None:
        """Reset the stream from `source` to `target`; both processes stay up and dial again."""
        for stream in list(self._streams):
            if (stream.source_id, stream.target_id) == (source, target):
                stream.reset_by(None)

    def connect_snapshot(self, source: MemoryTransport, target_id: int) -> SnapshotConnection | None:
        """A connection for a snapshot; None if the target does not listen or a direction is blocked."""
        source_id, target = source.handshake.member_id, self._listeners.get(target_id)
        if target is None or self.blocked(source_id, target_id) or self.blocked(target_id, source_id):
            return None
        loop = self.loop
        connection = SnapshotConnection(
            OneWay(
                loop, lambda: self.delay_s(source_id, target_id), lambda: self.blocked(source_id, target_id)
            ),
            OneWay(
                loop, lambda: self.delay_s(target_id, source_id), lambda: self.blocked(target_id, source_id)
            ),
        )
        self._snapshot_connections.append((source_id, target_id, connection))
        target.serve_snapshot(connection)
        return connection

    def snapshots_in_flight(self) -> list[tuple[int, int]]:
        """(sender, receiver) of each."""
        return [(source, target) for source, target, _ in self._snapshot_connections]

    def disconnect_snapshots(self, source: int, target: int) -> bool:
        """Reset the snapshots in flight from `source` to `target`; return whether there were any."""
        return self._end_snapshots(lambda connection: connection[:2] == (source, target))

    def _end_snapshots(self, which: Callable[[tuple[int, int, SnapshotConnection]], bool]) -> bool:
        ending = [connection for connection in self._snapshot_connections if which(connection)]
        for connection in ending:
            self._snapshot_connections.remove(connection)
            connection[2].end("the connection was reset")
        return bool(ending)

    def snapshot_ended(self, connection: SnapshotConnection) -> None:
        self._end_snapshots(lambda each: each[2] is connection)

    def late_handshake(self, handshake: Handshake, target: int) -> None:
        """Deliver a handshake of a process that has died since; its stream ends as it opens."""
        listener = self._listeners.get(target)
        if listener is not None and not listener.answer(handshake).refusal:
            self.supersede(handshake.member_id, listener)
            self.loop.call_soon(listener.incoming_ended, handshake.member_id, handshake.incarnation)

    def supersede(self, source: int, target: MemoryTransport) -> None:
        """End the older streams of a member: it has one stream to each other member, the newest."""
        for stream in self.streams_of(target):
            if stream.source_id == source:
                stream.reset_by(None)

    def crash(self, member_id: int) -> None:
        """Kill a member's process as far as the network can see; its receiver is not called any more."""
        transport = self._listeners.get(member_id)
        if transport is not None:
            transport.vanish()

    def listener(self, member_id: int) -> MemoryTransport | None:
        return self._listeners.get(member_id)

    def delay_s(self, source: int, target: int) -> float:
        conditions = self.conditions(source, target)
        if conditions.delay_max_s <= 0.0:
            return 0.0
        return self.rng.uniform(conditions.delay_min_s, conditions.delay_max_s)

    def blocked(self, source: int, target: int) -> bool:
        found = self._conditions.get((source, target))
        return found is not None and found.blocked

    def join(self, member_id: int, transport: MemoryTransport) -> None:
        if member_id in self._listeners:
            raise OSError(f"member {member_id:x} already listens on this network")
        self._listeners[member_id] = transport

    def leave(self, transport: MemoryTransport) -> None:
        for member_id, listener in list(self._listeners.items()):
            if listener is transport:
                del self._listeners[member_id]
        for stream in list(self._streams):
            if transport in (stream.source, stream.target):
                stream.reset_by(transport)
        self._end_snapshots(lambda connection: transport.handshake.member_id in connection[:2])

    def streams_of(self, transport: MemoryTransport) -> list[_Stream]:
        return [stream for stream in self._streams if transport in (stream.source, stream.target)]

    def opened(self, stream: _Stream) -> None:
        self._streams.append(stream)

    def ended(self, stream: _Stream) -> None:
        if stream in self._streams:
            self._streams.remove(stream)


class _Lane:
    """Messages in flight in one lane, in order, each with the time it is due."""

    __slots__ = ("bounds", "due_last", "nbytes", "queue")

    def __init__(self, *, bulk: bool) -> None:
        self.bounds = BULK_BOUNDS if bulk else URGENT_BOUNDS
        self.queue: deque[tuple[float, PeerMessage, int]] = deque()
        self.nbytes = 0
        """Invariant: the sum of the sizes in `queue`, at most bounds.bytes_max."""
        self.due_last = 0.0
        """Due time of the newest message ever queued; never decreases, which keeps the order."""

    def push(self, due: float, message: PeerMessage) -> bool:
        nbytes = message_bytes(message)
        if len(self.queue) >= self.bounds.messages_max or self.nbytes + nbytes > self.bounds.bytes_max:
            return False
        self.due_last = max(self.due_last, due)
        self.queue.append((self.due_last, message, nbytes))
        self.nbytes += nbytes
        return True

    def pop_due(self, now: float) -> tuple[PeerMessage, int] | None:
        if not self.queue or self.queue[0][0] > now:
            return None
        _, message, nbytes = self.queue.popleft()
        self.nbytes -= nbytes
        return message, nbytes


class _Stream:
    """One accepted connection from a dialling member to the one it dialled."""

    def __init__(self, link: _Link, target: MemoryTransport, target_incarnation: int) -> None:
        self._network = link.transport.network
        self.link = link
        self.source = link.transport
        self.target = target
        self.source_id = link.transport.handshake.member_id
        self.source_incarnation = link.transport.handshake.incarnation
        self.target_id = link.member_id
        self.target_incarnation = target_incarnation
        self._lanes = (_Lane(bulk=False), _Lane(bulk=True))
        self._timer: asyncio.Handle | None = None
        """The pending delivery. None while nothing is queued or the link is blocked."""
        self._timer_due = 0.0
        self.open = True
        self._network.opened(self)
        if self._network.blocked(self.source_id, self.target_id):
            self.watch_silence()

    def send(self, message: PeerMessage) -> bool:
        network = self._network
        conditions = network.conditions(self.source_id, self.target_id)
        copies = 1
        if isinstance(message, (Message, ChangeRequest, ChangeReply)):
            if conditions.drop_probability and network.rng.random() < conditions.drop_probability:
                return True
            if conditions.duplicate_probability and network.rng.random() < conditions.duplicate_probability:
                copies = 2
        lane = self._lanes[is_bulk(message)]
        for _ in range(copies):
            due = network.loop.time() + network.delay_s(self.source_id, self.target_id)
            if not lane.push(due, message):
                return False
        self.resume()
        return True

    def resume(self) -> None:
        """Arm the timer for the message that is due next."""
        heads = [lane.queue[0][0] for lane in self._lanes if lane.queue]
        if not heads or not self.open or self._network.blocked(self.source_id, self.target_id):
            return
        due = min(heads)
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        loop = self._network.loop
        wait_s = due - loop.time()
        self._timer_due = due
        self._timer = loop.call_later(wait_s, self._deliver) if wait_s > 0 else loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._timer = None
        if self._network.blocked(self.source_id, self.target_id):
            return
        now = max(self._network.loop.time(), self._timer_due)
        for lane in self._lanes:
            while self.open and (popped := lane.pop_due(now)) is not None:
                message, nbytes = popped
                self.link.delivered(nbytes)
                self.target.deliver(self.source_id, self.source_incarnation, message, nbytes)
        if self.open:
            self.resume()

    def watch_silence(self) -> None:
        """Called when the link is blocked: close the stream if that lasts for SILENCE_TIMEOUT_S."""
        self._network.loop.call_later(SILENCE_TIMEOUT_S, self._check_silence)

    def _check_silence(self) -> None:
        if self.open and self._network.blocked(self.source_id, self.target_id):
            self._end()
            self._report_end(self.source)
            self._report_end(self.target)

    def reset_by(self, side: MemoryTransport | None) -> None:
        """End the stream and report that to the other end than `side`, or with None to both ends at once."""
        if not self.open:
            return
        self._end()
        if side is None:
            self._report_end(self.source)
            self._report_end(self.target)
        elif side is self.source:
            self._report_end_later(self.source_id, self.target_id, self.target)
        else:
            self._report_end_later(self.target_id, self.source_id, self.source)

    def _end(self) -> None:
        self.open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._network.ended(self)

    def _report_end_later(self, ender: int, other: int, transport: MemoryTransport) -> None:
        """A reset travels like any packet; behind a partition the other end only sees silence."""
        if self._network.blocked(ender, other):
            wait_s = SILENCE_TIMEOUT_S
        else:
            wait_s = self._network.delay_s(ender, other)
        self._network.loop.call_later(wait_s, self._report_end, transport)

    def _report_end(self, transport: MemoryTransport) -> None:
        if transport is self.source:
            self.link.stream_ended(self)
        else:
            transport.incoming_ended(self.source_id, self.source_incarnation)


class _Link:
    """One member's outgoing stream to one peer (see `PeerLink`)."""

    def __init__(self, transport: MemoryTransport, member_id: int) -> None:
        self.transport = transport
        self.member_id = member_id
        self._backoff = Backoff(transport.network.rng)
        self._stream: _Stream | None = None
        self._redial: asyncio.Handle | None = None
        """The pending next attempt. Invariant: at most one of `_stream`, `_redial`, `_dialing` is set."""
        self._dialing: object | None = None
        """Identifies the current attempt; a late answer to an abandoned attempt carries another object."""
        self.sent_messages = 0
        self.sent_bytes = 0
        self.received_bytes = 0
        self.send_failures = 0
        self._closed = False

    @property
    def connected(self) -> bool:
        return self._stream is not None

    def send(self, message: PeerMessage) -> bool:
        if self._stream is not None and self._stream.send(message):
            return True
        self.send_failures += 1
        self.transport.receiver.on_dropped(self.member_id, message)
        return False

    async def probe(self) -> Liveness:
        return await self.transport.probe(self.member_id)

    def delivered(self, nbytes: int) -> None:
        self.sent_messages += 1
        self.sent_bytes += nbytes

    def dial(self) -> None:
        self._redial = None
        if self._closed or self._stream is not None or self._dialing is not None:
            return
        attempt = self._dialing = object()
        network = self.transport.network
        here = self.transport.handshake.member_id
        network.loop.call_later(network.delay_s(here, self.member_id), self._handshake_arrives, attempt)

    def _handshake_arrives(self, attempt: object) -> None:
        network = self.transport.network
        here = self.transport.handshake.member_id
        if self._closed or attempt is not self._dialing:
            return
        if network.blocked(here, self.member_id) or network.blocked(self.member_id, here):
            network.loop.call_later(HANDSHAKE_TIMEOUT_S, self._failed, attempt)
            return
        target = network.listener(self.member_id)
        back_s = network.delay_s(self.member_id, here)
        if target is None:
            network.loop.call_later(back_s, self._failed, attempt)
            return
        answer = judge_answer(
            self.transport.handshake, self.member_id, target.answer(self.transport.handshake)
        )
        stream = None
        if not answer.refusal:
            network.supersede(here, target)
            stream = _Stream(self, target, answer.handshake.incarnation)
        network.loop.call_later(back_s, self._answered, attempt, answer, stream)

    def _answered(self, attempt: object, answer: HandshakeReply, stream: _Stream | None) -> None:
        if self._closed or attempt is not self._dialing:
            if stream is not None:
                stream.reset_by(self.transport)
            return
        self._dialing = None
        self.transport.receiver.on_answer(self.member_id, answer)
        if stream is None or self._closed:
            self._schedule()
            return
        if not stream.open:
            self._schedule()
            return
        self.transport.incarnations.seen(self.member_id, answer.handshake.incarnation)
        self._backoff.reset()
        self._stream = stream
        self.transport.receiver.on_connected(self.member_id)

    def _failed(self, attempt: object) -> None:
        if attempt is self._dialing:
            self._dialing = None
            self._schedule()

    def _schedule(self) -> None:
        if not self._closed:
            self._redial = self.transport.network.loop.call_later(self._backoff.next_s(), self.dial)

    def wake(self) -> None:
        """Dial without waiting for the back-off: the peer has just dialled us, so it is up."""
        self._backoff.reset()
        if self._redial is not None:
            self._redial.cancel()
            self._redial = self.transport.network.loop.call_soon(self.dial)

    def stream_ended(self, stream: _Stream) -> None:
        if self._closed or stream is not self._stream:
            return
        self._stream = None
        self.transport.incarnations.ended(self.member_id, stream.target_incarnation)
        self._schedule()
        self.transport.receiver.on_disconnected(self.member_id)

    def close_nowait(self) -> None:
        self._closed = True
        self._dialing = None
        if self._redial is not None:
            self._redial.cancel()
            self._redial = None
        if self._stream is not None:
            stream, self._stream = self._stream, None
            stream.reset_by(self.transport)


class MemoryTransport:
    """All links of one member on a `Network` (see `Transport`). URLs are ignored: ids find peers."""

    handshake: Handshake
    receiver: Receiver

    def __init__(self, network: Network) -> None:
        self.network = network
        self.incarnations = Incarnations()
        self._links: dict[int, _Link] = {}
        self._started = False
        self._closed = False
        self._snapshots: dict[asyncio.Task[None], SnapshotConnection] = {}
        """Tasks that receive the snapshots in flight to this member."""

    async def start(self, handshake: Handshake, receiver: Receiver) -> None:
        """Listen under the handshake's member id and dial every peer set so far; OSError if it is taken."""
        self.network.join(handshake.member_id, self)
        self.handshake = handshake
        self.receiver = receiver
        self._started = True
        for link in self._links.values():
            link.dial()

    def set_peer(self, member_id: int, urls: tuple[str, ...]) -> None:
        if member_id in self._links or self._closed:
            return
        self._links[member_id] = link = _Link(self, member_id)
        if self._started:
            link.dial()

    def remove_peer(self, member_id: int) -> None:
        link = self._links.pop(member_id, None)
        if link is not None:
            link.close_nowait()
        if self._started:
            for stream in self.network.streams_of(self):
                if stream.source_id == member_id:
                    stream.reset_by(self)
        self.incarnations.forget(member_id)

    def send(self, member_id: int, message: PeerMessage) -> bool:
        link = self._links.get(member_id)
        if link is None:
            self.receiver.on_dropped(member_id, message)
            return False
        return link.send(message)

    async def probe(self, member_id: int) -> Liveness:
        network = self.network
        here = self.handshake.member_id
        alive_as = self.incarnations.alive_as(member_id)
        verdict: asyncio.Future[Liveness] = network.loop.create_future()

        def answer_arrives(found: Liveness) -> None:
            if not verdict.done():
                verdict.set_result(found)

        def handshake_arrives() -> None:
            if network.blocked(here, member_id) or network.blocked(member_id, here):
                return
            target = network.listener(member_id)
            found = Liveness.DEAD
            if target is not None:
                found = judge_incarnation(alive_as, target.handshake.incarnation)
            network.loop.call_later(network.delay_s(member_id, here), answer_arrives, found)

        network.loop.call_later(network.delay_s(here, member_id), handshake_arrives)
        network.loop.call_later(PROBE_TIMEOUT_S, answer_arrives, Liveness.UNREACHABLE)
        return await verdict

    async def send_snapshot(
        self, member_id: int, offer: SnapshotOffer, read: ReadSnapshot, progress: Callable[[int], None]
    ) -> None:
        connection = None if self._closed else self.network.connect_snapshot(self, member_id)
        if connection is None:
            raise SnapshotFailed("no connection")
        try:
            await send_snapshot(
                connection.sender, self.handshake, offer, read, progress, self.network.snapshot_chunk_bytes
            )
        finally:
            self.network.snapshot_ended(connection)

    def serve_snapshot(self, connection: SnapshotConnection) -> None:
        """Receive a snapshot over `connection`; called by the network."""
        task = self.network.loop.create_task(receive_snapshot(connection.receiver, self.receiver))
        self._snapshots[task] = connection
        task.add_done_callback(self._snapshot_served)

    def _snapshot_served(self, task: asyncio.Task[None]) -> None:
        connection = self._snapshots.pop(task)
        fault = None if task.cancelled() else task.exception()
        if task.cancelled() or fault is not None:
            self.network.snapshot_ended(connection)  # else the last status is still in flight
        if fault is not None and not isinstance(fault, SnapshotFailed):
            context = {"message": "a snapshot could not be received", "exception": fault, "task": task}
            self.network.loop.call_exception_handler(context)

    def connected_peers(self) -> frozenset[int]:
        return frozenset(member_id for member_id, link in self._links.items() if link.connected)

    def statistics(self) -> dict[int, PeerStatistics]:
        return {
            member_id: PeerStatistics(
                sent_messages=link.sent_messages,
                sent_bytes=link.sent_bytes,
                received_bytes=link.received_bytes,
                send_failures=link.send_failures,
            )
            for member_id, link in self._links.items()
        }

    def reset_connections(self) -> None:
        for stream in self.network.streams_of(self):
            stream.reset_by(None)

    def vanish(self) -> None:
        """End at once, as by SIGKILL: peers see resets, and our own receiver is not called any more."""
        self._closed = True
        for link in self._links.values():
            link.close_nowait()
        for task in self._snapshots:
            task.cancel()
        if self._started:
            self.network.leave(self)

    async def close(self) -> None:
        self.vanish()

    def answer(self, handshake: Handshake) -> HandshakeReply:
        """Answer a handshake that has arrived; called by the network."""
        answer = self.receiver.on_handshake(handshake)
        if not answer.refusal:
            self.incarnations.seen(handshake.member_id, handshake.incarnation)
            link = self._links.get(handshake.member_id)
            if link is not None:
                link.wake()
        return answer

    def deliver(self, member_id: int, incarnation: int, message: PeerMessage, nbytes: int) -> None:
        if self._closed:
            return
        link = self._links.get(member_id)
        if link is not None:
            link.received_bytes += nbytes
        self.receiver.on_message(member_id, incarnation, message)

    def incoming_ended(self, member_id: int, incarnation: int) -> None:
        if self._closed:
            return
        self.incarnations.ended(member_id, incarnation)
        self.receiver.on_disconnected(member_id)

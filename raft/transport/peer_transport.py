"""The transport between processes: a listener, and a link to every peer. Knows no stack.

Rules of this file: everything runs on the loop that called `start`, except `reset_connections`, which the
watchdog calls from its own thread when that loop is stuck.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from raft.core.messages import Message, MessageType
from raft.transport import codec
from raft.transport.liveness import HANDSHAKE_TIMEOUT_S, Incarnations
from raft.transport.peer_link import Link, LinkContext
from raft.transport.peer_service import (
    DESCRIBE_METHOD,
    PROBE_METHOD,
    SNAPSHOT_METHOD,
    STREAM_METHOD,
    host_port,
)
from raft.transport.peer_snapshots import IncomingSnapshots, send_snapshot_to
from raft.transport.stack import CallFailed, Handlers, Listener, Refused, Stack, Stream, StreamEnd
from raft.transport.transport_protocol import (
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

logger = logging.getLogger(__name__)

REOPEN_RETRY_S = 0.25
"""Time between attempts to listen again on our own addresses after a reset. Until one succeeds, no peer can
dial this member, which therefore receives nothing."""


class PeerTransport:
    """See `Transport`. Listens on all of `listen_urls` (`http://host:port`; port 0 picks a free one)."""

    _context: LinkContext
    _snapshots: IncomingSnapshots
    """Both are set by `start`."""

    def __init__(
        self,
        listen_urls: tuple[str, ...],
        *,
        stack: Stack,
        rng: random.Random,
        describe: Callable[[], bytes] = bytes,
    ) -> None:
        """`describe` returns the reply to `ask_description`: what a process must know to join."""
        self._describe = describe
        self._listen = [host_port(url) for url in listen_urls]
        """Addresses to listen on; once started, with the ports that were bound."""
        self._stack = stack
        self._rng = rng
        self._incarnations = Incarnations()
        self._peers: dict[int, tuple[str, ...]] = {}
        self._links: dict[int, Link] = {}
        """One per peer once started. Invariant: keys equal those of `_peers` between start and close."""
        self._incoming: dict[int, _Incoming] = {}
        """The newest stream from each member."""
        self._listener: Listener | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reopening: asyncio.Task[None] | None = None
        self._connections_reset = False
        """The listener that is open, or being opened, was shut down: another is needed."""
        self._snapshots_sent = 0
        """Attempts to send a snapshot so far; selects the next URL, round robin."""
        self._closed = False
        """`close` has begun: no peer is dialled any more, though handshakes may still arrive."""

    @property
    def listen_ports(self) -> tuple[int, ...]:
        """Ports bound, in the order of `listen_urls`; before the start, those configured."""
        return tuple(port for _, port in self._listen)

    async def start(self, handshake: Handshake, receiver: Receiver) -> None:
        """Listen and dial every peer set so far; raises OSError when an address cannot be bound."""
        self._context = LinkContext(self._stack, handshake, receiver, self._incarnations, self._rng)
        self._snapshots = IncomingSnapshots(receiver)
        self._loop = asyncio.get_running_loop()
        await self._open_listener()
        for member_id, urls in self._peers.items():
            self._dial(member_id, urls)

    def set_peer(self, member_id: int, urls: tuple[str, ...]) -> None:
        if not urls:
            raise ValueError(f"member {member_id:x} has no peer URL")
        for url in urls:
            host_port(url)
        self._peers[member_id] = urls
        link = self._links.get(member_id)
        if link is not None:
            link.urls = urls
            link.wake()
        elif self._loop is not None and not self._closed:
            self._dial(member_id, urls)

    def remove_peer(self, member_id: int) -> None:
        self._peers.pop(member_id, None)
        link = self._links.pop(member_id, None)
        if link is not None:
            link.close_nowait()
        incoming = self._incoming.pop(member_id, None)
        if incoming is not None:
            incoming.end_quietly()
        self._incarnations.forget(member_id)

    def send(self, member_id: int, message: PeerMessage) -> bool:
        link = self._links.get(member_id)
        if link is None:
            self._context.receiver.on_dropped(member_id, message)
            return False
        return link.send(message)

    async def probe(self, member_id: int) -> Liveness:
        """Probe a peer's process over a new connection; a member that is no peer is UNREACHABLE."""
        link = self._links.get(member_id)
        return Liveness.UNREACHABLE if link is None else await link.probe()

    async def send_snapshot(
        self, member_id: int, offer: SnapshotOffer, read: ReadSnapshot, progress: Callable[[int], None]
    ) -> None:
        urls = self._peers.get(member_id)
        if urls is None:
            raise SnapshotFailed(f"member {member_id:x} is no peer")
        self._snapshots_sent += 1
        url = urls[self._snapshots_sent % len(urls)]
        await send_snapshot_to(self._stack, url, self._context.handshake, offer, read, progress)

    def connected_peers(self) -> frozenset[int]:
        return frozenset(member_id for member_id, link in self._links.items() if link.connected)

    def statistics(self) -> dict[int, PeerStatistics]:
        return {member_id: link.statistics() for member_id, link in self._links.items()}

    def reset_connections(self) -> None:
        """Shut down every peer socket, listeners included, so that a probe is refused. Safe on any thread.

        The loop, once it runs again, listens and dials anew.
        """
        self._stack.reset_connections()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._reopen)

    async def close(self) -> None:
        """End every stream within milliseconds, then release the listener. May be called twice."""
        self._closed = True
        if self._reopening is not None:
            await asyncio.wait([self._reopening])
        links, self._links = self._links, {}
        self._peers.clear()
        listener, self._listener = self._listener, None
        for incoming in self._incoming.values():
            incoming.is_quiet = True
        if listener is not None:
            listener.close_nowait()  # before our streams end, so that a probe of their end is refused
        for link in links.values():
            link.close_nowait()
        if listener is not None:
            await listener.wait_closed()
            await self._snapshots.close()
        await self._stack.close()

    def _dial(self, member_id: int, urls: tuple[str, ...]) -> None:
        link = self._links[member_id] = Link(member_id, urls, self._context)
        link.dial()

    async def _open_listener(self) -> None:
        handlers = Handlers(
            unary={PROBE_METHOD: self._probed, DESCRIBE_METHOD: self._described},
            streams={
                STREAM_METHOD: lambda stream: _Incoming(self, stream),
                SNAPSHOT_METHOD: self._snapshots.opened,
            },
        )
        listener = self._listener = await self._stack.listen(self._listen, handlers)
        self._listen = [(host, port) for (host, _), port in zip(self._listen, listener.ports, strict=True)]

    def _reopen(self) -> None:
        if self._closed or (self._listener is None and self._reopening is None):
            return
        self._connections_reset = True
        if self._reopening is None or self._reopening.done():
            assert self._loop is not None
            self._reopening = self._loop.create_task(self._reopen_listener())

    async def _reopen_listener(self) -> None:
        while self._connections_reset and not self._closed:
            self._connections_reset = False
            listener, self._listener = self._listener, None
            if listener is not None:
                listener.close_nowait()
                await listener.wait_closed()
            try:
                await self._open_listener()
            except OSError as error:
                logger.warning("peers cannot dial this member for now: %s", error)
                self._connections_reset = True
                await asyncio.sleep(REOPEN_RETRY_S)

    def _probed(self, data: bytes) -> bytes:
        """Reply with our own handshake. The probe's is not passed to the receiver: it may be late, after the
        handshake of the member's next incarnation."""
        try:
            codec.decode_handshake(data)
        except codec.Malformed as error:
            raise Refused(str(error)) from error
        answer = HandshakeReply(handshake=self._context.handshake, earlier_disk_known=False)
        return codec.encode_answer(answer)

    def _described(self, data: bytes) -> bytes:
        return codec.encode_description(self._describe())

    # -- for incoming streams --------------------------------------------------------------------

    def judge(self, handshake: Handshake) -> HandshakeReply:
        """Whether a member that dialled us is accepted."""
        answer = self._context.receiver.on_handshake(handshake)
        if answer.refusal:
            logger.warning("refused member %x: %s", handshake.member_id, answer.refusal)
        return answer

    def accepted(self, incoming: _Incoming, handshake: Handshake) -> None:
        """A member has one stream to us: the newest."""
        member_id = handshake.member_id
        older = self._incoming.get(member_id)
        self._incoming[member_id] = incoming
        self._incarnations.seen(member_id, handshake.incarnation)
        link = self._links.get(member_id)
        if link is not None:
            link.wake()
        if older is not None:
            older.end()

    def received(self, handshake: Handshake, data: bytes) -> None:
        """A frame. Raises Malformed."""
        member_id, incarnation = handshake.member_id, handshake.incarnation
        link = self._links.get(member_id)
        if link is not None:
            link.received_bytes += len(data)
        on_message = self._context.receiver.on_message
        for message in codec.decode_frame(data):
            if (
                link is not None
                and isinstance(message, Message)
                and message.type is MessageType.HEARTBEAT_RESPONSE
            ):
                link.heartbeat_answered()
            on_message(member_id, incarnation, message)

    def stream_ended(self, incoming: _Incoming, handshake: Handshake, *, is_quiet: bool) -> None:
        member_id = handshake.member_id
        if self._incoming.get(member_id) is incoming:
            del self._incoming[member_id]
        if not is_quiet:
            self._incarnations.ended(member_id, handshake.incarnation)
            self._context.receiver.on_disconnected(member_id)


class _Incoming:
    """One accepted stream; the handler of it."""

    def __init__(self, transport: PeerTransport, stream: Stream) -> None:
        self._transport = transport
        self._stream = stream
        self._handshake: Handshake | None = None
        """Of the member that dialled, once accepted."""
        self._timer: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(
            HANDSHAKE_TIMEOUT_S, self._end, "no handshake"
        )
        """Until the handshake has come."""
        self.is_quiet = False
        """Its end is not reported: it is ours."""

    def end(self) -> None:
        """End it, and report that."""
        self._end()

    def end_quietly(self) -> None:
        self.is_quiet = True
        self._end()

    # -- the stream's handler --------------------------------------------------------------------

    def message(self, data: bytes) -> None:
        try:
            if self._handshake is None:
                self._on_opening(data)
            else:
                self._transport.received(self._handshake, data)
        except codec.Malformed as error:
            self._end(str(error))

    def drained(self) -> None:
        pass

    def ended(self, end: StreamEnd) -> None:
        self._cancel_timer()
        handshake, self._handshake = self._handshake, None
        if handshake is not None:
            self._transport.stream_ended(self, handshake, is_quiet=self.is_quiet)

    # -- inside ----------------------------------------------------------------------------------

    def _on_opening(self, data: bytes) -> None:
        self._cancel_timer()
        handshake = codec.decode_opening(data)
        answer = self._transport.judge(handshake)
        self._stream.write(codec.encode_answer(answer))
        if answer.refusal:
            self._stream.close()
        else:
            self._handshake = handshake
            self._transport.accepted(self, handshake)

    def _end(self, error: str = "") -> None:
        self._stream.close(error)
        self.ended(StreamEnd(error, is_evidence=False))

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def ask_description(stack: Stack, url: str, timeout_s: float) -> bytes | None:
    """Request the description of the cluster from a peer URL, in order to join; None without an answer."""
    try:
        async with asyncio.timeout(timeout_s):
            return codec.decode_description(await stack.call(*host_port(url), DESCRIBE_METHOD, b""))
    except TimeoutError:
        logger.info("no answer from %s in %.0f s", url, timeout_s)
    except (CallFailed, codec.Malformed) as error:
        logger.info("no answer from %s: %s", url, error)
    return None

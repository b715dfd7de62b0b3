"""The transport between processes: a listener, and a link to every peer, over grpc.aio.

Rules of this file: everything runs on the loop that called `start`, except `reset_connections`, which the
watchdog calls from its own thread when that loop is stuck.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import grpc

from raft.core.messages import Message, MessageType
from raft.transport import codec, sockets
from raft.transport.grpc_link import GrpcLink
from raft.transport.grpc_options import (
    CHANNEL_OPTIONS,
    DESCRIBE_METHOD,
    PROBE_METHOD,
    SERVER_OPTIONS,
    STREAM_METHOD,
    host_port,
    target_of,
)
from raft.transport.grpc_snapshots import GrpcReceiverPipe, send_snapshot_to
from raft.transport.liveness import HANDSHAKE_TIMEOUT_S, Incarnations
from raft.transport.snapshot_stream import receive_snapshot
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

STOP_PATIENCE_S = 10.0
"""Time for a gRPC server to stop beyond its grace. All calls are cancelled by then, which takes milliseconds;
a handler that does not return must not keep the log and the backend from being closed."""

REOPEN_RETRY_S = 0.25
"""Time between attempts to listen again on our own addresses after a reset. Until one succeeds, no peer can
dial this member, which therefore receives nothing."""

_Context = grpc.aio.ServicerContext[bytes, bytes]


@dataclass(slots=True)
class _Incoming:
    """One accepted stream."""

    task: asyncio.Task[object]
    """Its handler, which ends with it."""
    ended: bool = False
    """We have cancelled the handler; it must still return, or gRPC does not end the stream."""
    quiet: bool = False
    """We end it ourselves and do not report that."""

    def end(self) -> None:
        self.ended = True
        self.task.cancel()


class Stoppable(Protocol):
    """A server of gRPC."""

    def stop(self, grace: float | None) -> Awaitable[None]:
        """Take no more calls; cancel those that last longer than the grace."""


class GrpcTransport:
    """See `Transport`. Listens on all of `listen_urls` (`http://host:port`; port 0 picks a free one)."""

    _handshake: Handshake
    _receiver: Receiver
    """Both are set by `start`."""

    def __init__(
        self, listen_urls: tuple[str, ...], *, rng: random.Random, describe: Callable[[], bytes] = bytes
    ) -> None:
        """`describe` returns the reply to `ask_description`: what a process must know to join."""
        self._describe = describe
        self._listen = [host_port(url) for url in listen_urls]
        """Addresses to listen on; once started, with the ports that were bound."""
        self._rng = rng
        self._incarnations = Incarnations()
        self._peers: dict[int, tuple[str, ...]] = {}
        self._links: dict[int, GrpcLink] = {}
        """One per peer once started. Invariant: keys equal those of `_peers` between start and close."""
        self._incoming: dict[int, _Incoming] = {}
        """The newest stream from each member."""
        self._server: grpc.aio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reopening: asyncio.Task[None] | None = None
        self._connections_reset = False
        """The listener that is open, or being opened, was shut down: another is needed."""
        self._snapshots_sent = 0
        """Attempts to send a snapshot so far; selects the next URL, round robin."""
        self._closed = False
        """`close` has begun: no peer is dialled any more, though handshakes may still arrive."""
        self._closing: list[GrpcLink] = []
        """Links of removed peers whose sockets may still be open."""

    @property
    def listen_ports(self) -> tuple[int, ...]:
        """Ports bound, in the order of `listen_urls`; before the start, those configured."""
        return tuple(port for _, port in self._listen)

    async def start(self, handshake: Handshake, receiver: Receiver) -> None:
        """Listen and dial every peer set so far; raises OSError when an address cannot be bound."""
        self._handshake = handshake
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        await self._open_server()
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
            self._closing.append(link)
            self._closing = [closing for closing in self._closing if not closing.closed]
        incoming = self._incoming.pop(member_id, None)
        if incoming is not None:
            incoming.quiet = True
            incoming.end()
        self._incarnations.forget(member_id)

    def send(self, member_id: int, message: PeerMessage) -> bool:
        link = self._links.get(member_id)
        if link is None:
            self._receiver.on_dropped(member_id, message)
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
        await send_snapshot_to(url, self._handshake, offer, read, progress)

    def connected_peers(self) -> frozenset[int]:
        return frozenset(member_id for member_id, link in self._links.items() if link.connected)

    def statistics(self) -> dict[int, PeerStatistics]:
        return {member_id: link.statistics() for member_id, link in self._links.items()}

    def reset_connections(self) -> None:
        """Shut down every peer socket, listeners included, so that a probe is refused. Safe on any thread.

        The loop, once it runs again, listens and dials anew.
        """
        ports = frozenset(self.listen_ports)
        remote_ports = frozenset(host_port(url)[1] for urls in self._peers.values() for url in urls)
        sockets.shut_down(sockets.listening_on(ports))
        sockets.shut_down(sockets.accepted_on(ports))
        sockets.shut_down(sockets.connected_to(remote_ports))
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._reopen)

    async def close(self) -> None:
        """End every stream within milliseconds, then release the listener. May be called twice."""
        self._closed = True
        if self._reopening is not None:
            await asyncio.wait([self._reopening])
        for incoming in self._incoming.values():
            incoming.quiet = True
        links = [*self._links.values(), *self._closing]
        self._links.clear()
        self._peers.clear()
        for link in links:
            link.close_nowait()
        server, self._server = self._server, None
        if server is not None:
            stopping = asyncio.ensure_future(server.stop(None))
            await asyncio.sleep(0)  # the first step of stopping closes the listeners
            sockets.shut_down(sockets.accepted_on(frozenset(self.listen_ports)))
            await _wait_stopped(stopping, STOP_PATIENCE_S)
        for link in links:
            await link.wait_closed()
        self._closing.clear()

    def _dial(self, member_id: int, urls: tuple[str, ...]) -> None:
        self._links[member_id] = GrpcLink(
            member_id=member_id,
            urls=urls,
            handshake=self._handshake,
            receiver=self._receiver,
            incarnations=self._incarnations,
            rng=self._rng,
        )

    async def _open_server(self) -> None:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Stream": grpc.stream_stream_rpc_method_handler(self._stream),
            "Probe": grpc.unary_unary_rpc_method_handler(self._probed),
            "Describe": grpc.unary_unary_rpc_method_handler(self._described),
            "Image": grpc.stream_stream_rpc_method_handler(self._snapshot),
        }
        service = STREAM_METHOD.split("/")[1]
        assert PROBE_METHOD.split("/")[1] == DESCRIBE_METHOD.split("/")[1] == service
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        for position, (host, port) in enumerate(self._listen):
            try:
                bound = server.add_insecure_port(target_of(host, port))
            except RuntimeError as error:
                await server.stop(None)
                raise OSError(errno.EADDRINUSE, f"cannot listen for peers on {host}:{port}") from error
            self._listen[position] = (host, bound)
        await server.start()
        self._server = server

    def _reopen(self) -> None:
        if self._closed or (self._server is None and self._reopening is None):
            return
        self._connections_reset = True
        if self._reopening is None or self._reopening.done():
            assert self._loop is not None
            self._reopening = self._loop.create_task(self._reopen_server())

    async def _reopen_server(self) -> None:
        while self._connections_reset and not self._closed:
            self._connections_reset = False
            server, self._server = self._server, None
            if server is not None:
                await _wait_stopped(asyncio.ensure_future(server.stop(None)), STOP_PATIENCE_S)
            try:
                await self._open_server()
            except OSError as error:
                logger.warning("peers cannot dial this member for now: %s", error)
                self._connections_reset = True
                await asyncio.sleep(REOPEN_RETRY_S)

    def _judge(self, handshake: Handshake) -> HandshakeReply:
        answer = self._receiver.on_handshake(handshake)
        if answer.refusal:
            logger.warning("refused member %x: %s", handshake.member_id, answer.refusal)
        return answer

    async def _probed(self, data: bytes, context: _Context) -> bytes:
        """Reply with our own handshake. The probe's is not passed to the receiver: it may be late, after the
        handshake of the member's next incarnation."""
        try:
            codec.decode_handshake(data)
        except codec.Malformed as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return codec.encode_answer(HandshakeReply(handshake=self._handshake, earlier_disk_known=False))

    async def _described(self, data: bytes, context: _Context) -> bytes:
        return codec.encode_description(self._describe())

    async def _snapshot(self, requests: object, context: _Context) -> None:
        try:
            await receive_snapshot(GrpcReceiverPipe(context), self._receiver)
        except SnapshotFailed as error:
            logger.info("the transfer of a snapshot was interrupted: %s", error)
        except codec.Malformed as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def _stream(self, requests: object, context: _Context) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                opening = await context.read()
            if not isinstance(opening, bytes):
                return
            handshake = codec.decode_opening(opening)
            answer = self._judge(handshake)
            await context.write(codec.encode_answer(answer))
            if not answer.refusal:
                await self._listen_to(handshake, context)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no handshake")
        except codec.Malformed as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def _listen_to(self, handshake: Handshake, context: _Context) -> None:
        member_id, incarnation = handshake.member_id, handshake.incarnation
        task = asyncio.current_task()
        assert task is not None
        older = self._incoming.get(member_id)
        if older is not None:
            older.end()  # a member has one stream to us: the newest
        incoming = self._incoming[member_id] = _Incoming(task)
        self._incarnations.seen(member_id, incarnation)
        link = self._links.get(member_id)
        if link is not None:
            link.wake()
        try:
            while isinstance(data := await context.read(), bytes):
                link = self._links.get(member_id)
                if link is not None:
                    link.received_bytes += len(data)
                for message in codec.decode_frame(data):
                    if (
                        link is not None
                        and isinstance(message, Message)
                        and message.type is MessageType.HEARTBEAT_RESPONSE
                    ):
                        link.heartbeat_answered()
                    self._receiver.on_message(member_id, incarnation, message)
        except asyncio.CancelledError:
            if not incoming.ended:
                raise
            task.uncancel()
        finally:
            if self._incoming.get(member_id) is incoming:
                del self._incoming[member_id]
            if not incoming.quiet:
                self._incarnations.ended(member_id, incarnation)
                self._receiver.on_disconnected(member_id)


async def stop_server(server: Stoppable, grace_s: float) -> None:
    """Stop a server and cancel its calls after the grace; abandon it after STOP_PATIENCE_S more."""
    await _wait_stopped(asyncio.ensure_future(server.stop(grace_s)), grace_s + STOP_PATIENCE_S)


async def _wait_stopped(stopping: asyncio.Future[None], patience_s: float) -> None:
    await asyncio.wait([stopping], timeout=patience_s)
    if stopping.done():
        stopping.result()
    else:
        stopping.cancel()
        logger.error("a gRPC server has not stopped within %.0f s and is abandoned", patience_s)


async def ask_description(url: str, timeout_s: float) -> bytes | None:
    """Request the description of the cluster from a peer URL, in order to join; None without an answer."""
    async with grpc.aio.insecure_channel(target_of(*host_port(url)), options=CHANNEL_OPTIONS) as channel:
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(DESCRIBE_METHOD)
        try:
            return codec.decode_description(await ask(b"", timeout=timeout_s))
        except (grpc.aio.AioRpcError, codec.Malformed) as error:
            logger.info("no answer from %s: %s", url, error)
            return None

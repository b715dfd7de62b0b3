"""The composition root: the one module that constructs the parts of a member and connects them.

    async with kvstore.serve(Config(name="a", data_dir="a.etcd")) as node:
        await node.wait_ready()

A member runs in the caller's event loop: no signal handlers and no module state, so that several fit in one
process. It exits the process in one case only: when a sync of the log has hung for so long that no orderly
stop is possible (STUCK_DISK_EXIT_CODE).

Raises, before it serves anything, ConfigError for a contradictory configuration and StartError when the disk,
a port or the cluster does not fit it; the text of either is one line for an operator. Every address is taken
before the data directory is opened: a new member that cannot start leaves nothing behind, which would make
the corrected command another member's.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import os
import random
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial

from kvstore.configuration.config_setting import Url
from kvstore.configuration.member_config import Config
from kvstore.engine import BackendError, Engine
from kvstore.http import HttpListener, make_routes
from kvstore.lease.lessor import Lessor
from kvstore.peering import make_peer_stack
from kvstore.replica.replica import Limits
from kvstore.rpc import Gate, Method, RpcServer, all_methods, make_server
from kvstore.server.auto_compaction import AutoCompaction
from kvstore.server.backup_stream import Backups
from kvstore.server.data_directory import Opened, open_data_directory
from kvstore.server.initial_cluster import InitialCluster
from kvstore.server.joining import CannotJoin, Description, encode_description, publish
from kvstore.server.local_member import LocalMember
from kvstore.server.loop_lag import LAG_BOUNDS_S, LoopLag
from kvstore.server.membership_changes import MembershipChanges
from kvstore.server.metrics import HistogramView, PeerCounters, RpcCounters, Sources, make_registry
from raft.node import (
    BackendBeyondLog,
    MemberOptions,
    MemberStorage,
    Node,
    NodeConfig,
    NodeStatus,
    StartCampaign,
    assemble,
    count_operations,
)
from raft.node.checkpointer import STATE_COMMIT_BOUNDS_S
from raft.storage import MemberDirectory, RealFiles, StorageError, ThreadedLogWriter, Watchdog
from raft.storage.storage_protocol import SYNC_BOUNDS_S, Checkpoint
from raft.transport import sockets
from raft.transport.grpc_stack import stop_server
from raft.transport.liveness import ROUND_TRIP_BOUNDS_S
from raft.transport.peer_transport import PeerTransport, ask_description

logger = logging.getLogger("kvstore")

REPLY_GRACE_SECONDS = 0.25
"""For the last replies to leave when a member stops: every call is complete by then, only the network is
awaited."""

REQUEST_TIMEOUT_BASE_MS = 4800
"""A request times out after this and two election timeouts: one lost election may pass. A little less than
etcd's 5 s, so that the refusal arrives within etcd's time."""

LEADERLESS_ELECTIONS = 3
"""Election timeouts without a leader after which streams that required one fail, as in etcd."""

STUCK_DISK_EXIT_CODE = 74
"""Exit code when the log's disk does not answer at all (EX_IOERR): a thread that hangs in the kernel cannot
be joined, and the event loop may hang with it."""


class StartError(Exception):
    """The member cannot start; the text is the reason in one line."""


class NodeHandle:
    """A running member, as the program that embeds it sees it."""

    def __init__(self, name: str, initial_cluster: InitialCluster, node: Node) -> None:
        self.name = name
        self.member_id = initial_cluster.member_id
        self.cluster_id = initial_cluster.cluster_id
        self.node = node
        """For programs that need more than the rest of this class."""
        self.client_urls: tuple[str, ...] = ()
        """Where clients reach this member, with the ports really bound."""
        self.metrics_urls: tuple[str, ...] = ()
        """Where `/metrics`, `/health` and `/version` are, with the ports really bound."""
        self._ready = asyncio.Event()
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def ready(self) -> bool:
        """Whether this member has joined: it has a leader, and the cluster knows its client URLs."""
        return self._ready.is_set()

    @property
    def failed(self) -> bool:
        """Whether this member has failed for good; see `wait_failed`."""
        return self._failed.done()

    @property
    def removed(self) -> bool:
        """Whether it failed because it was removed from the cluster, which is permanent and in good order."""
        return self.node.membership.removed

    def status(self) -> NodeStatus:
        return self.node.status()

    async def wait_ready(self) -> None:
        """Wait until `ready`. Raises StartError when the member fails instead."""
        ready = asyncio.ensure_future(self._ready.wait())
        try:
            await asyncio.wait((ready, self._failed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if self._failed.done():
            raise StartError(self._failed.result())

    async def wait_failed(self) -> str:
        """Wait until the member fails for good (a failed disk, say); returns the reason in one line.

        It answers no call from then on; leave the `serve` block and exit the process.
        """
        return await asyncio.shield(self._failed)

    def _set_ready(self) -> None:
        self._ready.set()

    def _set_failed(self, reason: str) -> None:
        if not self._failed.done():
            self._failed.set_result(reason)


@asynccontextmanager
async def serve(config: Config) -> AsyncIterator[NodeHandle]:
    """Run a member for the duration of the block. Raises ConfigError or StartError instead of starting."""
    config.validate()
    assembly = _Assembly(config)
    try:
        try:
            handle = await assembly.start()
        except BackendError as error:
            raise StartError(f"{config.directory}: {error}") from error
        except (CannotJoin, StorageError, BackendBeyondLog, OSError) as error:
            raise StartError(_one_line(error)) from error
        yield handle
    finally:
        await _to_the_end(assembly.close())


class _Assembly:
    """Constructs one member step by step, and closes whatever was constructed."""

    _directory: MemberDirectory | None = None
    _writer: ThreadedLogWriter | None = None
    _transport: PeerTransport | None = None
    _node: Node | None = None
    """Set once started: from then on it closes transport, log and backend."""
    _watchdog: Watchdog | None = None
    _server: RpcServer | None = None
    _lessor: Lessor | None = None
    _publishing: asyncio.Task[None] | None = None
    _stop_compacting: Callable[[], None] | None = None
    _backups: Backups | None = None

    def __init__(self, config: Config) -> None:
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._incarnation = secrets.randbits(64)
        self._stack = make_peer_stack(config.grpc_stack)
        self._metrics_sockets: list[socket.socket] = []
        """Bound and listening, in the order of `listen_metrics`."""
        self._listeners: list[HttpListener] = []
        self._gate = Gate()
        self._loop_lag = LoopLag(self._loop)

    async def start(self) -> NodeHandle:
        config = self._config
        opened = await self._open_directory()
        self._directory, initial_cluster = opened.directory, opened.initial_cluster
        engine = Engine(members=initial_cluster.members)
        node = self._make_node(opened, engine, await opened.directory.state.mark())
        handle = self._handle = NodeHandle(config.name, initial_cluster, node)
        member = self._member = LocalMember(
            node=node,
            engine=engine,
            cluster_id=initial_cluster.cluster_id,
            member_id=initial_cluster.member_id,
            limits=Limits(
                config.max_request_bytes,
                config.max_txn_ops,
                LEADERLESS_ELECTIONS * config.election_timeout / 1000,
                config.progress_interval_s,
            ),
            quota_bytes=config.quota_bytes,
        )
        self._lessor = member.lessor
        self._lessor.start(
            loop=self._loop,
            rng=random.Random(self._incarnation),  # noqa: S311  names leases, guards no secret
            election_timeout_ms=config.election_timeout,
            checkpoints=config.enable_lease_checkpoint or config.experimental_enable_lease_checkpoint,
        )
        node.subscribe(lambda event: member.leader_loss.seen(event.leader))
        node.on_applied = member.watches.applied
        node.subscribe_installed(lambda _: member.watches.applied())
        changes = MembershipChanges(
            member,
            lambda: node.membership,
            lambda: node.transfer,
            election_timeout_ms=config.election_timeout,
            learners_max=config.max_learners,
            strict=config.strict_reconfig_check,
        )
        self._backups = Backups(lambda: node.snapshots)
        methods = all_methods(member, changes, self._backups)
        self._server = make_server(
            config.grpc_stack,
            methods,
            request_bytes_max=config.max_request_bytes,
            gate=self._gate,
            keepalive_interval_s=config.keepalive_interval_s,
            keepalive_timeout_s=config.keepalive_timeout_s,
        )
        ports = _bind_clients(self._server, config.listen_client)
        await self._start_node(node)
        self._start_watchdog(node, frozenset(ports))
        self._loop_lag.start()
        await self._server.start()
        for url, port in zip(config.listen_client, ports, strict=True):
            logger.info("listening for client requests on %s", Url(url.scheme, url.host, port).address)
        handle.client_urls = _with_ports(config.advertise_client, config.listen_client, ports)
        handle.metrics_urls = await self._start_http(member, methods)
        if config.retention:
            compaction = AutoCompaction(member, config.auto_compaction_mode, config.retention, self._loop)
            self._stop_compacting = compaction.start()
        self._publishing = self._loop.create_task(self._join(handle), name=f"publish {handle.name}")
        self._publishing.add_done_callback(self._on_published)
        return handle

    async def close(self) -> None:
        """Leave the peers first, so that they elect at once; then answer, flush and release.

        A failing step, of the disk say, does not prevent the others.
        """
        async with AsyncExitStack() as steps:  # taken from the last to the first
            if self._directory is not None:
                steps.callback(self._directory.release)
            if self._writer is not None:
                steps.push_async_callback(self._writer.close)  # once more, should a step before it fail
            for sock in self._metrics_sockets:
                steps.callback(sock.close)
            for listener in self._listeners:
                steps.push_async_callback(listener.stop)
            steps.push_async_callback(self._close_clients)
            steps.callback(self._loop_lag.stop)
            if self._lessor is not None:
                steps.callback(self._lessor.stop)
            if self._watchdog is not None:
                steps.callback(self._watchdog.stop)
            steps.push_async_callback(self._close_unstarted if self._node is None else self._node.stop)
            if self._node is not None:
                steps.push_async_callback(self._node.transfer.give_up_leadership)
            if self._backups is not None:
                steps.push_async_callback(self._backups.close)
            if self._stop_compacting is not None:
                self._stop_compacting()
            if self._publishing is not None:
                self._publishing.cancel()
                await asyncio.wait([self._publishing])

    async def _close_clients(self) -> None:
        if self._server is not None:
            await stop_server(self._server, REPLY_GRACE_SECONDS)
            self._member.leader_loss.close()

    async def _close_unstarted(self) -> None:
        async with AsyncExitStack() as steps:  # taken from the last to the first
            if self._directory is not None:
                steps.push_async_callback(self._directory.state.close)
            if self._writer is not None:
                steps.push_async_callback(self._writer.close)
            if self._transport is not None:
                steps.push_async_callback(self._transport.close)

    async def _open_directory(self) -> Opened:
        """Open or make the data directory while this process holds every address.

        The servers bind the same addresses at once afterwards; they cannot be handed a socket.
        """
        config = self._config
        with ExitStack() as held:
            for url in (*config.listen_client, *config.listen_peer):
                if url.port:
                    held.enter_context(_bind(url))
            for url in config.listen_metrics:
                self._metrics_sockets.append(_bind(url))
            return await open_data_directory(config, RealFiles(), partial(ask_description, self._stack))

    def _make_node(self, opened: Opened, engine: Engine, checkpoint: Checkpoint) -> Node:
        config, directory, initial_cluster = self._config, opened.directory, opened.initial_cluster
        rng = random.Random(self._incarnation)  # noqa: S311  spreads timeouts, guards no secret
        self._writer = ThreadedLogWriter(
            directory.log,
            loop=self._loop,
            fatal=lambda reason: node.fail(reason),
            on_space=lambda space: self._on_space(node, space),
            operations=count_operations,
        )
        transport = self._transport = PeerTransport(
            tuple(map(str, config.listen_peer)),
            stack=self._stack,
            rng=rng,
            describe=lambda: encode_description(
                Description(initial_cluster.cluster_id, initial_cluster.members, engine.members())
            ),
        )
        options = MemberOptions(
            config=NodeConfig(
                member_id=initial_cluster.member_id,
                cluster_id=initial_cluster.cluster_id,
                heartbeat_interval_ms=config.heartbeat_interval,
                election_timeout_ms=config.election_timeout,
                start_campaign=_start_campaign(config),
                request_timeout_ms=REQUEST_TIMEOUT_BASE_MS + 2 * config.election_timeout,
                compaction_entries=config.compaction_entries,
                catchup_entries=config.catchup_entries,
            ),
            incarnation=self._incarnation,
            rng=rng,
            fatal=self._on_fatal,
            peer_urls=tuple(map(str, config.advertise_peer)),
            bootstrap_voters=opened.bootstrap_voters,
        )
        storage = MemberStorage(
            recovered=directory.recovered,
            checkpoint=checkpoint,
            log=self._writer,
            backend=directory.state,
            snapshot_store=directory.snapshot_store,
        )
        node = assemble(options, storage, transport, engine, Node)
        return node

    async def _start_node(self, node: Node) -> None:
        for url in self._config.listen_peer:
            _try_bind(url)
        with _collector_paused():
            await node.start()
        self._node = node
        for url in (*self._config.listen_peer, *self._config.listen_client):
            if not _is_loopback(url.host):
                logger.warning(
                    "listening beyond this machine without TLS: anyone who reaches %s can read and write",
                    url.address,
                )

    def _start_watchdog(self, node: Node, client_ports: frozenset[int]) -> None:
        """Start the thread that watches the log's syncs, and steps down or exits when one stalls."""
        assert self._writer is not None
        assert self._transport is not None
        reset_peer_connections = self._transport.reset_connections

        def reset_connections() -> None:
            reset_peer_connections()
            sockets.shut_down(sockets.accepted_on(client_ports))

        self._watchdog = Watchdog(
            stalled_seconds=self._writer.stalled_seconds,
            loop=self._loop,
            election_timeout_ms=self._config.election_timeout,
            on_stall=node.on_disk_stalled,
            reset_connections=reset_connections,
            fatal=_end_process,
        )
        self._watchdog.start()

    async def _start_http(self, member: LocalMember, methods: tuple[Method, ...]) -> tuple[str, ...]:
        sources = Sources(
            rpcs=lambda: map(_rpc_counters, methods),
            peers=self._peer_counters,
            log_sync=self._log_syncs,
            state_commit=lambda: _state_commits(member),
            loop_lag=self._loop_lags,
        )
        routes = make_routes(member, make_registry(member, sources))
        urls = []
        for url, sock in zip(self._config.listen_metrics, self._metrics_sockets, strict=True):
            listener = HttpListener(routes)
            self._listeners.append(listener)
            await listener.start(sock)
            bound = Url(url.scheme, url.host, sock.getsockname()[1])
            logger.info("listening for metrics on %s", bound.address)
            urls.append(str(bound))
        return tuple(urls)

    async def _join(self, handle: NodeHandle) -> None:
        """Publish this member to the cluster; once that is applied, the member is ready."""
        if await publish(self._member, handle.name, handle.client_urls):
            logger.info("ready to serve client requests", extra={"node": handle.name})
            handle._set_ready()

    def _on_published(self, publishing: asyncio.Task[None]) -> None:
        if not publishing.cancelled() and publishing.exception() is not None:
            self._handle.node.fail(f"cannot join the cluster: {publishing.exception()}")

    def _on_fatal(self, reason: str) -> None:
        """Nothing may be answered from memory any more: refuse new calls, and fail those that wait."""
        self._handle._set_failed(reason)
        self._gate.shut()

    def _on_space(self, node: Node, space: bool) -> None:
        """The disk has no space for the log's next segment, or has it again."""
        if not space:  # called repeatedly while it lasts: the alarm cannot be raised without a leader
            self._member.quota.raise_alarm("the disk has no space for the log's next segment")
        node.on_log_space(space)

    def _log_syncs(self) -> HistogramView:
        assert self._writer is not None
        counted = self._writer.statistics()
        return HistogramView(SYNC_BOUNDS_S, counted.sync_buckets, counted.sync_seconds)

    def _loop_lags(self) -> HistogramView:
        lag = self._loop_lag
        return HistogramView(LAG_BOUNDS_S, tuple(lag.counts), lag.sum_s)

    def _peer_counters(self) -> Iterator[PeerCounters]:
        assert self._transport is not None
        connected = self._transport.connected_peers()
        for member_id, peer in sorted(self._transport.statistics().items()):
            yield PeerCounters(
                member_id=member_id,
                connected=member_id in connected,
                received_bytes=peer.received_bytes,
                sent_bytes=peer.sent_bytes,
                dropped=peer.send_failures,
                round_trip=HistogramView(
                    ROUND_TRIP_BOUNDS_S, peer.round_trip_buckets, peer.round_trip_seconds
                ),
            )


async def _to_the_end(closing: Coroutine[None, None, None]) -> None:
    """Await `closing`, even if the caller is cancelled meanwhile: a partial close would leave threads,
    sockets and the lock on the data directory behind. Raises the cancellation afterwards.
    """
    task = asyncio.ensure_future(closing)
    interrupted: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            interrupted = error
    task.result()
    if interrupted is not None:
        raise interrupted


def _start_campaign(config: Config) -> StartCampaign:
    """etcd's rule: a member that is the only one elects itself soon, with the setting or without."""
    return StartCampaign.WHEN_CONNECTED if config.initial_election_tick_advance else StartCampaign.IF_ALONE


def _state_commits(member: LocalMember) -> HistogramView:
    counted = member.node.status().statistics
    return HistogramView(STATE_COMMIT_BOUNDS_S, counted.state_commit_buckets, counted.state_commit_seconds)


def _rpc_counters(method: Method) -> RpcCounters:
    counted = method.statistics
    return RpcCounters(
        kind=method.kind,
        service=method.service,
        method=method.name,
        started=counted.started,
        handled=counted.handled,
        received_bytes=counted.received_bytes,
        sent_bytes=counted.sent_bytes,
    )


def _host(url: Url) -> str:
    """The address to bind; the only name that is allowed is localhost."""
    return "127.0.0.1" if url.host == "localhost" else url.host


def _is_loopback(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def _bind(url: Url) -> socket.socket:
    """A socket bound to the URL's address. Raises StartError in Go's words, which tools know."""
    host = _host(url)
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, url.port))
        sock.listen()
    except OSError as error:
        sock.close()
        reason = (error.strerror or str(error)).lower()
        raise StartError(f"listen tcp {url.address}: bind: {reason}") from error
    return sock


def _try_bind(url: Url) -> None:
    """Raise StartError when the URL's port is taken: gRPC's own report is no line for an operator."""
    if url.port:
        _bind(url).close()


def _bind_clients(server: RpcServer, urls: tuple[Url, ...]) -> list[int]:
    """Bind every client URL; the ports in the order of the URLs. Raises StartError."""
    ports = []
    for url in urls:
        _try_bind(url)
        try:
            ports.append(server.add_insecure_port(Url(url.scheme, _host(url), url.port).address))
        except (RuntimeError, OSError) as error:
            raise StartError(f"listen tcp {url.address}: {error}") from error
    return ports


def _with_ports(advertised: tuple[Url, ...], listened: tuple[Url, ...], ports: list[int]) -> tuple[str, ...]:
    """The advertised URLs, with a port of 0 replaced by the one bound for the same host."""
    bound = {url.host: port for url, port in zip(listened, ports, strict=True) if not url.port}
    return tuple(
        str(Url(url.scheme, url.host, url.port or bound.get(url.host, ports[0]))) for url in advertised
    )


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Loading allocates millions of objects and no garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _end_process(reason: str) -> None:
    """Runs on the watchdog's thread; the event loop may be stuck."""
    logger.critical("%s; ending the process", reason)
    os._exit(STUCK_DISK_EXIT_CODE)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

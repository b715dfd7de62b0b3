"""The metrics of a member for Prometheus, under etcd's names so that its dashboards work.

Each number has one counter and is formatted only on a scrape: the packages keep plain ints, which the
collector reads. One registry per member, so that several fit in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kvstore.server.local_member import LocalMember
from kvstore.version import ETCD_VERSION, __version__

CODE_NAMES = (
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
)
"""gRPC codes by number, spelled as in etcd's `grpc_code` label."""


class RpcCounters(NamedTuple):
    kind: str
    """`unary`, `server_stream` or `bidi_stream`."""
    service: str
    method: str
    started: int
    handled: Mapping[int, int]
    """Completed calls by gRPC code."""
    received_bytes: int
    sent_bytes: int


class HistogramView(NamedTuple):
    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]
    """Per bucket, one more than bounds: the last is everything longer."""
    sum_s: float


class PeerCounters(NamedTuple):
    member_id: int
    connected: bool
    received_bytes: int
    sent_bytes: int
    dropped: int
    round_trip: HistogramView


class Sources(NamedTuple):
    """Numbers from outside the member; each is called once per scrape."""

    rpcs: Callable[[], Iterable[RpcCounters]]
    peers: Callable[[], Iterable[PeerCounters]]
    log_sync: Callable[[], HistogramView]
    state_commit: Callable[[], HistogramView]
    loop_lag: Callable[[], HistogramView]


class MemberCollector(Collector):
    def __init__(self, member: LocalMember, sources: Sources) -> None:
        self._member = member
        self._sources = sources

    def describe(self) -> Iterable[Metric]:
        """Empty: the registry has no other collector with these names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from self._server()
        yield from self._store()
        yield from self._snapshots()
        yield from self._watches()
        yield from self._leases()
        yield from self._rpcs()
        yield from self._peers()
        yield _histogram(
            "etcd_disk_wal_fsync_duration_seconds", "One sync of the log.", self._sources.log_sync()
        )
        yield _histogram(
            "etcd_disk_backend_commit_duration_seconds",
            "One commit of the backend.",
            self._sources.state_commit(),
        )
        yield _histogram(
            "kvstore_event_loop_lag_seconds",
            "How late the event loop ran a timer of 20 ms.",
            self._sources.loop_lag(),
        )

    def _server(self) -> Iterator[Metric]:
        member = self._member
        status = member.node.status()
        has_leader = status.leader != 0
        is_leader = status.leader == member.member_id
        yield _gauge("etcd_server_has_leader", "Whether a leader is known.", has_leader)
        yield _gauge("etcd_server_is_leader", "Whether this member leads.", is_leader)
        yield _gauge("etcd_server_is_learner", "Whether this member is a learner.", member.is_learner())
        yield _counter(
            "etcd_server_leader_changes_seen", "Changes of leader seen.", status.statistics.leader_changes
        )
        yield _gauge("etcd_server_proposals_committed_total", "Highest committed index.", status.commit)
        yield _gauge("etcd_server_proposals_applied_total", "Highest applied index.", status.applied)
        yield _gauge("etcd_server_proposals_pending", "Proposals in flight.", member.proposals_pending)
        yield _counter("etcd_server_proposals_failed", "Failed proposals.", member.proposals_failed)
        yield _counter(
            "etcd_server_read_indexes_failed", "Reads that no leader confirmed.", member.read_indexes_failed
        )
        yield _gauge(
            "etcd_server_quota_backend_bytes", "Bound on stored bytes.", member.quota.limit_bytes or 0
        )
        identity = GaugeMetricFamily("etcd_server_id", "This member's id.", labels=["server_id"])
        identity.add_metric([f"{member.member_id:x}"], 1)
        yield identity
        version = GaugeMetricFamily(
            "etcd_server_version", "Version reported to clients.", labels=["server_version"]
        )
        version.add_metric([ETCD_VERSION], 1)
        yield version
        build = GaugeMetricFamily("kvstore_build_info", "Version of this software.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build

    def _store(self) -> Iterator[Metric]:
        engine = self._member.engine
        stored = max(self._member.node.status().backend_bytes, engine.logical_bytes)
        yield _gauge("etcd_mvcc_db_total_size_in_bytes", "Stored bytes.", stored)
        yield _gauge(
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "Stored bytes that are not history.",
            engine.logical_bytes_in_use,
        )
        yield _gauge("etcd_debugging_mvcc_keys_total", "Keys.", engine.key_count)
        yield _gauge("etcd_debugging_mvcc_current_revision", "Current revision.", engine.revision)
        yield _gauge(
            "etcd_debugging_mvcc_compact_revision", "Last compacted revision.", engine.compact_revision
        )

    def _snapshots(self) -> Iterator[Metric]:
        status = self._member.node.status()
        snapshots = status.snapshots
        yield _gauge(
            "etcd_server_snapshot_apply_in_progress_total",
            "1 while a snapshot is being received.",
            snapshots.receiving is not None,
        )
        yield _counter("etcd_network_snapshot_send_success", "Snapshots sent to members.", snapshots.sent)
        yield _counter(
            "etcd_network_snapshot_send_failures",
            "Snapshots that could not be sent.",
            snapshots.send_failures,
        )
        yield _gauge(
            "etcd_network_snapshot_send_inflights_total", "Snapshots being sent.", len(snapshots.sending)
        )
        yield _counter(
            "etcd_network_snapshot_receive_success", "Snapshots received and installed.", snapshots.installed
        )
        yield _counter(
            "etcd_network_snapshot_receive_failures",
            "Snapshots received in part and dropped.",
            snapshots.receive_failures,
        )
        yield _counter("kvstore_snapshot_sent_bytes", "Bytes of snapshots sent.", snapshots.sent_bytes)
        yield _counter(
            "kvstore_snapshot_received_bytes", "Bytes of snapshots received.", snapshots.received_bytes
        )
        yield _gauge("kvstore_log_entries", "Entries in the log.", status.last_index - status.first_index + 1)

    def _watches(self) -> Iterator[Metric]:
        hub = self._member.watches
        yield _gauge("etcd_debugging_mvcc_watch_stream_total", "Watch calls.", hub.streams)
        yield _gauge("etcd_debugging_mvcc_watcher_total", "Watchers.", hub.watcher_count)
        yield _gauge(
            "etcd_debugging_mvcc_slow_watcher_total", "Unsynced watchers, which read history.", hub.unsynced
        )
        yield _counter("etcd_debugging_mvcc_events", "Events queued for watchers, since start.", hub.events)
        yield _gauge(
            "etcd_debugging_mvcc_pending_events_total",
            "Events in the queues of watchers.",
            hub.pending_events,
        )
        yield _gauge("kvstore_watch_pending_bytes", "Bytes in the queues of watchers.", hub.pending_bytes)
        yield _counter(
            "kvstore_watch_touched", "Deliveries of a change to a watcher of its key.", hub.touched
        )

    def _leases(self) -> Iterator[Metric]:
        leases = self._member.engine.leases
        yield _counter("etcd_debugging_lease_granted", "Leases granted, as applied here.", leases.granted)
        yield _counter(
            "etcd_debugging_lease_revoked", "Leases revoked or expired, as applied here.", leases.revoked
        )
        yield _counter(
            "etcd_debugging_lease_renewed",
            "Keep-alives acknowledged by this member.",
            self._member.lessor.kept_alive,
        )
        yield _counter(
            "etcd_debugging_server_lease_expired", "Leases expired, as applied here.", leases.expired
        )
        yield _gauge("kvstore_leases", "Leases.", len(leases))

    def _rpcs(self) -> Iterator[Metric]:
        labels = ["grpc_type", "grpc_service", "grpc_method"]
        started = CounterMetricFamily("grpc_server_started", "Calls begun.", labels=labels)
        handled = CounterMetricFamily(
            "grpc_server_handled", "Calls completed, with any outcome.", labels=[*labels, "grpc_code"]
        )
        received = sent = 0
        for row in self._sources.rpcs():
            names = [row.kind, row.service, row.method]
            started.add_metric(names, row.started)
            for code in sorted({0, *row.handled}):
                handled.add_metric([*names, CODE_NAMES[code]], row.handled.get(code, 0))
            received += row.received_bytes
            sent += row.sent_bytes
        yield started
        yield handled
        yield _counter("etcd_network_client_grpc_received_bytes", "Bytes of requests.", received)
        yield _counter("etcd_network_client_grpc_sent_bytes", "Bytes of replies.", sent)

    def _peers(self) -> Iterator[Metric]:
        received = CounterMetricFamily(
            "etcd_network_peer_received_bytes", "Bytes from a peer.", labels=["From"]
        )
        sent = CounterMetricFamily("etcd_network_peer_sent_bytes", "Bytes to a peer.", labels=["To"])
        failures = CounterMetricFamily(
            "etcd_network_peer_sent_failures", "Messages to a peer that were dropped.", labels=["To"]
        )
        active = GaugeMetricFamily(
            "etcd_network_active_peers", "Connected peers.", labels=["Local", "Remote"]
        )
        round_trips = HistogramMetricFamily(
            "etcd_network_peer_round_trip_time_seconds", "From a heartbeat to its answer.", labels=["To"]
        )
        local = f"{self._member.member_id:x}"
        for peer in self._sources.peers():
            name = f"{peer.member_id:x}"
            received.add_metric([name], peer.received_bytes)
            sent.add_metric([name], peer.sent_bytes)
            failures.add_metric([name], peer.dropped)
            active.add_metric([local, name], int(peer.connected))
            round_trips.add_metric([name], _buckets(peer.round_trip), peer.round_trip.sum_s)
        yield from (received, sent, failures, active, round_trips)


def make_registry(member: LocalMember, sources: Sources) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MemberCollector(member, sources))
    ProcessCollector(registry=registry)
    return registry


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=float(value))


def _histogram(name: str, text: str, view: HistogramView) -> Metric:
    return HistogramMetricFamily(name, text, buckets=_buckets(view), sum_value=view.sum_s)


def _buckets(view: HistogramView) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound, as Prometheus requires."""
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*view.bounds_s, float("inf")), view.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
    return buckets

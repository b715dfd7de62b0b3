"""The numbers shown to Prometheus: names and labels that dashboards query literally."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kvstore.engine import Engine
from kvstore.replica.replica import Limits
from kvstore.server.local_member import LocalMember
from kvstore.server.metrics import (
    HistogramView,
    MemberCollector,
    PeerCounters,
    RpcCounters,
    Sources,
)
from raft.node.node_status import SnapshotStatistics


class Statistics:
    leader_changes = 4


class Status:
    term, leader, commit, applied, statistics = 3, 7, 10, 9, Statistics
    backend_bytes = 4096
    first_index, last_index = 5, 10
    snapshots = SnapshotStatistics(
        built=2,
        sent=1,
        send_failures=3,
        sent_bytes=1000,
        sending={8: (10, 20)},
        installed=4,
        receive_failures=5,
        resumed=6,
        superseded=7,
        received_bytes=2000,
        receiving=None,
    )


class Node:
    term, leader = 3, 7

    def status(self) -> Status:
        return Status()


def samples_of(sources: Sources) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Everything a scrape shows, by name and labels."""
    member = LocalMember(
        node=Node(),
        engine=Engine(),
        cluster_id=1,
        member_id=7,
        limits=Limits(1000, 128),
        quota_bytes=None,
    )
    registry = CollectorRegistry()
    registry.register(MemberCollector(member, sources))
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_everything_a_scrape_shows() -> None:
    view = HistogramView((0.1, 0.2), (2, 0, 1), 1.5)
    sources = Sources(
        rpcs=lambda: [RpcCounters("unary", "etcdserverpb.KV", "Put", 5, {0: 3, 14: 1}, 100, 200)],
        peers=lambda: [PeerCounters(0xAB, True, 10, 20, 1, view)],
        log_sync=lambda: view,
        state_commit=lambda: view,
        loop_lag=lambda: view,
    )
    seen = samples_of(sources)
    put = (("grpc_method", "Put"), ("grpc_service", "etcdserverpb.KV"), ("grpc_type", "unary"))
    assert seen["grpc_server_started_total", put] == 5
    assert seen["grpc_server_handled_total", (("grpc_code", "OK"), *put)] == 3
    assert seen["grpc_server_handled_total", (("grpc_code", "Unavailable"), *put)] == 1
    assert seen["etcd_network_client_grpc_received_bytes_total", ()] == 100
    assert seen["etcd_network_peer_sent_bytes_total", (("To", "ab"),)] == 20
    assert seen["etcd_network_peer_received_bytes_total", (("From", "ab"),)] == 10
    assert seen["etcd_network_peer_sent_failures_total", (("To", "ab"),)] == 1
    round_trip = "etcd_network_peer_round_trip_time_seconds"
    assert seen[round_trip + "_bucket", (("To", "ab"), ("le", "0.2"))] == 2
    assert seen[round_trip + "_count", (("To", "ab"),)] == 3
    assert seen["etcd_disk_wal_fsync_duration_seconds_bucket", (("le", "+Inf"),)] == 3
    assert seen["etcd_disk_wal_fsync_duration_seconds_sum", ()] == 1.5
    assert seen["etcd_server_is_leader", ()] == 1
    assert seen["etcd_debugging_mvcc_watcher_total", ()] == 0
    assert seen["etcd_debugging_mvcc_slow_watcher_total", ()] == 0
    assert seen["kvstore_watch_touched_total", ()] == 0
    assert seen["etcd_debugging_lease_granted_total", ()] == 0
    assert seen["etcd_debugging_server_lease_expired_total", ()] == 0
    assert seen["etcd_server_leader_changes_seen_total", ()] == 4
    assert seen["etcd_network_snapshot_send_success_total", ()] == 1
    assert seen["etcd_network_snapshot_send_failures_total", ()] == 3
    assert seen["etcd_network_snapshot_send_inflights_total", ()] == 1
    assert seen["etcd_network_snapshot_receive_success_total", ()] == 4
    assert seen["etcd_network_snapshot_receive_failures_total", ()] == 5
    assert seen["etcd_server_snapshot_apply_in_progress_total", ()] == 0
    assert seen["kvstore_snapshot_sent_bytes_total", ()] == 1000
    assert seen["kvstore_snapshot_received_bytes_total", ()] == 2000
    assert seen["kvstore_log_entries", ()] == 6
    assert seen["etcd_server_proposals_committed_total", ()] == 10
    assert seen["etcd_server_quota_backend_bytes", ()] == 0
    assert not [name for name, _ in seen if name.endswith("_created")]

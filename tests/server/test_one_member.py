"""A single member over real gRPC, HTTP and disk."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import urllib.error
import urllib.request

import grpc
import pytest

import kvstore
from kvstore import Config
from kvstore.app import StartError
from kvstore.devcluster.plan import free_ports
from kvstore.server.initial_cluster import bootstrap_cluster
from kvstore.wire import rpc_pb2 as pb
from raft.storage import BackendFailed
from raft.storage.backend import SqliteBackend

ETCD_DASHBOARD_SERIES = (
    "etcd_server_has_leader",
    "grpc_server_started_total{",
    "grpc_server_handled_total{",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_disk_wal_fsync_duration_seconds_bucket{",
    "etcd_disk_backend_commit_duration_seconds_bucket{",
    "process_resident_memory_bytes",
    "etcd_network_client_grpc_received_bytes_total",
    "etcd_network_client_grpc_sent_bytes_total",
    "etcd_server_proposals_failed_total",
    "etcd_server_proposals_pending",
    "etcd_server_proposals_committed_total",
    "etcd_server_proposals_applied_total",
    "etcd_server_leader_changes_seen_total",
)
"""What the official Grafana dashboard asks of a member without peers."""

OTHER = "another-cluster"

KINDS = ("listen_client_urls", "listen_peer_urls", "listen_metrics_urls")


async def fetch(url: str) -> tuple[int, bytes]:
    def get() -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  our own listener
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    return await asyncio.to_thread(get)


@pytest.mark.asyncio
async def test_what_was_acknowledged_is_there_after_a_restart(members) -> None:
    (member,) = await members.start(1)
    for number in range(20):
        await member.put(b"k%d" % number, b"%d" % number)
    before = await member.call("Maintenance/Status", pb.StatusRequest())
    await member.stop()
    await member.start()
    await member.ready()
    assert await member.get(b"k19") == b"19"
    answered = await member.call("KV/Range", pb.RangeRequest(key=b"k", range_end=b"l"))
    assert (answered.count, answered.header.revision) == (20, 21)
    assert answered.header.cluster_id == before.header.cluster_id
    assert answered.header.member_id == before.header.member_id


@pytest.mark.asyncio
async def test_health_version_and_metrics(members) -> None:
    (member,) = await members.start(1)
    url = member.handle.metrics_urls[0]
    assert await fetch(url + "/health") == (200, b'{"health":"true","reason":""}')
    status, body = await fetch(url + "/version")
    assert (status, json.loads(body)) == (200, {"etcdserver": "3.5.21", "etcdcluster": "3.5.0"})
    await member.put(b"k")
    request = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=1, alarm=pb.NOSPACE)
    await member.call("Maintenance/Alarm", request)
    assert await fetch(url + "/health") == (503, b'{"health":"false","reason":"ALARM NOSPACE"}')
    assert (await fetch(url + "/health?exclude=NOSPACE"))[0] == 200
    status, body = await fetch(url + "/metrics")
    text = body.decode()
    assert status == 200
    assert "etcd_server_has_leader 1.0" in text
    put = 'grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"'
    assert f"grpc_server_started_total{{{put}}} 1.0" in text
    assert f'grpc_server_handled_total{{grpc_code="OK",{put}}} 1.0' in text
    assert "_created" not in text
    syncs = re.search(r'etcd_disk_wal_fsync_duration_seconds_bucket{le="\+Inf"} (\d+)', text)
    assert syncs is not None
    assert int(syncs[1]) >= 1
    for series in ETCD_DASHBOARD_SERIES:
        assert f"\n{series}" in text, series


@pytest.mark.asyncio
async def test_hasleader_and_unknown_services(members) -> None:
    (member,) = await members.start(1)
    await member.put(b"k", metadata=(("hasleader", "true"),))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await member.call("KV/Put", pb.PutRequest())
    assert raised.value.details() == "etcdserver: key is not provided"
    assert dict(raised.value.trailing_metadata())["kvstore-outcome"] == "not-applied"


@pytest.mark.asyncio
async def test_two_members_in_one_process_do_not_meet(members, tmp_path) -> None:
    (first,) = await members.start(1)
    (second,) = members.plan(1, data_dir=str(tmp_path / "other"), initial_cluster_token=OTHER)
    await second.start()
    await second.ready()
    await first.put(b"k", b"1")
    assert await second.get(b"k") is None
    assert first.handle.cluster_id != second.handle.cluster_id


@pytest.mark.asyncio
async def test_a_close_that_is_cancelled_is_still_a_whole_one(members, until) -> None:
    (member,) = await members.start(1)
    await member.stop()
    threads = threading.active_count()  # with those that gRPC keeps for ever

    async def serve() -> None:
        async with kvstore.serve(member.config) as node:
            await node.wait_ready()
            serving.set()
            await asyncio.Event().wait()

    serving = asyncio.Event()
    task = asyncio.create_task(serve())
    await asyncio.wait_for(serving.wait(), 15)
    assert threading.active_count() > threads
    task.cancel()
    while not task.done():  # as an impatient caller would
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()
    await until(lambda: threading.active_count() == threads)
    await member.start()  # the lock, the ports and the data are free again
    await member.ready()


@pytest.mark.asyncio
async def test_a_close_that_fails_lets_go_of_everything_all_the_same(members, until, monkeypatch) -> None:
    (member,) = await members.start(1)
    await member.stop()
    threads = threading.active_count()

    async def close(state: SqliteBackend) -> None:
        await closed(state)
        raise BackendFailed("the disk went away")

    async def serve() -> None:
        async with kvstore.serve(member.config) as node:
            await node.wait_ready()

    closed = SqliteBackend.close
    with monkeypatch.context() as patched:
        patched.setattr(SqliteBackend, "close", close)
        with pytest.raises(BackendFailed):
            await serve()
    await until(lambda: threading.active_count() == threads)
    await member.start()
    await member.ready()


@pytest.mark.asyncio
async def test_a_member_that_cannot_start_says_why_in_one_line(members, until) -> None:
    (member,) = await members.start(1)
    config = member.config
    taken = member.handle.client_urls[0]

    async def refusal(**changes: object) -> str:
        threads = threading.active_count()
        refused = Config(**{**vars(config), **changes})
        with pytest.raises(StartError) as raised:
            async with kvstore.serve(refused):
                raise AssertionError("started")
        line = str(raised.value)
        assert line
        assert "\n" not in line
        await until(lambda: threading.active_count() == threads)
        if refused.data_dir != config.data_dir:
            assert not refused.directory.is_dir(), "nor anything that a corrected start would meet"
        return line

    free = "http://127.0.0.1:0"
    assert "in use by another process" in await refusal(listen_peer_urls=free)
    assert "address already in use" in await refusal()
    other = str(members.directory / "other")
    assert "address already in use" in await refusal(data_dir=other, listen_client_urls=taken)
    peer = config.listen_peer_urls
    options = {"initial_cluster": f"a={peer}", "listen_peer_urls": peer}
    assert "address already in use" in await refusal(data_dir=other, **options)
    taken = member.handle.metrics_urls[0]
    options = {"initial_cluster": f"a={free}", "listen_peer_urls": free, "listen_metrics_urls": taken}
    assert "address already in use" in await refusal(data_dir=str(members.directory / "third"), **options)
    await member.stop()
    fresh = str(members.directory / "fresh")
    assert "existing" in await refusal(data_dir=fresh, initial_cluster_state="existing")
    blocked = members.directory / "file"
    blocked.write_text("not a directory")
    assert str(blocked) in await refusal(data_dir=str(blocked))
    await member.start()
    await member.ready()


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", KINDS)
async def test_a_start_without_its_port_leaves_nothing_behind(members, kind) -> None:
    urls = {one: f"http://127.0.0.1:{port}" for one, port in zip(KINDS, free_ports(3), strict=True)}
    urls["initial_cluster"] = f"a={urls['listen_peer_urls']}"
    (wrong,) = members.plan(1, **urls, initial_cluster_token=OTHER)
    refusal = pytest.raises(StartError, match=f"listen tcp {urls[kind][7:]}: bind: address already in use")
    with socket.create_server(("127.0.0.1", int(urls[kind].rpartition(":")[2]))), refusal:
        await wrong.start()
    assert not wrong.config.directory.exists()
    right = members.add(**{**vars(wrong.config), "initial_cluster_token": "etcd-cluster"})
    await right.start()
    await right.ready()
    identity = bootstrap_cluster({"a": [urls["listen_peer_urls"]]}, "a", "etcd-cluster")
    assert (right.handle.cluster_id, right.handle.member_id) == identity[:2]


@pytest.mark.asyncio
async def test_a_range_in_pieces_ends_by_itself(members) -> None:
    (only,) = await members.start(1)
    for number in range(4):
        await only.put(b"%d" % number, b"v" * (700 * 1024))
    stream = only.stream("KV/RangeStream", pb.RangeRequest(key=b"0", range_end=b"9"))
    pieces = [piece.range_response async for piece in stream]
    assert [len(piece.kvs) for piece in pieces] == [2, 2]
    assert [piece.HasField("header") for piece in pieces] == [False, True]
    assert pieces[-1].count == 4
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        [piece async for piece in only.stream("KV/RangeStream", pb.RangeRequest(key=b""))]
    assert raised.value.details() == "etcdserver: key is not provided"

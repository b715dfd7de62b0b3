"""Backups, restoring them, and going on alone: new clusters out of old ones, on real disks."""

from __future__ import annotations

import asyncio
import errno
import hashlib
from pathlib import Path

import grpc
import pytest

from kvstore.app import StartError
from kvstore.devcluster.plan import free_ports
from kvstore.engine.backend_rewrite import REVISION_BUMP
from kvstore.server.disaster_recovery import restore
from kvstore.wire import rpc_pb2 as pb
from raft.storage import DirectoryLocked, DirectoryUnrecognized, RealFiles, SnapshotInvalid
from raft.storage import backup as backup_module
from raft.storage.backup import finish_replacement, read_backup

QUICK = {"heartbeat_interval": 20, "election_timeout": 200, "listen_client_urls": "http://127.0.0.1:0"}


NAME = "restored"  # of the new cluster, in its token


async def save(member, path: Path) -> list[pb.SnapshotResponse]:
    """A backup of the member, as etcd's clients take one."""
    ask = member._channel.unary_stream(
        "/etcdserverpb.Maintenance/Snapshot",
        request_serializer=pb.SnapshotRequest.SerializeToString,
        response_deserializer=pb.SnapshotResponse.FromString,
    )
    replies = [reply async for reply in ask(pb.SnapshotRequest(), timeout=20)]
    store(path, b"".join(reply.blob for reply in replies))
    return replies


def store(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def leader_of(cluster):
    return next(m for m in cluster if m.handle.status().leader == m.handle.member_id)


def peers(count: int) -> list[str]:
    return [f"http://127.0.0.1:{port}" for port in free_ports(count)]


async def refusal(member, method: str, request) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await member.call(method, request)
    return raised.value.details()


@pytest.mark.asyncio
async def test_a_backup_is_framed_as_etcds_and_verified(members, tmp_path) -> None:
    (member,) = await members.start(1)
    for number in range(300):
        await member.put(b"k%d" % number, b"v" * 4000)
    path = tmp_path / "backup"
    replies = await save(member, path)
    data = path.read_bytes()
    assert len(replies) > 3
    assert len(data) % 512 == 32
    assert hashlib.sha256(data[:-32]).digest() == data[-32:] == replies[-1].blob
    remaining = [reply.remaining_bytes for reply in replies]
    assert remaining == sorted(remaining, reverse=True)
    assert remaining[0] == len(data) - 32 - len(replies[0].blob)
    assert remaining[-2:] == [0, 0]
    held = read_backup(str(path))
    assert len(held.rows) > 300
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "backup"], "nothing is written beside it"
    assert not list(member.config.directory.glob("image-*")), "the copy goes when it was sent"
    for position in (5000, len(data) - 5):
        broken = bytearray(data)
        broken[position] ^= 1
        path.write_bytes(broken)
        with pytest.raises(SnapshotInvalid, match=r"^expected sha256 \[\d+ .*\], got \[\d+ .*\]$"):
            read_backup(str(path))
    path.write_bytes(data[:-32])
    with pytest.raises(SnapshotInvalid, match=r"^snapshot missing hash but --skip-hash-check=false$"):
        read_backup(str(path))
    assert read_backup(str(path), check_digest=False).rows == held.rows


@pytest.mark.asyncio
async def test_three_members_begin_with_a_backup_and_a_fourth_joins(members, tmp_path, until) -> None:
    (old,) = await members.start(1)
    await old.put(b"k", b"1")
    await old.put(b"k", b"2")
    await old.call("KV/DeleteRange", pb.DeleteRangeRequest(key=b"gone"))
    backup = tmp_path / "backup"
    await save(old, backup)
    await old.put(b"k", b"lost")
    urls = peers(4)
    initial = {name: [url] for name, url in zip("xyz", urls, strict=False)}
    cluster = []
    for name in "xyz":
        directory = members.directory / name
        initial_cluster = await restore(backup, directory, name=name, initial=initial, token=NAME)
        assert initial_cluster.cluster_id != old.handle.cluster_id
        with pytest.raises(DirectoryUnrecognized, match="not empty"):
            await restore(backup, directory, name=name, initial=initial, token=NAME)
        cluster.append(
            members.add(
                name=name,
                data_dir=str(directory),
                listen_peer_urls=initial[name][0],
                initial_cluster=",".join(f"{one}={url}" for one, (url,) in initial.items()),
                initial_cluster_token=NAME,
                **QUICK,
            )
        )
    await asyncio.gather(*(member.start() for member in cluster))
    await asyncio.gather(*(member.ready() for member in cluster))
    assert len({member.handle.cluster_id for member in cluster}) == 1
    answered = await cluster[0].call("KV/Range", pb.RangeRequest(key=b"k"))
    assert answered.kvs[0].value == b"2"
    assert (answered.kvs[0].version, answered.kvs[0].mod_revision) == (2, 3)
    assert answered.header.revision == 3 + REVISION_BUMP
    assert "compacted" in await refusal(cluster[1], "KV/Range", pb.RangeRequest(key=b"k", revision=3))
    put = await cluster[2].put(b"new")
    assert put.header.revision == 4 + REVISION_BUMP
    listed = await cluster[0].call("Cluster/MemberList", pb.MemberListRequest(linearizable=True))
    assert [one.name for one in sorted(listed.members, key=lambda one: one.name)] == ["x", "y", "z"]

    request = pb.MemberAddRequest(peerURLs=[urls[3]])
    async with asyncio.timeout(20):
        while True:
            try:
                await cluster[0].call("Cluster/MemberAdd", request)
                break
            except grpc.aio.AioRpcError as error:
                if "unhealthy" not in error.details():
                    raise
                await asyncio.sleep(0.05)
    fourth = members.add(
        name="w",
        data_dir=str(members.directory / "w"),
        listen_peer_urls=urls[3],
        initial_cluster=",".join([*(f"{one}={url}" for one, (url,) in initial.items()), f"w={urls[3]}"]),
        initial_cluster_state="existing",
        **QUICK,
    )
    await fourth.start()
    await fourth.ready()
    assert await fourth.get(b"k") == b"2", "what no log holds came as a snapshot"


@pytest.mark.asyncio
async def test_a_survivor_is_forced_to_go_on_alone_and_grows_again(members, until) -> None:
    cluster = await members.start(3)
    for number in range(20):
        await cluster[number % 3].put(b"k", b"%d" % number)
    last = cluster[0]
    revision = (await last.call("KV/Range", pb.RangeRequest(key=b"k"))).header.revision
    await asyncio.gather(*(member.stop() for member in cluster))
    forced = members.add(
        name="a",
        data_dir=str(last.config.directory),
        listen_peer_urls=last.config.listen_peer_urls,
        initial_advertise_peer_urls="http://127.0.0.1:1",
        force_new_cluster=True,
        **QUICK,
    )
    for _ in range(2):  # the flag may be left on: the second time it finds nothing to do
        await forced.start()
        await forced.ready()
        answered = await forced.call("KV/Range", pb.RangeRequest(key=b"k"))
        assert answered.kvs[0].value == b"19"
        assert answered.kvs[0].version == 20
        assert answered.header.revision == revision + REVISION_BUMP
        assert "compacted" in await refusal(forced, "KV/Range", pb.RangeRequest(key=b"k", revision=revision))
        listed = await forced.call("Cluster/MemberList", pb.MemberListRequest(linearizable=True))
        assert [one.ID for one in listed.members] == [last.handle.member_id]
        assert list(listed.members[0].peerURLs) == [last.config.listen_peer_urls], (
            "not what is advertised now"
        )
        assert forced.handle.cluster_id != last.handle.cluster_id
        await forced.stop()
    await forced.start()
    await cluster[1].start()  # a lost one comes back: it belongs to another cluster, and stays outside
    await forced.ready()
    await forced.put(b"alone")
    (url,) = peers(1)
    await forced.call("Cluster/MemberAdd", pb.MemberAddRequest(peerURLs=[url], isLearner=True))
    new = members.add(
        name="n",
        data_dir=str(members.directory / "n"),
        listen_peer_urls=url,
        initial_cluster=f"a={last.config.listen_peer_urls},n={url}",
        initial_cluster_state="existing",
        **QUICK,
    )
    await new.start()
    await new.ready()
    assert await new.get(b"k", serializable=True) == b"19"
    assert cluster[1].handle.status().leader == 0


@pytest.mark.asyncio
async def test_a_replacement_interrupted_between_its_two_names_is_completed(members) -> None:
    (member,) = await members.start(1)
    await member.put(b"k", b"1")
    old_cluster = member.handle.cluster_id
    await member.stop()
    forced = members.add(**{**vars(member.config), "force_new_cluster": True})
    await forced.start()
    await forced.ready()
    new_cluster = forced.handle.cluster_id
    await forced.stop()
    directory = member.config.directory
    # As it was after the first rename: the new log stands ready, the old one is out of the way.
    (directory / "wal").rename(directory / "wal.new")
    (directory / "wal.old").mkdir()
    (directory / "wal.old" / "0000000000000001.wal").write_bytes(b"old")
    plain = members.add(**{**vars(member.config), "initial_cluster": ""})
    await plain.start()
    await plain.ready()
    assert plain.handle.cluster_id == new_cluster != old_cluster
    assert await plain.get(b"k") == b"1"
    assert not (directory / "wal.old").exists()
    await plain.stop()
    # As it was before that: what was prepared is thrown away.
    (directory / "wal.new").mkdir()
    (directory / "wal.new" / "0000000000000001.wal").write_bytes(b"prepared")
    finish_replacement(RealFiles(), str(directory))
    assert not (directory / "wal.new").exists()
    await plain.start()
    await plain.ready()
    assert plain.handle.cluster_id == new_cluster


@pytest.mark.asyncio
async def test_a_directory_in_use_is_not_forced(members) -> None:
    (member,) = await members.start(1)
    forced = members.add(**{**vars(member.config), "force_new_cluster": True})
    with pytest.raises(StartError, match="in use"):
        await forced.start()


@pytest.mark.asyncio
async def test_a_replacement_under_way_is_left_alone(members) -> None:
    (member,) = await members.start(1)
    prepared = member.config.directory / "wal.new"
    prepared.mkdir()
    with pytest.raises(DirectoryLocked):
        finish_replacement(RealFiles(), str(member.config.directory))
    assert prepared.exists()


@pytest.mark.asyncio
@pytest.mark.parametrize("step", ["create_log", "open_sqlite_backend"])
async def test_a_restore_that_fails_can_be_repeated(members, tmp_path, monkeypatch, step) -> None:
    (member,) = await members.start(1)
    await member.put(b"k", b"1")
    await save(member, tmp_path / "backup")
    works = getattr(backup_module, step)

    def make_and_fail(*args, **options):
        works(*args, **options)  # everything is on the disk when it fails
        raise OSError(errno.ENOSPC, "No space left on device")

    async def open_and_fail(path, *args):
        await (await works(path, *args)).close()
        raise OSError(errno.ENOSPC, "No space left on device")

    directory = members.directory / "restored"
    arguments = {"name": "x", "initial": {"x": peers(1)}, "token": NAME}
    with monkeypatch.context() as patched:
        patched.setattr(backup_module, step, make_and_fail if step == "create_log" else open_and_fail)
        with pytest.raises(OSError, match="No space"):
            await restore(tmp_path / "backup", directory, **arguments)
    assert [path.name for path in directory.iterdir()] == ["lock"]
    await restore(tmp_path / "backup", directory, **arguments)

"""Data directories that the baseline's code left behind when it was killed, served by the present code."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from bench.clusters import Cluster, Member
from kvstore.wire import rpc_pb2, v3lock_pb2
from tests.compatibility import archived_cluster
from tests.compatibility.archived_cluster import KEPT, Facts, read_facts, three_members
from tests.compatibility.calls import Calls, connected, until
from tests.compatibility.observation import differences, observe

EXPIRY_SECONDS_MAX = 30.0
"""For a lease of three seconds, which starts anew with the new leader."""

LOST_FRAMES = 3
"""The end of the log that the control removes: less than the writes that only the log holds."""

CANNOT_START = 1
"""The exit code of a member that refuses its data directory."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The data directories of the archive, at the addresses that they record."""
    with ExitStack() as held:
        try:
            held.enter_context(archived_cluster.addresses())
        except OSError as error:
            pytest.skip(f"needs all of 127.0.0.0/8 on the loopback interface: {error}")
        archived_cluster.unpack(tmp_path)
        yield tmp_path
        for name in archived_cluster.OWN_FLAGS:  # 32 MiB each: too much to keep for each of the last runs
            shutil.rmtree(tmp_path / name)


def complaints(cluster: Cluster, facts: Facts) -> list[str]:
    """What the members serve that is not what the baseline's code served from the same directories."""
    ids = {member["name"]: member["id"] for member in facts.found["members"]}
    found = []
    for member in cluster.members:
        with connected(member) as calls:
            served = observe(calls, facts.revision, facts.election.encode())
            found += [f"{member.name}: {line}" for line in differences(facts.found, served)]
            status = calls("Maintenance/Status", rpc_pb2.StatusRequest())
        if status.header.member_id != ids[member.name]:
            found.append(f"{member.name}: is now {status.header.member_id}")
        if status.raftAppliedIndex < facts.applied:
            found.append(f"{member.name}: applied only up to {status.raftAppliedIndex}")
    return found


def hand_on_the_lock(calls: Calls, facts: Facts) -> None:
    """The second lease in the recorded queue gets the lock when the first one's key goes, and not before."""
    prefix = facts.lock.encode() + b"/"
    queue = rpc_pb2.RangeRequest(
        key=prefix, range_end=prefix[:-1] + b"0", sort_target=rpc_pb2.RangeRequest.CREATE
    )
    holder, waiter = calls("KV/Range", queue).kvs
    waits = calls.begin("Lock/Lock", v3lock_pb2.LockRequest(name=facts.lock.encode(), lease=waiter.lease))
    released = calls("Lock/Unlock", v3lock_pb2.UnlockRequest(key=holder.key)).header.revision
    granted = waits.result()
    assert granted.key == waiter.key, "it keeps its position"
    assert granted.header.revision >= released


def write(cluster: Cluster, value: bytes) -> None:
    """A put through each member, read back through the next."""
    for index, member in enumerate(cluster.members):
        key = b"new/" + member.name.encode()
        with connected(member) as calls:
            calls("KV/Put", rpc_pb2.PutRequest(key=key, value=value))
        with connected(cluster.members[index - 1]) as calls:
            (kv,) = calls("KV/Range", rpc_pb2.RangeRequest(key=key)).kvs
            assert kv.value == value


def count(calls: Calls, key: str, end: str = "") -> int:
    request = rpc_pb2.RangeRequest(key=key.encode(), range_end=end.encode(), count_only=True)
    number: int = calls("KV/Range", request).count
    return number


def test_the_archive_is_of_a_cluster_that_was_killed_at_work() -> None:
    facts = read_facts()
    assert set(facts.checkpoints) == set(archived_cluster.OWN_FLAGS)
    assert max(facts.checkpoints.values()) < facts.applied, "the newest entries are in the log alone"
    assert facts.found["compacted"] > 1
    assert facts.found["leases"]
    assert facts.found["alarms"] == 0


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_all_that_was_recorded_is_found_and_the_cluster_goes_on(folder: Path) -> None:
    facts = read_facts()
    cluster = three_members(folder)
    with cluster:
        assert complaints(cluster, facts) == []
        left = {path.name for member in cluster.members for path in member.data_dir.iterdir()}
        assert [name for name in left if not KEPT.fullmatch(name)] == []
        with connected(cluster.members[0]) as calls:
            until("its lease runs out", lambda: count(calls, facts.expiring) == 0, EXPIRY_SECONDS_MAX)
            write(cluster, b"1")
        assert [member.stop() for member in cluster.members] == [0, 0, 0]
        for member in cluster.members:
            member.start()
        cluster.wait_ready()
        assert complaints(cluster, facts) == [], "still, after the present code has written to them"
        with connected(cluster.members[0]) as calls:
            assert count(calls, "new/", "new0") == 3
            assert count(calls, facts.expiring) == 0
            hand_on_the_lock(calls, facts)
        write(cluster, b"2")


# --- negative controls ---


def frames(segment: Path) -> list[int]:
    """Offsets of the frames of a log segment, in order, as docs/format.md describes them."""
    data = segment.read_bytes()
    found, offset = [], 512
    while (length := struct.unpack_from("<I", data, offset + 4)[0]) > 0:
        found.append(offset)
        offset += 16 + length
        offset += -offset % 16
    return found


def first_segment(member: Member) -> Path:
    return min((member.data_dir / "wal").glob("*.wal"))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_log_without_its_newest_entries_is_detected(folder: Path) -> None:
    cluster = three_members(folder)
    for member in cluster.members:
        segment = first_segment(member)
        end = frames(segment)[-LOST_FRAMES]
        with segment.open("r+b") as file:  # a shorter log that nothing is wrong with
            size = file.seek(0, 2)
            file.truncate(end)
            file.truncate(size)
    with cluster, pytest.raises(grpc.RpcError, match="required revision is a future revision"):
        complaints(cluster, read_facts())


def test_another_expectation_is_detected() -> None:
    found = read_facts().found
    for part, value in found.items():
        other = {**found, part: value + 1 if isinstance(value, int) else value[:-1]}
        assert [line.partition(":")[0] for line in differences(other, found)] == [part]
    assert differences(found, found) == []


@pytest.mark.timeout(60)
def test_a_damaged_directory_is_refused(folder: Path) -> None:
    member = three_members(folder).members[0]
    segment = first_segment(member)
    middle = frames(segment)[10]
    with segment.open("r+b") as file:
        file.seek(middle + 20)
        (byte,) = file.read(1)
        file.seek(middle + 20)
        file.write(bytes([byte ^ 1]))
    before = segment.read_bytes()
    member.start()
    assert member.process is not None
    try:
        assert member.process.wait(30) == CANNOT_START, member.tail()
    finally:
        member.kill()
    assert str(segment) in member.tail()
    assert segment.read_bytes() == before

"""One cluster of members that run the baseline's code and members that run the present code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import clusters
from bench.clusters import ROOT, Cluster, ClusterError, Member
from kvstore.devcluster.plan import free_ports
from kvstore.wire import rpc_pb2
from tests.compatibility.archived_cluster import PROGRAM
from tests.compatibility.baseline import check_code, restart
from tests.compatibility.calls import connected, first_index, metric, until

TIMERS = ("--heartbeat-interval=50", "--election-timeout=500")
SHORT_LOG = ("--snapshot-count=20", "--snapshot-catchup-entries=20")
"""A member that lacks some dozens of entries needs a snapshot."""

REFUSED_SECONDS = 5.0
"""More than a member needs to start and join: the control must find it apart for so long."""

TTL_S = 60
PREFIX = b"ledger/"


def cluster_of(folder: Path, codes: Sequence[Path], flags: Sequence[str] = ()) -> Cluster:
    """A new cluster whose members run these codes, one each; enter it to start them."""
    cluster = Cluster(
        label="mixed",
        program=PROGRAM,
        folder=folder,
        size=len(codes),
        flags=(*TIMERS, *flags),
    )
    cluster.prepare()
    taken = {port for member in cluster.members for port in (member.client_port, member.peer_port)}
    ports = [port for port in free_ports(3 * len(codes)) if port not in taken]
    for member, code, port in zip(cluster.members, codes, ports, strict=False):
        check_code(code, folder)
        member.source = code
        member.command.append(f"--listen-metrics-urls=http://127.0.0.1:{port}")
    return cluster


class Ledger:
    """What was written to a cluster, to be found on each of its members at any time."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.written: dict[bytes, bytes] = {}
        with connected(cluster.members[0]) as calls:
            self.lease = calls("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=TTL_S)).ID
            """Granted once and kept alive through every member."""

    def put(self, member: Member, count: int = 1) -> None:
        """New keys through one member, one after the other."""
        with connected(member) as calls:
            for _ in range(count):
                key = PREFIX + b"%05d" % len(self.written)
                value = b"through " + member.name.encode()
                calls("KV/Put", rpc_pb2.PutRequest(key=key, value=value, lease=self.lease))
                self.written[key] = value

    def go_on(self) -> None:
        """Write and keep the lease alive through each member; then each must hold all that was ever written.

        Followers forward both to the leader; the reads are linearizable.
        """
        self.cluster.wait_ready()
        for member in self.cluster.running():
            self.put(member)
            with connected(member) as calls:
                request = rpc_pb2.LeaseKeepAliveRequest(ID=self.lease)
                assert next(calls.stream("Lease/LeaseKeepAlive", request)).TTL == TTL_S
        assert len({self.hash_of(member) for member in self.cluster.running()}) == 1

    def hash_of(self, member: Member) -> tuple[int, int]:
        """(revision, hash of the history) of a member that holds all that was written."""
        with connected(member) as calls:
            everything = rpc_pb2.RangeRequest(key=PREFIX, range_end=PREFIX[:-1] + b"0")
            reply = calls("KV/Range", everything)
            assert {kv.key: kv.value for kv in reply.kvs} == self.written
            assert {kv.version for kv in reply.kvs} == {1}, "each was applied once"
            revision = reply.header.revision
            return revision, calls("Maintenance/HashKV", rpc_pb2.HashKVRequest(revision=revision)).hash


def lead(cluster: Cluster, member: Member) -> None:
    """Transfer the leadership to the member, unless it leads already."""
    leader = cluster.leader()
    if leader is not member:
        with connected(member) as calls:
            target = calls("Maintenance/Status", rpc_pb2.StatusRequest()).header.member_id
        with connected(leader) as calls:
            calls("Maintenance/MoveLeader", rpc_pb2.MoveLeaderRequest(targetID=target))
    until(f"{member.name} leads", lambda: cluster.leader() is member)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_members_are_upgraded_one_by_one(old_code: Path, tmp_path: Path) -> None:
    with cluster_of(tmp_path, [old_code] * 3) as cluster:
        ledger = Ledger(cluster)
        ledger.go_on()
        old_leader = cluster.leader()
        first, second = (member for member in cluster.members if member is not old_leader)
        restart(first, ROOT)
        ledger.go_on()
        assert cluster.leader() is old_leader, "a new follower has forwarded to an old leader"
        lead(cluster, first)
        ledger.go_on()
        assert cluster.leader() is first, "old followers have forwarded to a new leader"
        for member in (second, old_leader):
            restart(member, ROOT)
            ledger.go_on()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_member_goes_back_to_the_old_code(old_code: Path, tmp_path: Path) -> None:
    with cluster_of(tmp_path, [ROOT, old_code, old_code]) as cluster:  # they found the cluster together
        ledger = Ledger(cluster)
        back = cluster.members[0]
        lead(cluster, back)
        ledger.go_on()
        restart(back, old_code)
        ledger.go_on()
        lead(cluster, back)
        ledger.go_on()


def fall_behind(cluster: Cluster, ledger: Ledger, member: Member) -> None:
    """Kill the member, and start it again when the leader's log has lost the entries that it lacks."""
    leader = cluster.leader()
    with connected(member) as calls:
        newest = calls("Maintenance/Status", rpc_pb2.StatusRequest()).raftIndex
    member.kill()

    def compacted() -> bool:
        ledger.put(leader, count=10)
        return bool(first_index(leader) > newest + 1)

    until("the leader's log is compacted", compacted)
    member.start()
    received = "etcd_network_snapshot_receive_success_total"
    until(f"{member.name} receives a snapshot", lambda: metric_or_none(member, received) == 1)
    assert cluster.leader() is leader


def metric_or_none(member: Member, name: str) -> float | None:
    """None while the member does not serve its metrics yet."""
    try:
        return metric(member, name)
    except OSError:
        return None


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_snapshots_are_understood_both_ways(old_code: Path, tmp_path: Path) -> None:
    with cluster_of(tmp_path, [old_code, old_code, ROOT], flags=SHORT_LOG) as cluster:
        old, other_old, new = cluster.members
        ledger = Ledger(cluster)
        for leader, behind in ((old, new), (new, other_old)):
            lead(cluster, leader)
            fall_behind(cluster, ledger, behind)
            ledger.go_on()


def join(cluster: Cluster, code: Path) -> Member:
    """Add a learner that runs `code`, and promote it."""
    (first,) = cluster.members
    client, peer = free_ports(2)
    url = f"http://127.0.0.1:{peer}"
    flags = {
        "name": "joined",
        "data-dir": str(cluster.folder / "joined"),
        "initial-cluster": f"{first.name}=http://127.0.0.1:{first.peer_port},joined={url}",
        "initial-cluster-state": "existing",
        "initial-advertise-peer-urls": url,
        "listen-peer-urls": url,
        "listen-client-urls": f"http://127.0.0.1:{client}",
        "advertise-client-urls": f"http://127.0.0.1:{client}",
    }
    member = Member(
        name="joined",
        client_port=client,
        peer_port=peer,
        advertised_peer_port=peer,
        data_dir=cluster.folder / "joined",
        log=cluster.folder / "joined.log",
        source=code,
        command=[*PROGRAM, *(f"--{flag}={value}" for flag, value in flags.items()), *TIMERS],
    )
    with connected(first) as calls:
        added = calls("Cluster/MemberAdd", rpc_pb2.MemberAddRequest(peerURLs=[url], isLearner=True)).member
        cluster.members.append(member)
        member.start()
        promote = rpc_pb2.MemberPromoteRequest(ID=added.ID)
        until("the learner is promoted", lambda: calls("Cluster/MemberPromote", promote))
    cluster.wait_ready()
    with connected(member) as calls:  # a follower passes changes of the membership on to the leader
        calls("Cluster/MemberUpdate", rpc_pb2.MemberUpdateRequest(ID=added.ID, peerURLs=[url]))
    return member


def bootstrap_keys(member: Member) -> list[str]:
    """Names in the JSON at the beginning of a member's log: few starts need them, so they are read here."""
    text = min((member.data_dir / "wal").glob("*.wal")).read_bytes().decode("latin-1")
    value, _ = json.JSONDecoder().raw_decode(text, text.index('{"members"'))
    return sorted(value)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("joins", ["new", "old"])
def test_a_member_joins_a_cluster_of_the_other_code(old_code: Path, tmp_path: Path, joins: str) -> None:
    codes = {"new": ROOT, "old": old_code}
    running = codes.pop("old" if joins == "new" else "new")
    with cluster_of(tmp_path, [running]) as cluster:
        ledger = Ledger(cluster)
        ledger.go_on()
        joined = join(cluster, codes[joins])
        assert bootstrap_keys(joined) == ["found_voters", "members"]
        ledger.go_on()
        lead(cluster, joined)
        ledger.go_on()


def kvstore(code: Path, *words: str) -> None:
    """Run a command of that code. Raises ClusterError with what it printed."""
    check_code(code, code.parent)
    done = subprocess.run(
        [*PROGRAM[:-1], *words],
        env=clusters.environment(code),
        cwd=code.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ClusterError(f"{words}: {done.stderr}")


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("saves", ["new", "old"])
def test_a_backup_is_restored_by_the_other_code(old_code: Path, tmp_path: Path, saves: str) -> None:
    """One code saves it, the other makes a data directory of it, and the first one starts on that."""
    codes = {"new": ROOT, "old": old_code}
    saving = codes.pop(saves)
    (restoring,) = codes.values()
    file = tmp_path / "backup.db"
    with cluster_of(tmp_path / "saved", [saving]) as cluster:
        ledger = Ledger(cluster)
        ledger.go_on()
        kvstore(saving, f"--endpoints={cluster.endpoints[0]}", "snapshot", "save", str(file))
    cluster = cluster_of(tmp_path / "restored", [saving])
    (member,) = cluster.members
    wanted = ("--name", "--data-dir", "--initial-cluster=", "--initial-cluster-token", "--initial-advertise")
    flags = [flag for flag in member.command if flag.startswith(wanted)]
    kvstore(restoring, "snapshot", "restore", str(file), *flags)
    with cluster:
        ledger.cluster = cluster
        ledger.go_on()
        assert bootstrap_keys(member) == ["members", "recovered"]


# --- negative controls ---


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_member_that_speaks_another_format_is_detected(old_code: Path, tmp_path: Path) -> None:
    other = shutil.copytree(old_code, tmp_path / "other")
    module = other / "raft" / "transport" / "rules.py"
    text, changed = re.subn(r"(?m)^(\w+_FORMAT_VERSION) = 1$", r"\1 = 2", module.read_text())
    assert changed == 1
    module.write_text(text)
    with cluster_of(tmp_path / "cluster", [old_code] * 3) as cluster:
        ledger = Ledger(cluster)
        ledger.go_on()
        follower = next(member for member in cluster.members if member is not cluster.leader())
        restart(follower, other)
        with pytest.raises(ClusterError, match="no common leader"):
            cluster.wait_ready(REFUSED_SECONDS)
        assert follower.process is not None
        assert follower.process.poll() is None, follower.tail()
        assert "peer format" in follower.tail(50)
        restart(follower, old_code)
        ledger.go_on()

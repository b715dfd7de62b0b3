"""`python -m tests.compatibility.make_archive COMMIT`: data directories as that commit's code writes them.

A cluster of real members lives through everything that a data directory records, and is killed. The
directories go into the archive as they are then. The facts are what the same code finds when it starts
again on a copy of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sqlite3
import tarfile
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from bench import clusters
from bench.clusters import Cluster
from kvstore.wire import rpc_pb2, v3election_pb2, v3lock_pb2
from tests.compatibility import archived_cluster
from tests.compatibility.archived_cluster import Facts
from tests.compatibility.baseline import BASELINE
from tests.compatibility.calls import Calls, connected, first_index, metric, until
from tests.compatibility.observation import Observation, observe

FILL = 60
"""Entries before the third member joins: more than its leader's log keeps, so that it gets a snapshot."""
TAIL = 10
"""Entries just before the end: the backend is not brought up to date for each, but once a second."""
LASTING_TTL_S = 3600
EXPIRING_TTL_S = 3
LOCK, ELECTION, EXPIRING = b"locks/seat", b"elections/publisher", b"expiring"
ARCHIVE_BYTES_MAX = 200 << 10


def put(calls: Calls, key: bytes, value: bytes, lease: int = 0) -> int:
    revision: int = calls("KV/Put", rpc_pb2.PutRequest(key=key, value=value, lease=lease)).header.revision
    return revision


def grant(calls: Calls, ttl_s: int) -> int:
    lease: int = calls("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=ttl_s)).ID
    return lease


def change_members(cluster: Cluster, calls: Calls) -> None:
    """Give one member another peer URL, add and remove one that never starts, add and promote the third."""
    one, two, three = cluster.members
    ids = {member.name: member.ID for member in members_of(calls)}
    moved = [archived_cluster.peer_url(1, archived_cluster.MOVED_PORT)]
    calls("Cluster/MemberUpdate", rpc_pb2.MemberUpdateRequest(ID=ids[two.name], peerURLs=moved))
    unused = rpc_pb2.MemberAddRequest(peerURLs=[archived_cluster.peer_url(9)], isLearner=True)
    gone = change(calls, "Cluster/MemberAdd", unused).member.ID
    change(calls, "Cluster/MemberRemove", rpc_pb2.MemberRemoveRequest(ID=gone))
    joins = rpc_pb2.MemberAddRequest(peerURLs=[archived_cluster.peer_url(2)], isLearner=True)
    joined = change(calls, "Cluster/MemberAdd", joins).member.ID
    three.start()
    promote = rpc_pb2.MemberPromoteRequest(ID=joined)
    until("the learner is promoted", lambda: calls("Cluster/MemberPromote", promote))
    until("it has its name", lambda: "three" in [member.name for member in members_of(calls)])
    assert metric(three, "etcd_network_snapshot_receive_success_total") == 1, (
        "three joined without a snapshot"
    )
    assert first_index(one) > 1, "the log has no snapshot mark"


def change(calls: Calls, method: str, request: Any) -> Any:
    """A change of the membership, asked for again until the members have been connected for long enough."""
    return until(method, lambda: calls(method, request))


def members_of(calls: Calls) -> Any:
    return calls("Cluster/MemberList", rpc_pb2.MemberListRequest()).members


def write_history(calls: Calls) -> None:
    """Revisions, tombstones, a transaction, bytes that need escapes, a compaction, and more of the same."""
    for value in (b"first", b"second", b"third"):
        put(calls, b"history/one", value)
    put(calls, b"bytes/\x00\xff\x00", b"\x00\xff\x7f")
    put(calls, b"history/deleted", b"gone soon")
    put(calls, b"history/empty", b"")
    calls("KV/DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"history/deleted"))
    put(calls, b"history/deleted", b"again")
    compacted = put(calls, b"history/one", b"fourth")
    operations = [
        rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"txn/%d" % number, value=b"one revision"))
        for number in range(3)
    ]
    calls("KV/Txn", rpc_pb2.TxnRequest(success=operations))
    calls("KV/Compact", rpc_pb2.CompactionRequest(revision=compacted, physical=True))
    calls("KV/DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"txn/1", range_end=b"txn/2"))
    put(calls, b"history/one", b"fifth")


def write_leases(calls: Calls) -> grpc.Future[Any]:
    """Leases with two keys, with none and with a key that left; an election, a lock and who waits for it.

    Returns the call that waits, which is to go on until the members are killed.
    """
    several = grant(calls, LASTING_TTL_S)
    grant(calls, 2 * LASTING_TTL_S)
    put(calls, b"leased/one", b"1", several)
    put(calls, b"leased/two", b"2", several)
    put(calls, b"leased/detached", b"3", several)
    put(calls, b"leased/detached", b"4")
    elected = grant(calls, LASTING_TTL_S)
    campaign = v3election_pb2.CampaignRequest(name=ELECTION, lease=elected, value=b"publisher 1")
    calls("Election/Campaign", campaign)
    calls("Lock/Lock", v3lock_pb2.LockRequest(name=LOCK, lease=grant(calls, LASTING_TTL_S)))
    waiting = v3lock_pb2.LockRequest(name=LOCK, lease=grant(calls, LASTING_TTL_S))
    waits = calls.begin("Lock/Lock", waiting, seconds=600.0)
    queue = rpc_pb2.RangeRequest(key=LOCK + b"/", range_end=LOCK + b"0")
    until("two are in the queue", lambda: calls("KV/Range", queue).count == 2)
    return waits


def commits(cluster: Cluster) -> list[float]:
    """How often each member's backend has committed."""
    name = "etcd_disk_backend_commit_duration_seconds_count"
    return [metric(member, name) for member in cluster.members]


def reached(cluster: Cluster, wanted: list[float]) -> bool:
    return all(count >= least for count, least in zip(commits(cluster), wanted, strict=True))


def until_checkpointed(cluster: Cluster, calls: Calls) -> int:
    """Until every member's backend holds what is applied now; that index.

    A commit in progress may have begun before: so it takes two, each with something to commit.
    """
    index: int = calls("Maintenance/Status", rpc_pb2.StatusRequest()).raftAppliedIndex
    for number in range(2):
        wanted = [count + 1 for count in commits(cluster)]
        put(calls, b"checkpointed/%d" % number, b"")
        until("all commit", partial(reached, cluster, wanted))
    return index


def live(cluster: Cluster) -> tuple[int, int, int]:
    """The whole story up to the kill: the newest revision, the index that all backends must have reached,
    and the leader's applied index."""
    one, two, _ = cluster.members
    one.start()
    two.start()
    cluster.wait_ready()
    with connected(one) as calls:
        for number in range(FILL):
            put(calls, b"fill/%02d" % (number % 7), b"%d" % number)
        until("the log is compacted", lambda: first_index(one) > FILL // 2 and first_index(two) > FILL // 2)
        change_members(cluster, calls)
        write_history(calls)
        waits = write_leases(calls)
        durable = until_checkpointed(cluster, calls)
        expiring = grant(calls, EXPIRING_TTL_S)
        put(calls, EXPIRING, b"for a moment", expiring)
        for number in range(TAIL):
            revision = put(calls, b"tail/%d" % number, b"only in the log")
        applied = calls("Maintenance/Status", rpc_pb2.StatusRequest()).raftAppliedIndex
        cluster.kill()
        assert not waits.done() or waits.exception() is not None, "the lock was granted twice"
    return revision, durable, applied


def checkpoint(directory: Path) -> int:
    """The log index of the backend in a copy of a data directory."""
    (path,) = directory.glob("state*.db")
    connection = sqlite3.connect(path)
    try:
        (index,) = connection.execute("SELECT log_index FROM mark").fetchone()
    finally:
        connection.close()
    return int(index)


def look(folder: Path, code: Path, revision: int) -> Observation:
    """What the same code finds when it starts on these directories. All members must find the same."""
    with archived_cluster.three_members(folder, code) as cluster:
        observations = []
        for member in cluster.members:
            with connected(member) as calls:
                observations.append(observe(calls, revision, ELECTION))
    assert all(one == observations[0] for one in observations), "the members differ"
    return observations[0]


def pack(folder: Path, names: list[str]) -> None:
    """The directories as they are, in an archive that does not name the user."""

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    archived_cluster.DATA.mkdir(exist_ok=True)
    with tarfile.open(archived_cluster.ARCHIVE, "w:xz", preset=9) as archive:
        for name in names:
            archive.add(folder / name, name, filter=anonymous)
    size = archived_cluster.ARCHIVE.stat().st_size
    assert size <= ARCHIVE_BYTES_MAX, f"{size} bytes are too many to check in"


def make(commit: str, scratch: Path) -> Facts:
    """Run the story with the code of `commit`, and write the archive. Raises clusters.ClusterError."""
    code = clusters.extract(commit, scratch)
    folder = scratch / "cluster"
    folder.mkdir()
    with archived_cluster.addresses():
        cluster = archived_cluster.three_members(folder, code)
        try:
            revision, durable, applied = live(cluster)
        finally:
            cluster.kill()
        names = [member.name for member in cluster.members]
        pack(folder, names)
        kept = [
            archived_cluster.KEPT.fullmatch(path.name) for name in names for path in (folder / name).iterdir()
        ]
        assert not all(kept), "no member was killed beside a copy of the snapshot that it had sent"
        copies = shutil.copytree(folder, scratch / "copies")
        checkpoints = {name: checkpoint(copies / name) for name in names}
        assert min(checkpoints.values()) >= durable, (
            f"{checkpoints}: a backend lacks the story up to {durable}"
        )
        assert max(checkpoints.values()) <= applied - TAIL, f"{checkpoints}: not the log alone holds the tail"
        found = look(folder, code, revision)  # these very directories, not the copies that SQLite has opened
    return Facts(
        commit=commit,
        revision=revision,
        applied=applied,
        checkpoints=checkpoints,
        lock=LOCK.decode(),
        election=ELECTION.decode(),
        expiring=EXPIRING.decode(),
        found=found,
    )


def check(facts: Facts) -> None:
    """The story's own knowledge of what must be found: what the old code says of itself is not enough."""
    newest = {key: value for key, value, *_ in facts.found["keys"]}
    for number in range(TAIL):
        assert newest[f"tail/{number}"] == "only in the log", number
    assert newest["history/one"] == "fifth"
    assert "txn/1" not in newest
    assert {"txn/0", "txn/2", EXPIRING.decode()} <= newest.keys()
    assert [member["name"] for member in facts.found["members"]] == ["one", "three", "two"]
    assert not any(member["is_learner"] for member in facts.found["members"])
    assert [len(keys) for _, _, keys in sorted(facts.found["leases"], key=str)].count(2) == 1
    assert len(facts.found["leases"]) == 5
    assert facts.found["compaction_is_told"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.compatibility.make_archive", description=__doc__)
    parser.add_argument("commit", nargs="?", default=BASELINE)
    commit = parser.parse_args().commit
    with tempfile.TemporaryDirectory(prefix="archive-") as name:
        facts = make(clusters.resolve(commit), Path(name))
    check(facts)
    archived_cluster.FACTS.write_text(json.dumps(dataclasses.asdict(facts), indent=1) + "\n")
    print(f"{archived_cluster.ARCHIVE}: {archived_cluster.ARCHIVE.stat().st_size} bytes")


if __name__ == "__main__":
    main()

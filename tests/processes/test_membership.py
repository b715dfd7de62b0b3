"""Real processes, a real etcdctl, and writes that go on: grow, shrink, lose a machine and replace it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import clusters
from bench.clusters import Cluster, ClusterError, Member
from bench.writer import Writer
from kvstore.devcluster.plan import free_ports

WRITES_PER_S = 100
"""Enough that each step meets some in flight."""

GO_ON = 50
"""Writes that must be acknowledged after each step."""

PATIENCE_S = 60.0

TIMERS = ("--heartbeat-interval=50", "--election-timeout=500")


def etcdctl(cluster: Cluster, *args: str, but: str = "") -> str:
    """Output of etcdctl, or of our own command where there is none; refusals with `but` heal with time."""
    program = clusters.find_etcd("etcdctl")
    command = [str(program)] if program else [sys.executable, "-m", "kvstore"]
    # A learner would refuse: the newest member may still be one.
    endpoints = ",".join(member.endpoint for member in cluster.running()[: cluster.size])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}
    end = time.monotonic() + PATIENCE_S
    while True:
        done = subprocess.run(
            [*command, f"--endpoints={endpoints}", "--command-timeout=15s", *args],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            cwd=clusters.ROOT,
        )
        if done.returncode == 0:
            return done.stdout
        refused = re.search(r"^Error: (.*)$", done.stderr, re.MULTILINE)
        assert refused, done.stderr
        assert but, refused[1]
        assert but in refused[1], refused[1]
        assert time.monotonic() < end, refused[1]
        clusters.pause(0.2)


def add(cluster: Cluster, name: str, *, learner: bool) -> Member:
    """Add a member, and start it with what etcdctl printed for it, word by word."""
    client, peer = free_ports(2)
    how = ["--learner"] if learner else []
    url = f"http://127.0.0.1:{peer}"
    printed = etcdctl(cluster, "member", "add", name, f"--peer-urls={url}", *how, but="unhealthy cluster")
    flags = {
        found[1].lower().replace("_", "-"): found[2] for found in re.finditer(r'ETCD_(\w+)="(.*)"', printed)
    }
    assert set(flags) == {"name", "initial-cluster", "initial-advertise-peer-urls", "initial-cluster-state"}
    flags |= {
        "data-dir": str(cluster.folder / name),
        "listen-peer-urls": url,
        "listen-client-urls": f"http://127.0.0.1:{client}",
        "advertise-client-urls": f"http://127.0.0.1:{client}",
    }
    member = Member(
        name=name,
        client_port=client,
        peer_port=peer,
        advertised_peer_port=peer,
        data_dir=cluster.folder / name,
        log=cluster.folder / f"{name}.log",
        source=cluster.source,
        command=[*cluster.program, *(f"--{flag}={value}" for flag, value in flags.items()), *TIMERS],
    )
    cluster.members.append(member)
    member.start()
    return member


def id_of(cluster: Cluster, member: Member) -> str:
    for line in etcdctl(cluster, "member", "list").splitlines():
        member_id, _, name, _ = line.split(", ", 3)
        if name == member.name:
            return member_id
    raise ClusterError(f"{member.name} is not listed")


def until_started(cluster: Cluster, member: Member) -> str:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return id_of(cluster, member)
        except ClusterError:
            assert member.process is not None
            assert member.process.poll() is None, member.tail()
            assert time.monotonic() < end, member.tail()
            clusters.pause(0.2)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_cluster_grows_shrinks_and_replaces_a_dead_member_under_load(tmp_path: Path) -> None:
    with clusters.ours(tmp_path, flags=TIMERS) as cluster:
        with Writer(cluster.endpoints, tmp_path, rate=WRITES_PER_S) as writer:
            writer.wait_acknowledged(0, GO_ON, PATIENCE_S)

            def goes_on() -> None:
                writer.wait_acknowledged(time.monotonic(), GO_ON, PATIENCE_S)

            for name in ("d", "e"):
                new = add(cluster, name, learner=True)
                new_id = until_started(cluster, new)
                promoted = etcdctl(cluster, "member", "promote", new_id, but="in sync with leader")
                assert f"{new_id} promoted in cluster" in promoted
                goes_on()
            for _ in range(2):
                leader = cluster.leader()
                etcdctl(cluster, "member", "remove", id_of(cluster, leader), but="unhealthy cluster")
                assert leader.process is not None
                assert leader.process.wait(PATIENCE_S) == 0, leader.tail()
                assert b"Traceback" not in leader.log.read_bytes()
                leader.process = None
                goes_on()
            assert len(cluster.running()) == 3

            leads = cluster.leader()
            others = [member for member in cluster.running() if member is not leads]
            # The writer has the bootstrap members' endpoints only: one of them must stay alive.
            dead = max(others, key=lambda member: member.name in ("d", "e"))
            dead_id = id_of(cluster, dead)
            dead.kill()
            goes_on()
            etcdctl(cluster, "member", "remove", dead_id, but="unhealthy cluster")
            until_started(cluster, add(cluster, "f", learner=False))
            goes_on()
            writer.finish()
        living = cluster.running()
        assert [line.split(", ")[1] for line in etcdctl(cluster, "member", "list").splitlines()] == [
            "started"
        ] * 3
        for member in living:
            assert writer.verify(member.endpoint) == []
        for member in living:
            member.kill()
        for member in living:
            member.start()  # with the commands they were first started with
        cluster.wait_ready()
        for member in living:
            assert writer.verify(member.endpoint) == []
        assert sum(write.is_acknowledged for write in writer.writes) > 6 * GO_ON

"""etcd's own command line works through every member, followers included."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.clusters import Cluster

MEMBERS = (0, 1, 2)
Run = Callable[..., str]


@pytest.fixture(params=MEMBERS)
def member(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """Keys of this test alone."""
    return request.node.name + "/"


@pytest.fixture
def ctl(cluster: Cluster, etcdctl: Path, member: int) -> Run:
    return runner(etcdctl, cluster.endpoints[member])


def runner(etcdctl: Path, endpoints: str) -> Run:
    def run(*words: str, stdin: str = "", code: int = 0) -> str:
        command = [str(etcdctl), f"--endpoints={endpoints}", "--command-timeout=10s", *words]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == code, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    return run


def pairs(reply: str) -> list[tuple[str, str]]:
    kvs: list[dict[str, Any]] = json.loads(reply).get("kvs", [])
    return [
        (base64.b64decode(kv["key"]).decode(), base64.b64decode(kv.get("value", "")).decode()) for kv in kvs
    ]


def test_endpoint_status_of_all(cluster: Cluster, etcdctl: Path) -> None:
    ctl = runner(etcdctl, ",".join(cluster.endpoints))
    table = ctl("endpoint", "status", "-w", "table")
    for endpoint in cluster.endpoints:
        assert endpoint in table
    statuses = [one["Status"] for one in json.loads(ctl("endpoint", "status", "-w", "json"))]
    assert len({status["header"]["member_id"] for status in statuses}) == 3
    assert len({status["header"]["cluster_id"] for status in statuses}) == 1
    assert len({status["leader"] for status in statuses}) == 1
    assert sum(status["leader"] == status["header"]["member_id"] for status in statuses) == 1
    assert all(status["version"].startswith("3.5.") for status in statuses)
    assert all(status["raftAppliedIndex"] > 0 and status["dbSize"] > 0 for status in statuses)


def test_endpoint_health_of_all(cluster: Cluster, etcdctl: Path) -> None:
    said = runner(etcdctl, ",".join(cluster.endpoints))("endpoint", "health", "-w", "json")
    assert [one["health"] for one in json.loads(said)] == [True, True, True]


def test_member_list(ctl: Run, cluster: Cluster) -> None:
    members = json.loads(ctl("member", "list", "-w", "json"))["members"]
    assert sorted(one["name"] for one in members) == sorted(one.name for one in cluster.members)
    assert {url for one in members for url in one["clientURLs"]} == {
        f"http://{it}" for it in cluster.endpoints
    }
    assert "started" in ctl("member", "list")


def test_put_get_del(ctl: Run, prefix: str) -> None:
    assert ctl("put", prefix + "a", "1") == "OK\n"
    assert ctl("get", prefix + "a") == f"{prefix}a\n1\n"
    assert ctl("get", prefix + "a", "--print-value-only") == "1\n"
    assert ctl("put", prefix + "a", "2", "--prev-kv") == f"OK\n{prefix}a\n1\n"
    assert ctl("del", prefix + "a", "--prev-kv") == f"1\n{prefix}a\n2\n"
    assert ctl("get", prefix + "a") == ""
    assert ctl("del", prefix + "a") == "0\n"


def test_get_by_prefix_order_and_limit(ctl: Run, prefix: str) -> None:
    for name, value in (("c", "1"), ("a", "3"), ("b", "2")):
        ctl("put", prefix + name, value)
    assert ctl("get", "--prefix", prefix, "--print-value-only") == "3\n2\n1\n"
    assert ctl("get", "--prefix", prefix, "--keys-only").split() == [prefix + name for name in "abc"]
    descending = ctl("get", "--prefix", prefix, "--order=DESCEND", "--sort-by=VALUE", "-w", "json")
    assert [value for _, value in pairs(descending)] == ["3", "2", "1"]
    limited = json.loads(ctl("get", "--prefix", prefix, "--limit=2", "-w", "json"))
    assert (len(limited["kvs"]), limited["count"], limited["more"]) == (2, 3, True)
    assert ctl("get", prefix + "a", prefix + "c", "--print-value-only") == "3\n2\n"
    assert ctl("get", "--prefix", prefix, "--count-only", "-w", "fields").count('"Count" : 3') == 1
    assert ctl("del", "--prefix", prefix) == "3\n"


def test_reads_the_past_and_serializable(ctl: Run, prefix: str) -> None:
    ctl("put", prefix + "a", "old")
    revision = json.loads(ctl("get", prefix + "a", "-w", "json"))["kvs"][0]["mod_revision"]
    ctl("put", prefix + "a", "new")
    assert ctl("get", prefix + "a", f"--rev={revision}", "--print-value-only") == "old\n"
    assert ctl("get", prefix + "a", "--consistency=s", "--print-value-only") in ("old\n", "new\n")
    assert "future revision" in ctl("get", prefix + "a", f"--rev={revision + 10**6}", code=1)


def test_interactive_txn(ctl: Run, prefix: str) -> None:
    ctl("put", prefix + "a", "1")
    script = (
        f'value("{prefix}a") = "1"\nversion("{prefix}a") > "0"\n\n'
        f"put {prefix}b won\nget {prefix}a\n\n"
        f"put {prefix}b lost\n\n"
    )
    assert "SUCCESS" in ctl("txn", "-i", stdin=script)
    assert ctl("get", prefix + "b", "--print-value-only") == "won\n"
    ctl("put", prefix + "a", "2")
    assert "FAILURE" in ctl("txn", "--interactive", stdin=script)
    assert ctl("get", prefix + "b", "--print-value-only") == "lost\n"


def test_refusals_have_etcds_words(ctl: Run, prefix: str) -> None:
    assert "etcdserver: key is not provided" in ctl("put", "", "x", code=1)
    assert "etcdserver: requested lease not found" in ctl("put", prefix + "a", "x", "--lease=7b", code=1)
    twice = f"\nput {prefix}a 1\nput {prefix}a 2\n\n\n"
    assert "etcdserver: duplicate key given in txn request" in ctl("txn", "-i", stdin=twice, code=1)


def test_what_one_member_writes_all_read(cluster: Cluster, etcdctl: Path, member: int, prefix: str) -> None:
    runner(etcdctl, cluster.endpoints[member])("put", prefix + "a", str(member))
    for endpoint in cluster.endpoints:
        assert runner(etcdctl, endpoint)("get", prefix + "a", "--print-value-only") == f"{member}\n"

"""aetcd and etcd3, as published, work through every member; each runs in an environment of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.clusters import Cluster

SCRIPTS = Path(__file__).parent / "scripts"


@pytest.mark.parametrize("member", [0, 1, 2])
def test_aetcd(cluster: Cluster, aetcd_python: Path, member: int) -> None:
    run(aetcd_python, "aetcd_calls.py", cluster, member)


@pytest.mark.parametrize("member", [0, 1, 2])
def test_etcd3(cluster: Cluster, etcd3_python: Path, member: int) -> None:
    run(etcd3_python, "etcd3_calls.py", cluster, member)


def run(python: Path, script: str, cluster: Cluster, member: int) -> None:
    """The script asserts; it prints one line per group of calls that passed."""
    port = cluster.members[member].client_port
    command = [str(python), str(SCRIPTS / script), str(port), f"{script}-{member}/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.splitlines()[-1] == "all passed"

"""Programs of etcd that are built here: its load generator, and a server newer than the installed one.

Go builds them from etcd's own modules into `build/peers/etcd-<version>`, once.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from bench.clusters import ROOT, ClusterError

PEERS = ROOT / "build" / "peers"
BENCHMARK_VERSION = "v3.5.21"
"""Of the load generator."""
SERVER_VERSION_NEWEST = "v3.7.3"
"""Of the newest server that is measured; the installed etcd is of the series 3.5."""
BUILD_SECONDS_MAX = 1_200.0
"""A cold build downloads and compiles about two hundred modules: minutes on two cores."""


def benchmark() -> Path:
    """etcd's load generator. Raises ClusterError when it is missing and cannot be built."""
    return _built("benchmark", BENCHMARK_VERSION, "go.etcd.io/etcd/v3/tools/benchmark")


def newest_etcd() -> Path:
    """The newest etcd server. Raises ClusterError when it is missing and cannot be built."""
    return _built("etcd", SERVER_VERSION_NEWEST, "go.etcd.io/etcd/server/v3")


def _built(program: str, version: str, package: str) -> Path:
    path = PEERS / f"etcd-{version}" / program
    if path.exists():
        return path
    go = shutil.which("go")
    if go is None:
        raise ClusterError(f"{program} {version} is built with Go, which is not on PATH")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-") as folder:
        for words in (
            ["mod", "init", "peers"],
            ["get", f"{package}@{version}"],
            ["build", "-o", str(path), package],
        ):
            done = subprocess.run(
                [go, *words],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=BUILD_SECONDS_MAX,
                check=False,
            )
            if done.returncode != 0:
                raise ClusterError(f"go {words[0]} of {program} {version}: {done.stderr.strip()}")
    return path

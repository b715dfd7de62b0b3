"""One three-node cluster for all third-party clients; the same calls run against a real etcd as control."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import clusters


@pytest.fixture(scope="session", params=["ours", "ours-grpcio", "etcd"])
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[clusters.Cluster]:
    """Three members, on each gRPC stack; with `etcd` the calls themselves are judged, so that a failure has
    one cause."""
    if request.param == "etcd" and clusters.find_etcd() is None:
        pytest.skip(clusters.NO_ETCD)
    folder = tmp_path_factory.mktemp(f"conformance-{request.param}")
    if request.param == "etcd":
        made = clusters.etcd(folder)
    else:
        stack = "grpcio" if request.param == "ours-grpcio" else "ngh2"
        made = clusters.ours(folder, flags=[f"--grpc-stack={stack}"])
    with made as running:
        yield running


@pytest.fixture(scope="session")
def etcdctl() -> Path:
    found = clusters.find_etcd("etcdctl")
    if found is None:
        pytest.skip(clusters.NO_ETCD)
    return found

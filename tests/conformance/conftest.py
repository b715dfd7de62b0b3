"""One three-node cluster for all third-party clients; the same calls run against a real etcd as control."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import clusters


@pytest.fixture(scope="session", params=["ours", "etcd"])
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[clusters.Cluster]:
    """Three members; with `etcd` the calls themselves are judged, so that a failure has one cause."""
    if request.param == "etcd" and clusters.find_etcd() is None:
        pytest.skip(clusters.NO_ETCD)
    make = clusters.ours if request.param == "ours" else clusters.etcd
    with make(tmp_path_factory.mktemp(f"conformance-{request.param}")) as running:
        yield running


@pytest.fixture(scope="session")
def etcdctl() -> Path:
    found = clusters.find_etcd("etcdctl")
    if found is None:
        pytest.skip(clusters.NO_ETCD)
    return found

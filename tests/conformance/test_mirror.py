"""A mirror from this store to etcd and back, by etcdctl and by our command: the same keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import clusters, mirror

KEYS = 1500  # more than a page; `make mirror` copies 10,000


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[clusters.Cluster, clusters.Cluster]]:
    if clusters.find_etcd() is None:
        pytest.skip(clusters.NO_ETCD)
    folder: Path = tmp_path_factory.mktemp("mirror")
    with clusters.ours(folder / "ours") as ours, clusters.etcd(folder / "etcd", size=1) as etcd:
        yield ours, etcd


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("tool", mirror.TOOLS)
def test_there_and_back(pair: tuple[clusters.Cluster, clusters.Cluster], tool: str) -> None:
    ends = [mirror.Endpoint(cluster.endpoints[-1]) for cluster in pair]
    try:
        for end in ends:
            end.empty()
        copies = mirror.run(*ends, keys=KEYS, seed=7, tool=mirror.command_of(tool))
        assert [copy.way for copy in copies] == ["here to etcd", "etcd to here"]
        assert min(copy.keys for copy in copies) > 1000
    finally:
        for end in ends:
            end.close()

"""Short forms of `make torture` and `make bench-failover`: real processes, killed for real."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench import clusters, failover, torture
from bench.writer import Write, Writer

CRASHES = 5
KILLS = 3
RESETS = 20


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_all_killed_at_once_lose_nothing(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    with clusters.ours(tmp_path) as cluster:
        result = torture.torture(cluster, tmp_path, CRASHES, random.Random(seed))
    assert result["complaints"] == []
    assert result["rounds"] == CRASHES
    assert result["acknowledged"] > CRASHES * torture.FIRST_WRITES


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_leader_killed_again_and_again(tmp_path: Path) -> None:
    with clusters.ours(tmp_path / "cluster") as cluster:
        result = failover.kill_leaders(cluster, tmp_path, KILLS)
    assert result["complaints"] == []
    assert result["gap_worst_ms"] <= failover.GAP_WORST_MS_MAX, result


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_reset_connection_changes_no_term(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    result = failover.reset_links(clusters.ours, tmp_path / "cluster", RESETS, random.Random(1))
    assert result["resets"] == RESETS
    assert len(result["terms"]) == 1, result
    assert result["same_leader"]
    assert result["complaints"] == []


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_lost_and_a_doubled_write_are_seen(tmp_path: Path) -> None:
    """The judge of the tests above: one acknowledgement too many, one key written twice."""
    with clusters.ours(tmp_path / "cluster", size=1) as cluster:
        with Writer(cluster.endpoints, tmp_path, rate=200) as writer:
            writer.wait_acknowledged(0, 5, 30)
            writer.finish()
        assert writer.verify(cluster.endpoints[0]) == []
        last = max(write.number for write in writer.writes)
        writer.writes.append(Write(0.0, 0.0, last + 1, "ok"))
        assert len(writer.verify(cluster.endpoints[0])) == 1
        writer.writes.pop()
        with Writer(cluster.endpoints, tmp_path, rate=200) as second:  # the same keys again
            second.wait_acknowledged(0, 5, 30)
            second.finish()
        assert any("written 2 times" in line for line in writer.verify(cluster.endpoints[0]))


def test_the_longest_gap() -> None:
    moments = [0.1 * step for step in range(10)] + [2.0, 2.1, 9.0]
    assert failover.longest_gap(moments, kill=0.85, end=3.0) == pytest.approx(1.1)
    assert failover.longest_gap(moments, kill=2.05, end=9.5) == pytest.approx(6.9)
    assert failover.longest_gap([], kill=1.0, end=2.0) == float("inf")

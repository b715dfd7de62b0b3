"""A short form of `make bench-catchup`: a member behind the compacted log receives a snapshot."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import catchup, clusters

WRITES = 3000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_member_down_for_long_catches_up_by_snapshot_under_load(tmp_path: Path) -> None:
    with clusters.ours(tmp_path / "cluster", flags=catchup.FLAGS) as cluster:
        result = catchup.catch_up(cluster, tmp_path, rounds=1, writes=WRITES)
        assert result["wrong"] == []
        (only,) = result["rounds"]
        assert only["snapshots_installed"] == 1, "by a snapshot, not by the log"
        assert only["during"]["writes"] > 0, "writes went on meanwhile"
        # The same files serve the next start.
        member = max(cluster.members, key=catchup.installations)
        assert member.stop() == 0
        assert [path.name[:6] for path in member.data_dir.glob("*.db")] == ["state-"]
        member.start()
        catchup.wait_caught_up(cluster, member)
        assert len(catchup.hashes(cluster)) == 1
        assert catchup.installations(member) == 1, "not a second time"

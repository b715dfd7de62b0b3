"""`make bench AGAINST=<commit>`: the other cluster runs that commit's code, and a slower row is a failure."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import clusters, compare
from kvstore.version import ETCD_VERSION

OTHER_VERSION = "3.5.99"
IDENTITY = {
    f"GIT_{role}_{field}": "bench@example.org"
    for role in ("AUTHOR", "COMMITTER")
    for field in ("NAME", "EMAIL")
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """This code with another version, committed; the version in the checkout is changed once more."""
    folder = tmp_path / "repository"
    for package in ("raft", "kvstore"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(clusters.ROOT / package, folder / package, ignore=ignored)
    version = folder / "kvstore" / "version.py"
    text = version.read_text()
    assert text.count(ETCD_VERSION) == 1
    version.write_text(text.replace(ETCD_VERSION, OTHER_VERSION))
    settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "another version"]):
        subprocess.run(["git", *words], cwd=folder, env={**os.environ, **IDENTITY, **settings}, check=True)
    version.write_text(text.replace(ETCD_VERSION, "3.5.98"))
    return folder


def test_a_member_runs_the_code_of_the_commit(repository: Path, tmp_path: Path) -> None:
    commit = clusters.resolve("HEAD", repository)
    source = clusters.extract(commit, tmp_path, repository)
    with clusters.ours(tmp_path / "theirs", size=1, source=source) as cluster:
        status = cluster.status(cluster.members[0])
        assert status is not None
        assert status.version == OTHER_VERSION != ETCD_VERSION
        cluster.check_source()


def test_an_installed_copy_is_not_taken_for_the_commit(tmp_path: Path) -> None:
    """The negative control: a folder without the code, so that the copy of the environment is imported."""
    cluster = clusters.ours(tmp_path / "theirs", source=tmp_path / "empty")
    cluster.folder.mkdir()
    with pytest.raises(clusters.ClusterError, match="members would import"):
        cluster.check_source()


def test_an_unknown_commit_is_an_error(repository: Path) -> None:
    with pytest.raises(clusters.ClusterError, match="git rev-parse"):
        clusters.resolve("no-such-branch", repository)


def run(ops_per_s: float) -> dict[str, Any]:
    """What a closed loop of one call at this speed measures."""
    used = {"leader": 1e6 / ops_per_s, "client": 7.0, "follower": 0.5e6 / ops_per_s}
    speed = {"ops_per_s": ops_per_s, "p50_ms": 1e3 / ops_per_s, "p99_ms": 3e3 / ops_per_s}
    return {**speed, "cpu_us_per_op": used, "errors": 0, "steal": 0.0}


def row(*speeds: float) -> dict[str, Any]:
    return compare.row("put", 16, [run(one) for one in speeds], [run(1000.0) for _ in speeds])


def test_the_median_of_the_rounds_decides() -> None:
    slow, equal, limit = row(2000, 940, 500), row(500, 1000, 960), row(950, 950, 950)
    assert compare.slower([equal, limit]) == []
    assert compare.slower([equal, slow]) == ["put at 16"]
    assert (slow["ratio"], slow["ratio_p50"], slow["ratio_cpu"]) == (0.94, 1.064, 1.064)
    assert "ours/theirs: p50 1.064, CPU 1.064" in compare.show(slow, "theirs")


@pytest.mark.parametrize(("speed", "code", "below"), [(1000.0, 0, []), (900.0, 1, ["put at 16"])])
def test_the_exit_code_and_the_file_say_so(
    speed: float, code: int, below: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "resolve", lambda commit: commit)
    monkeypatch.setattr(compare, "bench", lambda options, folder: [row(speed)])
    out = tmp_path / "against.json"
    monkeypatch.setattr(sys, "argv", ["bench", "--against", "main", "--out", str(out)])
    assert compare.main() == code
    assert [one["ratio"] for one in json.loads(out.read_text())] == [speed / 1000]
    about = json.loads(out.with_suffix(".about.json").read_text())
    assert (about["against"], about["below"], about["ratio_min"]) == ("main", below, compare.RATIO_MIN)

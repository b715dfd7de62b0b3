"""Short whole runs on real processes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from kvstore.verify.run.run_execution import execute
from kvstore.verify.run.run_settings import Settings

SECONDS = 8.0


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_run_with_faults_is_valid_and_leaves_its_directory(tmp_path: Path) -> None:
    settings = Settings(
        workload="register",
        nemeses=("kill", "partition-leader"),
        directory=tmp_path,
        seed=7,
        seconds=SECONDS,
        rate=200,
        slots=8,
    )
    result = asyncio.run(execute(settings))
    print(json.dumps(json.loads((tmp_path / "results.json").read_text()), indent=1))
    assert result.verdict in ("valid", "inconclusive"), result.reasons
    assert result.verdict == "valid" or "time" in result.reasons[0], result.reasons
    assert result.counts["ok"] > 50
    assert {check.name for check in result.checks} == {"revision witness", "search", "replicas agree"}
    left = {path.name for path in tmp_path.iterdir()}
    assert {
        "config.json",
        "schedule.json",
        "history.edn",
        "history.jsonl",
        "results.json",
        "junit.xml",
        "timeline.html",
        "cluster",
    } <= left


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_members_with_a_mutant_are_found_out(tmp_path: Path) -> None:
    """The control of all other runs: a member that grants locks to expired leases."""
    server = Path(__file__).parent / "mutants" / "server.py"
    settings = Settings(
        workload="lock-fenced",
        nemeses=(),
        directory=tmp_path,
        seed=11,
        seconds=SECONDS,
        rate=200,
        slots=8,
        program=(str(server), "dead-lease", "server"),
    )
    result = asyncio.run(execute(settings))
    assert result.verdict == "invalid", result.reasons
    assert any("one token twice" in line or "revoked" in line for line in result.reasons), result.reasons

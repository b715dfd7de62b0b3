"""The simulated cluster of cores: some seeds on every run, and the simulator itself put to the test."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from raft.core.log import Log
from raft.sim import PROBES, Fault, Schedule, as_test, generate, quiet, run, shrink

ROOT = Path(__file__).resolve().parents[2]
SEEDS = range(12)
"""Enough for each kind of fault to be drawn several times; some five seconds."""

RECORDED = {
    238496568323: "a crash armed for a sync came after the cluster was healed, and the member stayed down",
    238496568327: "the same, with other members in the healed majority",
    238496569161: "a member campaigned alone in an old configuration, its term above that of the others",
    1096234004464: "a member that had been removed learned the leader's term and was counted in the majority",
    109688487061: "a commit index survived a crash without its entry, and another entry had that index",
    109688488233: "the same",
    109688488762: "the same",
    109688487507: "a snapshot had replaced a leader's log since it led before",
}
"""Seeds of campaigns that once failed, with the cause; played in full length."""


def test_seeds_keep_every_guarantee():
    totals = {"ok": 0, "faults": 0}
    reached = dict.fromkeys(PROBES, 0)
    for seed in SEEDS:
        report = run(generate(seed, seconds=30))
        assert report.invariant is None, f"seed {seed}: {report.detail}"
        totals["ok"] += report.writes["ok"]
        totals["faults"] += sum(report.faults.values())
        for name, count in report.probes.items():
            reached[name] += count
    assert totals["ok"] > len(SEEDS) * 100, "too few writes to show anything"
    assert totals["faults"] > len(SEEDS) * 3
    missed = [name for name, count in reached.items() if not count]
    assert len(missed) < len(PROBES) // 4, missed


@pytest.mark.parametrize("seed", RECORDED)
def test_a_recorded_seed_keeps_every_guarantee(seed):
    report = run(generate(seed))
    assert report.invariant is None, f"{RECORDED[seed]}: {report.detail}"


def test_a_quiet_run_serves_everything():
    report = run(quiet(1))
    assert report.invariant is None, report.detail
    assert report.writes["ok"] > 50
    assert report.writes["failed"] == report.writes["unknown"] == report.reads["dropped"] == 0
    assert report.terms == 1


def test_a_schedule_survives_json():
    schedule = generate(5, seconds=10)
    assert Schedule.from_json(schedule.to_json()) == schedule
    assert run(Schedule.from_json(schedule.to_json())) == run(schedule)
    with pytest.raises(ValueError, match="another format"):
        Schedule.from_json('{"version": 0}')


PROGRAM = "from raft.sim import generate, run\nfor s in (3, 4): print(run(generate(s, seconds=20)))"


def test_hash_seeds_change_nothing():
    """Two interpreters that order their sets differently run the same history, byte for byte."""
    said = []
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
            timeout=60,
        )
        said.append(done.stdout)
    assert said[0] == said[1]
    assert said[0].count(b"digest=") == 2


def test_another_seed_is_another_history():
    assert run(generate(3, seconds=5)).digest != run(generate(4, seconds=5)).digest


def test_a_majority_that_cannot_recover_is_detected(monkeypatch):
    """Negative control of the recovery check: links that never heal."""
    schedule = replace(quiet(1), liveness=True, faults=(Fault("drop", 0, 10**12, {"share": 1.0}),))
    monkeypatch.setattr("raft.sim.nemesis.Nemesis.heal", lambda self, reachable: None)
    assert run(schedule).invariant == "a majority recovers"


def test_a_failure_shrinks_to_a_test(monkeypatch, tmp_path):
    monkeypatch.setattr(Log, "is_current", lambda self, index, term: True)
    seed = next(seed for seed in range(100) if run(generate(seed, seconds=20)).invariant)
    schedule = generate(seed, seconds=20)
    invariant = run(schedule).invariant
    shrunk = shrink(schedule, invariant, runs=60)
    assert run(shrunk).invariant == invariant
    assert len(shrunk.faults) <= len(schedule.faults)
    assert len(shrunk.ops) < len(schedule.ops)
    text = as_test(shrunk, invariant, "votes_ignore_the_log")
    scope: dict[str, object] = {}
    exec(compile(text, "test_shrunk.py", "exec"), scope)  # noqa: S102 -- the generated test is what is tested
    test = scope["test_votes_ignore_the_log"]
    assert callable(test)
    with pytest.raises(AssertionError):
        test()
    monkeypatch.undo()
    test()


def test_shrinking_another_failure_is_refused():
    with pytest.raises(ValueError, match="breaks None"):
        shrink(quiet(1), "one leader per term")

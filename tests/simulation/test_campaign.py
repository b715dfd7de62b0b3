"""The campaign: what it counts, and that it never calls a run green that shows too little."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kvstore.testing import campaign
from kvstore.testing.campaign import Tally, describe, main
from kvstore.testing.simulation_levels import LEVELS, SeedResult, run_core
from raft.core.log import Log
from raft.sim.busy import CALLS_PER_S_MIN, HEALED_S, busy_s


def result(**fields: object) -> SeedResult:
    given: dict[str, object] = {"operations": {"write ok": 900, "write unknown": 100}, **fields}
    return SeedResult("core", 1, **given)  # type: ignore[arg-type]  # fields by name


def tally(*results: SeedResult) -> Tally:
    found = Tally("core")
    for one in results:
        found.add(one)
    return found


def test_one_broken_guarantee_fails_all() -> None:
    assert tally(*[result()] * 20).verdict == "passed"
    assert tally(*[result()] * 20, result(failure="two leaders")).verdict == "failed"


@pytest.mark.parametrize(
    "results",
    [
        [],
        [result(operations={})],
        [result(operations={"write ok": 10, "write failed": 90})],
        [result()] * 8 + [result(inconclusive="only 3 calls")],
    ],
    ids=["no seed", "no call", "too few served", "too many inconclusive"],
)
def test_too_little_shown_is_inconclusive(results: list[SeedResult]) -> None:
    assert tally(*results).verdict == "inconclusive"


def test_inconclusive_seeds_add_no_hours() -> None:
    found = tally(result(busy_s=60.0), result(busy_s=60.0, inconclusive="only 3 calls"))
    assert found.summary(1.0, 60.0)["busy_cluster_hours"] == round(60 / 3600, 2)


def test_a_long_campaign_must_reach_every_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    few = LEVELS["core"]._replace(probes=("often", "never"), seeds_for_probes=2)
    monkeypatch.setitem(LEVELS, "core", few)
    assert tally(result(probes={"often": 1})).verdict == "passed"
    found = tally(*[result(probes={"often": 1})] * 2)
    assert (found.verdict, found.missed()) == ("failed", ({}, ["never"]))
    monkeypatch.setitem(LEVELS, "core", few._replace(unreached={"never": "it cannot be"}))
    found = tally(*[result(probes={"often": 1})] * 2)
    assert (found.verdict, found.missed()) == ("passed", ({"never": "it cannot be"}, []))
    found = tally(result(probes={"often": 1, "never": 1}))
    assert (found.verdict, found.contradicted()) == ("failed", {"never": "it cannot be"})
    assert "REACHED, though recorded as unreachable: never" in describe("core", found.summary(1.0, 60.0))


@pytest.mark.parametrize("level", LEVELS)
def test_only_known_probes_have_a_reason_not_to_be_reached(level: str) -> None:
    known = LEVELS[level].probes
    assert len(set(known)) == len(known) > 50
    assert set(LEVELS[level].unreached) <= set(known)
    assert all(len(why.split()) > 5 for why in LEVELS[level].unreached.values())


def test_an_idle_hour_is_not_busy() -> None:
    calls = [number / (2 * CALLS_PER_S_MIN) for number in range(200 * 2 * CALLS_PER_S_MIN)]
    assert busy_s(calls, [(0.0, 500.0)], 200.0) == 200
    assert busy_s(calls, [], 200.0) == 0, "nothing ever failed"
    assert busy_s(calls[::4], [(0.0, 500.0)], 200.0) == 0, "too few calls"
    assert busy_s(calls, [(50.0, 60.0)], 200.0) == 10 + HEALED_S
    assert busy_s(calls, [(50.0, 60.0), (70.0, 71.0)], 200.0) == 21 + HEALED_S + 4, "in whole intervals"


def test_a_seed_that_serves_too_little_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not run_core(5, 10.0).inconclusive
    monkeypatch.setattr("raft.sim.member.Member.propose", lambda self, data: False)
    monkeypatch.setattr("raft.sim.cluster.Cluster.serve_reads", lambda self, member, count: None)
    monkeypatch.setattr("raft.sim.cluster.Cluster.check_recovery", lambda self: None)
    assert "calls served" in run_core(5, 10.0).inconclusive


def test_the_command_writes_its_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, so that a patched function reaches the seeds."""

    def here(
        level: str, seeds: Iterator[int], end_s: float, length_s: float, workers: int
    ) -> list[SeedResult]:
        return [campaign.run_one(level, seed, length_s) for seed in seeds]

    monkeypatch.setattr(campaign, "results", here)
    output = tmp_path / "deep" / "result.json"
    arguments = ["--level", "core", "--seeds", "5-6", "--length", "30", "--output", str(output)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "verdict: passed" in done.output
    found = json.loads(output.read_text())
    assert found["levels"]["core"]["seeds"] == 2
    assert found["levels"]["core"]["operations_checked"] > 300
    monkeypatch.setattr(Log, "is_current", lambda self, index, term: True)
    done = CliRunner().invoke(main, ["--level", "core", "--seeds", "0-9", "--length", "20"])
    assert done.exit_code == 1, done.output
    assert "FAILED core seed" in done.output


def test_a_failing_seed_is_shortened_to_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--level", "core", "--length", "10", "--shrink", "1"]
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.output) == (1, "Error: seed 1 keeps every invariant\n")
    monkeypatch.setattr(Log, "is_current", lambda self, index, term: True)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = {}
    exec(done.output, found)  # noqa: S102  # the file that was printed
    with pytest.raises(AssertionError):
        found["test_core_seed_1"]()

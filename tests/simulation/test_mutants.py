"""The hunt for planted bugs, replayed: each recorded find is found again, and only with the bug in place."""

from __future__ import annotations

import pytest

from raft.sim import generate, quiet, run
from tests.simulation.mutants.core import MUTANTS
from tests.simulation.mutants.patches import Patches
from tests.simulation.mutants.record import read_rows

ROWS = {row["id"]: row for row in read_rows()}
CAUGHT = [mutant for mutant in MUTANTS if ROWS.get(mutant.id, {}).get("caught")]
FIELDS = {"id", "name", "caught", "seeds", "seed", "invariant", "shrunk_faults", "shrunk_ops"}
SEEDS_MEDIAN_MAX = 100
SEEDS_WORST_MAX = 2000
MISSED_MAX = 1
"""Planted bugs that the recorded hunts, which were short, did not meet; a row says how many seeds it
was given. None may join them."""


def test_the_record_is_complete():
    for mutant in MUTANTS:
        row = ROWS[mutant.id]
        assert set(row) >= FIELDS
        assert row["name"] == mutant.name
        assert (row["caught"] is None) == (mutant.plant is None), row
        assert mutant.plant is not None or mutant.reason
    assert len([row for row in ROWS.values() if row["caught"] is False]) <= MISSED_MAX
    seeds = sorted(row["seeds"] for row in ROWS.values() if row["caught"])
    assert seeds[len(seeds) // 2] <= SEEDS_MEDIAN_MAX
    assert seeds[-1] <= SEEDS_WORST_MAX


@pytest.mark.parametrize("mutant", CAUGHT, ids=lambda mutant: f"{mutant.id}")
def test_a_planted_bug_is_found_again(mutant):
    """With the bug its recorded run breaks the recorded promise; without it the same run keeps them all;
    and a quiet run notices nothing, so that it was the simulation that found it."""
    row = ROWS[mutant.id]
    schedule = generate(row["seed"])
    with Patches() as patches:
        mutant.plant(patches)
        found = run(schedule)
        unnoticed = run(quiet(1, seconds=3))
    assert found.invariant == row["invariant"], found.detail
    assert unnoticed.invariant is None, unnoticed.detail
    until_us = found.at_us if found.at_us <= schedule.duration_us else None
    assert run(schedule, until_us=until_us).invariant is None

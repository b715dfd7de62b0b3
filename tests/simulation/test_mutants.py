"""The recorded finds of mutants, replayed: each is found again, and only with the mutant applied."""

from __future__ import annotations

import pytest

from tests.simulation.mutants.mutant import Mutant, keeps_all_until, look, quiet_of, schedule_of
from tests.simulation.mutants.patches import Patches
from tests.simulation.mutants.record import read_rows
from tests.simulation.mutants.table import MUTANTS

ROWS = {row["id"]: row for row in read_rows()}
CAUGHT = [mutant for mutant in MUTANTS if ROWS.get(mutant.id, {}).get("caught")]
FIELDS = {"id", "name", "caught", "seeds", "seed", "invariant", "shrunk_faults", "shrunk_ops"}
SEEDS_MEDIAN_MAX = 100
SEEDS_WORST_MAX = 2000


def test_the_record_is_complete() -> None:
    assert [mutant.id for mutant in MUTANTS] == list(range(1, 67)) == list(ROWS)
    for mutant in MUTANTS:
        row = ROWS[mutant.id]
        assert set(row) >= FIELDS
        assert row["name"] == mutant.name
        assert (row["caught"] is None) == (mutant.apply is None), row
        assert mutant.apply is not None or mutant.reason
    assert not [row for row in ROWS.values() if row["caught"] is False]
    seeds = sorted(row["seeds"] for row in ROWS.values() if row["caught"])
    assert seeds[len(seeds) // 2] <= SEEDS_MEDIAN_MAX
    assert seeds[-1] <= SEEDS_WORST_MAX


@pytest.mark.parametrize("mutant", CAUGHT, ids=lambda mutant: f"{mutant.id}")
def test_a_mutant_is_found_again(mutant: Mutant) -> None:
    """With the mutant its recorded run breaks the recorded invariant; without it the same run keeps them
    all; and a quiet run does not detect the mutant, so that the faults are what found it."""
    row = ROWS[mutant.id]
    schedule = schedule_of(mutant, row["seed"])
    assert mutant.apply is not None
    with Patches() as patches:
        mutant.apply(patches)
        found = look(schedule)
        in_quiet_run = look(quiet_of(mutant, seconds=3))
    assert found is not None
    assert found.invariant == row["invariant"], found.detail
    assert in_quiet_run is None, in_quiet_run
    assert keeps_all_until(schedule, found.virtual_s) is None

"""`python -m tests.simulation.mutants`: runs random schedules against each mutant until one detects it.

Each mutant must first survive a quiet run: a bug that shows without any fault needs no simulation. The finds
are recorded in mutants.json, and the test suite replays them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from tests.simulation.mutants.mutant import Mutant, look, quiet_of, schedule_of, shorten
from tests.simulation.mutants.patches import Patches
from tests.simulation.mutants.record import RECORD, read_rows
from tests.simulation.mutants.table import MUTANTS

SEEDS_MAX = 2000
"""A mutant that this many runs do not detect counts as not caught."""

SHRINKING_RUNS = {"core": 150, "node": 60}
"""Runs spent on shortening each find."""


def hunt(mutant: Mutant, seeds: range, deadline: float, shrinking: int | None) -> dict[str, object]:
    """One row of the record. Raises RuntimeError when the quiet run detects the mutant."""
    row: dict[str, object] = dict.fromkeys(
        ("caught", "seeds", "seed", "invariant", "shrunk_faults", "shrunk_ops")
    )
    row = {"id": mutant.id, "name": mutant.name, "level": mutant.level, **row}
    if mutant.apply is None:
        return {**row, "level": None, "reason": mutant.reason}
    with Patches() as patches:
        mutant.apply(patches)
        found = look(quiet_of(mutant))
        if found is not None:
            raise RuntimeError(f"{mutant.id} {mutant.name}: detected in a quiet run: {found.detail}")
        row.update(caught=False, seeds=0)
        for seed in seeds:
            if time.monotonic() > deadline:
                break
            row["seeds"] = seed - seeds.start + 1
            schedule = schedule_of(mutant, seed)
            find = look(schedule)
            if find is not None:
                row.update(caught=True, seed=seed, invariant=find.invariant)
                runs = SHRINKING_RUNS[mutant.level] if shrinking is None else shrinking
                faults, operations = shorten(schedule, find.invariant, runs)
                row.update(shrunk_faults=faults, shrunk_ops=operations)
                break
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the mutants to hunt; all without it")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX, help="seeds at most for each mutant")
    parser.add_argument("--shrink", type=int, help="runs spent on each find")
    parser.add_argument("--seconds", type=float, default=600.0, help="time at most for each mutant")
    chosen = parser.parse_args()
    rows = {row["id"]: row for row in read_rows()}
    missed = 0
    for mutant in MUTANTS:
        if chosen.only and mutant.id not in chosen.only:
            continue
        started = time.monotonic()
        seeds = range(chosen.first, chosen.first + chosen.seeds)
        row = hunt(mutant, seeds, started + chosen.seconds, chosen.shrink)
        rows[mutant.id] = row
        missed += row["caught"] is False
        print(f"{time.monotonic() - started:6.1f} s", json.dumps(row), flush=True)
        lines = ",\n".join(json.dumps(rows[number]) for number in sorted(rows))
        RECORD.write_text(f"[\n{lines}\n]\n", "utf-8")
    print(f"{missed} not caught; recorded in {RECORD.name}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

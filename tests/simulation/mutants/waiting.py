"""Mutants that cannot exist yet, because the code that they would break does not exist."""

from __future__ import annotations

from tests.simulation.mutants.mutant import Mutant

MUTANTS = (Mutant(49, "dedup table not in the snapshot", None, "there are no sessions"),)

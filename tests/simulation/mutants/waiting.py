"""Bugs that cannot be planted yet, because what they would break does not exist."""

from __future__ import annotations

from tests.simulation.mutants.mutant import Mutant

_WATCHES = "watches are not simulated"

MUTANTS = (
    Mutant(49, "dedup table not in the snapshot", None, "there are no sessions"),
    Mutant(53, "watch restarted at revision+1 loses same-revision events", None, _WATCHES),
    Mutant(54, "compaction drops a version still due to a synced watcher", None, _WATCHES),
    Mutant(55, "progress notification ahead of events", None, _WATCHES),
)

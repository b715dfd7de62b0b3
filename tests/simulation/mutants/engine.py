"""Mutants of the state machine, `kvstore.engine`."""

from __future__ import annotations

import asyncio
from typing import Any

from kvstore.engine.store import Store
from kvstore.engine.txn import delete, run_txn
from tests.simulation.mutants.mutant import Mutant
from tests.simulation.mutants.patches import Patches

CLOCK_STEP_S = 10.0
"""How coarse the clock is that apply must not look at: a quiet run ends before its first step."""


def _apply_looks_at_the_clock(p: Patches) -> None:
    """Deletions are applied in every second period of the clock only."""

    def moody(store: Store, request: Any) -> Any:
        if asyncio.get_running_loop().time() // CLOCK_STEP_S % 2:
            request = request._replace(key=b"\xff", range_end=None)
        return delete(store, request)

    p.everywhere(delete, moody)


def _failed_comparison_takes_a_revision(p: Patches) -> None:
    def counting(store: Store, txn: Any) -> Any:
        result = run_txn(store, txn)
        if not result.succeeded and not txn.failure:
            store.put(b"\0", b"", 0)
        return result

    p.everywhere(run_txn, counting)


MUTANTS = (
    Mutant(51, "apply is not a function of state and command alone", _apply_looks_at_the_clock, level="node"),
    Mutant(52, "revision bumped by a failed transaction", _failed_comparison_takes_a_revision, level="node"),
)

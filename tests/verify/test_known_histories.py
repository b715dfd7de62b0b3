"""Every published history gets its published verdict."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from kvstore.verify import MODELS, Semantics, VerdictKind, check_linearizability, pair_events, read_history

BUDGET_S = 60.0


def _rows() -> list[tuple[Path, str]]:
    root = os.environ.get("KVSTORE_TESTDATA")
    if root is None:
        return []
    folder = Path(root) / "histories" / "porcupine"
    with (folder / "verdicts.csv").open() as table:
        return [(folder / row["file"], row["expected"]) for row in csv.DictReader(table)]


@pytest.mark.parametrize("semantics", list(Semantics))
def test_published_verdicts(semantics: Semantics) -> None:
    rows = _rows()
    if not rows:
        pytest.skip("KVSTORE_TESTDATA is not set: the published histories are not part of this repository")
    for path, expected in rows:
        model = MODELS["kv-append" if path.parent.name == "kv" else "cas-register"](semantics, None)
        verdict = check_linearizability(pair_events(read_history(path)), model, budget_s=BUDGET_S)
        wanted = VerdictKind.VALID if expected == "linearizable" else VerdictKind.INVALID
        assert verdict.kind is wanted, f"{path.name}: {verdict}"
        assert verdict.explanation or wanted is VerdictKind.VALID

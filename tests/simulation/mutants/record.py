"""The record of the hunt, one row per mutant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORD = Path(__file__).resolve().parent.parent / "mutants.json"


def read_rows() -> list[dict[str, Any]]:
    """Rows {id, name, caught, seeds, seed, invariant, shrunk_faults, shrunk_ops}; `caught` is null where
    nothing can be broken so, with the reason."""
    rows: list[dict[str, Any]] = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else []
    return rows

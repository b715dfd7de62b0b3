"""The page of invariants names checks that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| .* \| `(?P<file>[a-z_/]+\.py)` `(?P<name>\w+)` \|$", re.MULTILINE)
ROWS_MIN = 25


def test_every_named_check_exists() -> None:
    rows = ROW.findall((ROOT / "docs" / "invariants.md").read_text("utf-8"))
    assert len(rows) >= ROWS_MIN
    for file, name in rows:
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert any(isinstance(node, functions) and node.name == name for node in ast.walk(tree)), (file, name)

"""The example in docs/testing.md is the program that the suite runs, line by line."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def test_the_page_shows_what_is_tested() -> None:
    page = "".join(BLOCK.findall((ROOT / "docs" / "testing.md").read_text("utf-8")))
    program = (ROOT / "tests" / "simulation" / "test_own_code.py").read_text("utf-8")
    assert lines(page) == lines(program)

"""Documents run only programs that exist: a reader who copies a line must not meet "no such file"."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_tidy import ROOT, text_files

PROGRAM = re.compile(r"(?<![\w./])(?:\./|(?:python3?|sh|bash) )([\w./-]+\.(?:py|sh))\b")


def missing_programs(text: str, folder: Path) -> list[str]:
    """Programs (`./tool.sh`, `python cluster.py`) that the text runs and that neither folder nor root has."""
    found: list[str] = PROGRAM.findall(text)
    return [path for path in found if not (folder / path).exists() and not (ROOT / path).exists()]


def test_documents_run_programs_that_exist() -> None:
    documents = [path for path in text_files() if path.suffix == ".md"]
    assert any(PROGRAM.search(path.read_text()) for path in documents)
    missing = {
        str(path.relative_to(ROOT)): missing_programs(path.read_text(), path.parent) for path in documents
    }
    assert {name: programs for name, programs in missing.items() if programs} == {}


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("$ ./book.sh 1", ["book.sh"]),
        ("sh book.sh", ["book.sh"]),
        ("`python3 tools/none.py`", ["tools/none.py"]),
        ("$ python cluster.py up; ./cluster.py; example.org/a.py", []),
    ],
)
def test_the_rule_bites(text: str, missing: list[str]) -> None:
    assert missing_programs(text, ROOT) == missing

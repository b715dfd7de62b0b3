"""The entry page of `raft`: its example runs, it names every kind of message, and it loads nothing."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys

import raft
from raft.core import MessageType


def page() -> str:
    assert raft.__doc__ is not None
    return raft.__doc__


def message_glossary(text: str) -> list[str]:
    """The names that a page defines: each alone on its line, with an indented text below."""
    return re.findall(r"^([A-Z_]+)\n    \S", text, flags=re.MULTILINE)


def undescribed(text: str) -> list[str]:
    """Kinds of message that a page does not define exactly once."""
    names = message_glossary(text)
    return [kind.name for kind in MessageType if names.count(kind.name) != 1]


def failures(text: str) -> tuple[int, int]:
    """Examples that failed, and examples run."""
    example = doctest.DocTestParser().get_doctest(text, {}, "raft", None, None)
    shown: list[str] = []
    result = doctest.DocTestRunner().run(example, out=shown.append)
    print(*shown, sep="")
    return result.failed, result.attempted


def loaded_by(module: str) -> list[str]:
    """What importing a module loads besides itself, in a fresh interpreter."""
    path = f"import sys; sys.path[:0] = {sys.path!r}"
    program = f"{path}; before = set(sys.modules); import {module}; print(*set(sys.modules) - before)"
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split() if name != module]


def test_the_example_runs() -> None:
    failed, attempted = failures(page())
    assert failed == 0
    assert attempted >= 15, "the example has shrunk"


def test_an_example_that_is_wrong_is_detected() -> None:
    wrong = page().replace("[EntryId(term=1, index=2)", "[EntryId(term=1, index=1)")
    assert wrong != page()
    assert failures(wrong)[0] == 1


def test_every_kind_of_message_is_described() -> None:
    assert undescribed(page()) == []
    assert set(message_glossary(page())) == {kind.name for kind in MessageType}, "one that does not exist"


def test_a_missing_kind_of_message_is_detected() -> None:
    for kind in MessageType:
        without = re.sub(rf"^{kind.name}\n(    .*\n)+", "", page(), flags=re.MULTILINE)
        assert undescribed(without) == [kind.name]
        twice = page() + f"\n{kind.name}\n    Again.\n"
        assert undescribed(twice) == [kind.name]


def test_importing_the_package_loads_nothing() -> None:
    assert loaded_by("raft") == []
    assert "raft" in loaded_by("raft.core"), "the control: a package that loads something"

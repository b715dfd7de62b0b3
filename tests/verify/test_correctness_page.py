"""The histories in docs/correctness.md get the verdicts that the page shows."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from kvstore.verify.budget import BUDGET_S_DEFAULT, MEMORY_BYTES_MAX
from kvstore.verify.linearizability import SLICE_GROWTH, SLICE_S
from kvstore.verify.models import MODELS
from kvstore.verify.verify_command import verify

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "correctness.md").read_text("utf-8")
SECTION = PAGE.partition("## A history of your own\n")[2].partition("\n## ")[0]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_histories_have_the_verdicts_that_are_shown(tmp_path: Path) -> None:
    blocks = BLOCK.findall(SECTION)
    assert [kind for kind, _ in blocks] == ["clojure", "text", "json", "text", "text"]
    (_, edn), (_, refuted), (_, array), (_, valid), (_, unknown) = blocks
    histories = [(edn, refuted, 1), (array, valid, 0), ("[]", unknown, 2), ("", unknown, 2)]
    histories += [(form.format(edn), refuted, 1) for form in ("[{}]", "({})")]
    for number, (history, output, code) in enumerate(histories):
        file = tmp_path / str(number)
        file.write_text(history, "utf-8")
        done = CliRunner().invoke(verify, ["check", str(file), "--model", "register"])
        assert (done.exit_code, done.output) == (code, output)


def test_the_bounds_and_models_are_those_of_the_code() -> None:
    text = SECTION.replace("\n", " ")
    assert f"`--budget-s` ({BUDGET_S_DEFAULT:g} by default)" in text
    assert f"bounded at {MEMORY_BYTES_MAX >> 20} MiB" in text
    assert f"{1000 * SLICE_S:g} ms at first and twice as long" in text
    assert SLICE_GROWTH == 2
    assert all(f"`{name}`" in text for name in [*MODELS, "list-append"])

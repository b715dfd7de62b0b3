"""What the command of the real-process runs makes of its options and verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvstore.verify.run import run_command


class Result:
    def __init__(self, verdict: str) -> None:
        self.verdict = verdict
        self.checked = 1


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [(["valid"], 0), (["valid", "inconclusive"], 2), (["inconclusive", "invalid", "unknown"], 1), ([], 3)],
)
def test_an_invalid_run_is_told_as_such_whatever_stands_beside_it(
    verdicts: list[str], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Path] = []

    def rotate(*, directory: Path, **_: Any) -> list[Result]:
        seen.append(directory)
        return [Result(verdict) for verdict in verdicts]

    monkeypatch.setattr(run_command, "rotate", rotate)
    monkeypatch.chdir(tmp_path)
    assert run_command.run_rotation(minutes=1, directory="runs", seed=1) == code
    assert seen == [tmp_path / "runs"], "whole, as the traces of the members' calls name files"

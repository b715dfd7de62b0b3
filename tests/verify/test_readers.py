"""The three file forms, and clear words for what cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from kvstore.verify import HistoryError, read_history
from kvstore.verify.edn import DEPTH_MAX, EdnError, parse_all
from kvstore.verify.verify_command import verify

LOG = "INFO  jepsen.util - 0\t:invoke\t:cas\t[1 2]\nINFO  jepsen.util - 0 :info :cas :timed-out\n"
EDN = """; comment
[{:process 0, :type :invoke, :f :write, :value 3, :time 12}
 #jepsen.history.Op{:process 0 :type :ok :f :write :value 3}
 {:process :nemesis :type :info :f :kill :value nil}]
"""
JSON = """{"process": 0, "type": "invoke", "f": "read", "value": null}
{"process": 0, "type": "ok", "f": "read", "value": 3}
"""


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "history"
    path.write_text(text)
    return path


def test_porcupine_log(tmp_path: Path) -> None:
    events = read_history(_write(tmp_path, LOG))
    assert [(e.type, e.f, e.value) for e in events] == [
        ("invoke", "cas", [1, 2]),
        ("info", "cas", "timed-out"),
    ]


def test_edn_in_one_vector_with_tags_and_comments(tmp_path: Path) -> None:
    events = read_history(_write(tmp_path, EDN))
    assert [(e.process, e.type, e.value) for e in events] == [
        (0, "invoke", 3),
        (0, "ok", 3),
        ("nemesis", "info", None),
    ]


def test_json_lines(tmp_path: Path) -> None:
    assert [e.value for e in read_history(_write(tmp_path, JSON))] == [None, 3]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("INFO  jepsen.util - 0 :invoke :read nil\nnonsense\n", 2),
        ("{:process 0, :type :invoke, :f :read}\n{:process 0, :type :ok, :f :read\n", 2),
        ("{:process 0, :type :invoke, :f :read}\n{:process 0, :type :maybe, :f :read}\n", 2),
        ('{"process": 0, "type": "invoke", "f": "read"}\n{"process": 0\n', 2),
        ("{:process 0 :f :read}\n", 1),
    ],
)
def test_the_line_that_cannot_be_read_is_named(tmp_path: Path, text: str, line: int) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(HistoryError, match=f"line {line}"):
        read_history(path)
    result = CliRunner().invoke(verify, ["check", str(path), "--model", "register"])
    assert result.exit_code == 3
    assert f"line {line}" in result.output


def test_exit_codes_are_the_verdicts(tmp_path: Path) -> None:
    path = _write(tmp_path, JSON)
    run = CliRunner().invoke
    assert run(verify, ["check", str(path), "--model", "register", "--initial", "3"]).exit_code == 0
    invalid = run(verify, ["check", str(path), "--model", "register"])
    assert invalid.exit_code == 1
    assert "cannot be placed: line 1" in invalid.output
    assert run(verify, ["check", str(path), "--model", "mutex"]).exit_code == 3
    assert run(verify, ["check", str(tmp_path / "absent"), "--model", "mutex"]).exit_code == 3


def test_edn_values() -> None:
    text = r'nil true -3 4.5 "a\"\u0041\n" \newline :key/word (1 #_2 3) #{7} {[1] :x} #inst "2020"'
    assert [form for form, _ in parse_all(text)] == [
        None,
        True,
        -3,
        4.5,
        'a"A\n',
        "\n",
        "key/word",
        [1, 3],
        [7],
        {(1,): "x"},
        "2020",
    ]


@pytest.mark.parametrize("text", ["[1 2", "{:a}", "]", '"open', "[" * (DEPTH_MAX + 2)])
def test_edn_errors(text: str) -> None:
    with pytest.raises(EdnError):
        parse_all(text)

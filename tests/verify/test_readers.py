"""The three file forms, and clear words for what cannot be read."""

from __future__ import annotations

import json
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


ITEMS = """{:process 0, :type :invoke, :f :write, :value 3}
{:process 0, :type :ok, :f :write, :value 3}
#jepsen.history.Op{:process 1,
 :type :invoke, :f :read, :value nil}
#_ {:process 9} {:process 1, :type :ok, :f :read, :value 4}
"""
"""Operations on lines 1 and 3; the read is stale."""


@pytest.mark.parametrize(
    ("before", "after", "first"),
    [
        ("", "", 1),
        ("[", "]", 1),
        ("(", ")", 1),
        ("; wrapped\n[\n", "\n]\n", 3),
        ("#_[1 2]\n\n(", ")", 3),
    ],
)
def test_events_in_one_vector_or_list_keep_their_lines(
    tmp_path: Path, before: str, after: str, first: int
) -> None:
    path = _write(tmp_path, before + ITEMS + after)
    assert [event.line - first for event in read_history(path)] == [0, 1, 2, 4]
    result = CliRunner().invoke(verify, ["check", str(path), "--model", "register"])
    assert result.exit_code == 1
    assert f"cannot be placed: line {first + 2}: process 1 read 4" in result.output


def test_an_unreadable_event_in_a_vector_is_named_by_its_line(tmp_path: Path) -> None:
    path = _write(tmp_path, "[\n" + ITEMS + "{:process 2, :type :maybe, :f :read}]")
    with pytest.raises(HistoryError, match="line 7: unknown type 'maybe'"):
        read_history(path)


JSON_EVENTS: list[dict[str, object]] = [
    {"process": 0, "type": "invoke", "f": "read", "value": None},
    {"process": 0, "type": "ok", "f": "read", "value": [1, {"a": "\u2028 {["}]},
]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (json.dumps(JSON_EVENTS), [1, 1]),
        (json.dumps(JSON_EVENTS, indent=2), [2, 8]),
        (json.dumps(JSON_EVENTS, indent=2, separators=(" ,", " : ")), [2, 8]),
        (json.dumps(JSON_EVENTS, ensure_ascii=False, indent=2), [2, 8]),
        ("\n[\n" + ",\n".join(map(json.dumps, JSON_EVENTS)) + "\n]\n", [3, 4]),
        ("[" + "\n,".join(map(json.dumps, JSON_EVENTS)) + "]", [1, 2]),
        ("\n".join(json.dumps(event, ensure_ascii=False) for event in JSON_EVENTS), [1, 2]),
        ("\n".join(json.dumps(event, indent=1) for event in JSON_EVENTS), [1, 7]),
        ("\r\n".join(map(json.dumps, JSON_EVENTS)), [1, 2]),
    ],
)
def test_json_in_an_array_or_in_sequence_over_any_lines(tmp_path: Path, text: str, lines: list[int]) -> None:
    events = read_history(_write(tmp_path, text))
    assert [event.line for event in events] == lines
    assert [event.value for event in events] == [event["value"] for event in JSON_EVENTS]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"process": 0', "line 2: not JSON"),
        ('[\n{"process": 0, "type": "ok", "f": "r"}\n', "line 1: the array is never closed"),
        ('[{"process": 0, "type": "ok", "f": "r"}\n{"process": 0}]', "line 1: neither ',' nor ']'"),
        ('[{"process": 0, "type": "ok", "f": "r"}]\n\n[]', "line 3: more text after the array"),
        ('[\n{"process": 0, "type": "ok", "f": "r"},\n7]', "line 3: an event must be a map, found int"),
        ('{"process": 0, "value": ' + "[" * 100_000, "line 1: a value is nested too deeply"),
    ],
)
def test_json_that_cannot_be_read_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(HistoryError, match=message):
        read_history(path)
    assert CliRunner().invoke(verify, ["check", str(path), "--model", "register"]).exit_code == 3


def test_edn_maps_with_strings_for_keys_are_no_json(tmp_path: Path) -> None:
    events = read_history(_write(tmp_path, '{"process" 0 "type" :invoke, "f" :read}'))
    assert [(event.process, event.type, event.f) for event in events] == [(0, "invoke", "read")]


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

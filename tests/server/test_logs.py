"""Log lines: their two forms, the limit on repeats, and nothing left behind."""

import io
import json
import logging

import pytest

from kvstore.server import logs


def record(message="greet %s", args=("you",), *, created=1_700_000_000.5, level=logging.INFO, **extra):
    values = {
        "name": "kvstore.server",
        "levelno": level,
        "msg": message,
        "args": args,
        "created": created,
        "filename": "file.py",
        "lineno": 7,
    }
    return logging.makeLogRecord(values | extra)


def test_a_json_line_has_etcds_names_and_the_fields():
    line = json.loads(logs.JsonFormatter().format(record(role="leader", node="a", peer=b"x", term=3)))
    assert line == {
        "level": "info",
        "ts": "2023-11-14T22:13:20.500Z",
        "logger": "kvstore.server",
        "caller": "file.py:7",
        "msg": "greet you",
        "node": "a",
        "term": 3,
        "role": "leader",
        "peer": "b'x'",
    }


def test_a_field_never_hides_the_message():
    assert json.loads(logs.JsonFormatter().format(record(level_="x", ts="fake")))["ts"].startswith("2023")


def test_a_console_line_is_for_people():
    line = logs.ConsoleFormatter().format(record(level=logging.WARNING, term=3, node="a"))
    assert line == "2023-11-14T22:13:20.500Z  WARN   kvstore.server  greet you  node=a  term=3"


@pytest.mark.parametrize("form", [logs.JsonFormatter, logs.ConsoleFormatter])
def test_an_exception_is_shown(form):
    try:
        raise ValueError("broken")
    except ValueError as error:
        text = form().format(record(exc_info=(ValueError, error, error.__traceback__)))
    assert "ValueError: broken" in text


def test_repeats_are_counted_instead_of_printed():
    limit = logs.RepeatLimit()
    passed = [limit.filter(record(created=100.0 + i / 1000)) for i in range(50)]
    assert passed == [True] * logs.REPEATS_MAX + [False] * (50 - logs.REPEATS_MAX)
    assert limit.filter(record("another"))
    later = record(created=100.0 + logs.REPEATS_PERIOD_S)
    assert limit.filter(later)
    assert later.repeated == 50 - logs.REPEATS_MAX
    assert json.loads(logs.JsonFormatter().format(later))["repeated"] == 45


def test_the_memory_of_repeats_is_bounded():
    limit = logs.RepeatLimit()
    for i in range(2 * logs.REPEAT_KEYS_MAX):
        limit.filter(record(f"message {i}", ()))
    assert len(limit._seen) == logs.REPEAT_KEYS_MAX


def test_configure_reaches_the_outputs_and_leaves_nothing(tmp_path, capsys):
    before = {
        name: (list(logging.getLogger(name).handlers), logging.getLogger(name).level) for name in logs.LOGGERS
    }
    root = list(logging.getLogger().handlers)
    path = tmp_path / "log"
    handlers = logs.configure(level="info", form="json", outputs=f"default,{path}")
    try:
        logging.getLogger("raft.node").info("greeting", extra={"node": "a"})
        logging.getLogger("kvstore.server").debug("not yet")
        handlers.describe(node="b", term=3, role="follower")
        logs.set_level("debug")
        logging.getLogger("kvstore.server").debug("now")
        assert list(logging.getLogger().handlers) == root
    finally:
        handlers.close()
        handlers.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["logger"], line["msg"]) for line in lines] == [
        ("raft.node", "greeting"),
        ("kvstore.server", "now"),
    ]
    assert (lines[1]["node"], lines[1]["term"], lines[1]["role"]) == ("b", 3, "follower")
    assert lines[0]["node"] == "a"
    assert capsys.readouterr().err == path.read_text()
    assert before == {
        name: (list(logging.getLogger(name).handlers), logging.getLogger(name).level) for name in logs.LOGGERS
    }


def test_an_output_that_cannot_be_opened_is_an_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        logs.configure(level="info", form="json", outputs=f"stderr,{tmp_path}/missing/log")
    assert not [
        h
        for name in logs.LOGGERS
        for h in logging.getLogger(name).handlers
        if isinstance(h, logging.StreamHandler) and isinstance(h.stream, io.StringIO)
    ]

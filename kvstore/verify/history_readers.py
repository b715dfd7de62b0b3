"""From files to events: Jepsen's EDN, JSON, and Porcupine's log form, told apart by content.

In EDN and JSON the events stand one after another, or all in one vector, list or array; in either case each
may take a line, or several, or share one.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvstore.verify.budget import Budget
from kvstore.verify.edn import EdnError, parse_all, parse_items
from kvstore.verify.operation_history import Event, HistoryError

_LOG_LINE = re.compile(r"INFO\s+jepsen\.util\s+-\s+(\S+)\s+:(\w+)\s+:(\S+)\s*(.*)\Z")
_JSON_BEGIN = re.compile(r"\s*(\[\s*)?\{\s*\"[^\"]*\"(:|\s*:\s)")
"""A string and a colon after it. In EDN a colon begins a keyword, so no space follows."""

_JSON_BLANK = re.compile(r"[ \t\n\r]*")
_TYPES = frozenset({"invoke", "ok", "fail", "info"})

FILE_BYTES_MAX = 1 << 30
"""A history larger than this is refused: it would not fit in memory as events."""


def read_history(path: str | Path, *, budget: Budget | None = None) -> list[Event]:
    """Read a history file. Raises HistoryError naming the line that could not be read, and BoundMetError."""
    return parse_history(_text_of(Path(path)), budget=budget)


def _text_of(path: Path) -> str:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise HistoryError(f"the file is larger than {FILE_BYTES_MAX} bytes", 1)
        raw = path.read_bytes()
    except OSError as error:
        raise HistoryError(f"cannot open the file: {error.strerror}", 0) from error
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HistoryError("not UTF-8 text", raw.count(b"\n", 0, error.start) + 1) from error


def parse_history(text: str, *, budget: Budget | None = None) -> list[Event]:
    """Read a history from its text, whichever of the three forms it has."""
    budget = budget or Budget(math.inf)
    if text.lstrip().startswith("INFO"):
        return _parse_log(text, budget)
    parse = _parse_json if _JSON_BEGIN.match(text) else _parse_edn
    return parse(text, budget)


def _parse_log(text: str, budget: Budget) -> list[Event]:
    events = []
    for number, line in enumerate(budget.each(io.StringIO(text)), 1):
        if not line.strip():
            continue
        found = _LOG_LINE.match(line.rstrip("\r\n"))
        if found is None:
            raise HistoryError(f"not a history event: {line[:60]!r}", number)
        process, kind, f, value = found.groups()
        if kind not in _TYPES:
            raise HistoryError(f"unknown type {kind!r}", number)
        events.append(
            Event(
                line=number,
                process=int(process) if process.isdigit() else process,
                type=kind,
                f=f,
                value=_log_value(value, number),
            )
        )
    return events


def _log_value(text: str, number: int) -> Any:
    try:
        forms = parse_all(text)
    except EdnError as error:
        raise HistoryError(f"value {text!r}: {error}", number) from error
    return forms[0][0] if forms else None


class _Lines:
    """From offsets of a text to the numbers of lines, quick where the offsets ascend."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._offset, self._line = 0, 1

    def of(self, offset: int) -> int:
        if offset < self._offset:
            self._offset, self._line = 0, 1
        self._line += self._text.count("\n", self._offset, offset)
        self._offset = offset
        return self._line


def _parse_json(text: str, budget: Budget) -> list[Event]:
    lines = _Lines(text)
    return [_event(value, lines.of(begin)) for value, begin in budget.each(_json_values(text, lines))]


def _json_values(text: str, lines: _Lines) -> Iterator[tuple[Any, int]]:
    """The values of the text, or of the one array that it is, each with the offset it begins at."""
    decode = json.JSONDecoder().raw_decode
    begin = position = _after_blank(text, 0)
    in_array = text.startswith("[", begin)
    if in_array:
        position = _after_blank(text, begin + 1)
    while position < len(text):
        if in_array and text[position] == "]":
            break
        try:
            value, end = decode(text, position)
        except RecursionError:
            raise HistoryError("a value is nested too deeply", lines.of(position)) from None
        except ValueError as error:
            raise HistoryError(f"not JSON: {error}", lines.of(position)) from error
        yield value, position
        position = _after_blank(text, end)
        if in_array and text.startswith(",", position):
            position = _after_blank(text, position + 1)
        elif in_array and text[position : position + 1] not in ("]", ""):
            raise HistoryError("neither ',' nor ']' after an event of the array", lines.of(end))
    if in_array:
        if position == len(text):
            raise HistoryError("the array is never closed", lines.of(begin))
        after = _after_blank(text, position + 1)
        if after < len(text):
            raise HistoryError("more text after the array", lines.of(after))


def _after_blank(text: str, position: int) -> int:
    found = _JSON_BLANK.match(text, position)
    return found.end() if found else position


def _parse_edn(text: str, budget: Budget) -> list[Event]:
    lines = _Lines(text)
    try:
        forms = parse_items(text, budget)
    except EdnError as error:
        raise HistoryError(str(error), lines.of(error.position)) from error
    return [_event(form, lines.of(offset)) for form, offset in budget.each(forms)]


def _event(fields: Any, number: int) -> Event:
    if not isinstance(fields, dict):
        raise HistoryError(f"an event must be a map, found {type(fields).__name__}", number)
    for name in ("process", "type", "f"):
        if name not in fields:
            raise HistoryError(f"an event without {name!r}", number)
    kind = fields["type"]
    if kind not in _TYPES:
        raise HistoryError(f"unknown type {kind!r}", number)
    return Event(
        line=number,
        process=fields["process"],
        type=kind,
        f=str(fields["f"]),
        value=fields.get("value"),
        key=fields.get("key"),
        time=fields.get("time"),
    )

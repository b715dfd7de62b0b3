"""From files to events: Jepsen's EDN, JSON lines, and Porcupine's log form, told apart by content."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvstore.verify.edn import EdnError, parse_all
from kvstore.verify.operation_history import Event, HistoryError

_LOG_LINE = re.compile(r"INFO\s+jepsen\.util\s+-\s+(\S+)\s+:(\w+)\s+:(\S+)\s*(.*)\Z")
_TYPES = frozenset({"invoke", "ok", "fail", "info"})

FILE_BYTES_MAX = 1 << 30
"""A history larger than this is refused: it would not fit in memory as events."""


def read_history(path: str | Path) -> list[Event]:
    """Read a history file. Raises HistoryError naming the line that could not be read."""
    source = Path(path)
    try:
        if source.stat().st_size > FILE_BYTES_MAX:
            raise HistoryError(f"the file is larger than {FILE_BYTES_MAX} bytes", 1)
        raw = source.read_bytes()
    except OSError as error:
        raise HistoryError(f"cannot open the file: {error.strerror}", 0) from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HistoryError("not UTF-8 text", raw.count(b"\n", 0, error.start) + 1) from error
    return parse_history(text)


def parse_history(text: str) -> list[Event]:
    """Read a history from its text, whichever of the three forms it has."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    if first.startswith("INFO"):
        return _parse_log(text)
    if first.lstrip().startswith('{"') or first.lstrip().startswith('[{"'):
        return _parse_json_lines(text)
    return _parse_edn(text)


def _parse_log(text: str) -> list[Event]:
    events = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        found = _LOG_LINE.match(line)
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


def _parse_json_lines(text: str) -> list[Event]:
    events = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise HistoryError(f"not JSON: {error}", number) from error
        events.append(_event(fields, number))
    return events


def _parse_edn(text: str) -> list[Event]:
    starts = [0, *(found.end() for found in re.finditer("\n", text))]

    def line_of(position: int) -> int:
        return bisect_right(starts, position)

    try:
        forms: Sequence[tuple[Any, int]] = parse_all(text)
    except EdnError as error:
        raise HistoryError(str(error), line_of(error.position)) from error
    if len(forms) == 1 and isinstance(forms[0][0], list):
        begin = forms[0][1]
        forms = [(form, begin) for form in forms[0][0]]
    return [_event(form, line_of(position)) for form, position in forms]


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

"""Histories in EDN, as Knossos, Elle and elle-cli read them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

KEYWORDS = frozenset({"type", "f"})
"""Fields of an event whose values are keywords."""


def write_event(event: Mapping[str, Any]) -> str:
    """One event as an EDN map on one line."""
    parts = []
    for name, value in event.items():
        shown = f":{value}" if name in KEYWORDS else write_value(value)
        parts.append(f":{name} {shown}")
    return "{" + ", ".join(parts) + "}"


def write_value(value: Any, head: bool = False) -> str:
    """A value of JSON's kinds; the first word of a [f k v] becomes a keyword, as those tools expect."""
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return f":{value}" if head else json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f":{key} {write_value(item)}" for key, item in value.items()) + "}"
    is_mop = len(value) in (3, 4) and isinstance(value[0], str) and value[0] in {"r", "w", "append"}
    return "[" + " ".join(write_value(item, is_mop and n == 0) for n, item in enumerate(value)) + "]"


def write_history(events: Iterable[Mapping[str, Any]]) -> str:
    return "".join(write_event(event) + "\n" for event in events)

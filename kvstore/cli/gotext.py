"""Values as Go reads and prints them, because scripts compare the output of etcdctl."""

from __future__ import annotations

import math
import os
import re

from kvstore.configuration import go_values
from kvstore.configuration.go_values import UINT64_MAX

_UNESCAPES = {escaped[1]: plain for plain, escaped in go_values.ESCAPES.items()}


def parse_int(text: str, base: int = 10) -> int:
    """`strconv.ParseInt(text, base, 64)`; ValueError with Go's words."""
    try:
        return go_values.parse_integer(text, base)
    except ValueError as error:
        raise ValueError(f"strconv.ParseInt: parsing {go_values.quote(text)}: {error}") from None


def parse_hex_id(text: str) -> int:
    """`strconv.ParseUint(text, 16, 64)`; ValueError with Go's words."""
    try:
        return go_values.parse_integer(text, 16, minimum=0, maximum=UINT64_MAX)
    except ValueError as error:
        raise ValueError(f"strconv.ParseUint: parsing {go_values.quote(text)}: {error}") from None


def parse_bool(text: str) -> bool:
    """`strconv.ParseBool`; ValueError with Go's words."""
    try:
        return go_values.parse_bool(text)
    except ValueError as error:
        raise ValueError(f"strconv.ParseBool: parsing {go_values.quote(text)}: {error}") from None


def parse_duration(text: str) -> float:
    """`time.ParseDuration`, in seconds; ValueError with Go's words."""
    return go_values.parse_duration(text) / 1e9


def format_duration(nanoseconds: int) -> str:
    """`time.Duration.String` of a duration that is not negative: 1.5ms, 2m3.5s."""
    if nanoseconds == 0:
        return "0s"
    for unit, size in (("ns", 1), ("µs", 1_000), ("ms", 1_000_000)):
        if nanoseconds < min(size * 1000, 1_000_000_000):
            return _decimal(nanoseconds, size) + unit
    minutes, rest = divmod(nanoseconds, 60_000_000_000)
    text = _decimal(rest, 1_000_000_000) + "s"
    if minutes:
        text = f"{minutes % 60}m{text}"
    return f"{minutes // 60}h{text}" if minutes >= 60 else text


def path_error(operation: str, error: OSError) -> str:
    """`fs.PathError`: `open a/b: no such file or directory`. An empty operation is left out."""
    text = error.strerror or str(error)
    name = os.fsdecode(error.filename) if error.filename is not None else ""
    what = " ".join(filter(None, (operation, name)))
    text = text[:1].lower() + text[1:]
    return f"{what}: {text}" if what else text


def _decimal(value: int, size: int) -> str:
    whole, rest = divmod(value, size)
    digits = str(rest).rjust(len(str(size)) - 1, "0").rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)


def format_bytes(count: int) -> str:
    """`humanize.Bytes`: 25 kB, 1.3 GB."""
    if count < 10:
        return f"{count} B"
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    exponent = int(math.log(count, 1000) + 1e-12)
    value = math.floor(count / 1000**exponent * 10 + 0.5) / 10
    return f"{value:.1f} {units[exponent]}" if value < 10 else f"{value:.0f} {units[exponent]}"


def quote(data: bytes) -> str:
    """`%q`: Go's double-quoted form of a string of any bytes."""
    return go_values.quote(data.decode("utf-8", "surrogateescape"))


_UNQUOTE = (  # compiled when first used, as in `go_values`
    r'\\(?:(?P<simple>[abfnrtv\\"])|x(?P<hex>[0-9A-Fa-f]{2})|(?P<octal>[0-3][0-7]{2})'
    r"|u(?P<short>[0-9A-Fa-f]{4})|U(?P<long>[0-9A-Fa-f]{8})|(?P<bad>.?))"
)


def unquote(text: str) -> bytes:
    """The bytes of a Go string in double quotes or backquotes; ValueError when it is none."""
    if text[:1] == text[-1:] == "`" and len(text) > 1:
        return text[1:-1].encode("utf-8", "surrogateescape")
    if not (text[:1] == text[-1:] == '"' and len(text) > 1):
        raise ValueError("invalid syntax")
    found, position, inner = bytearray(), 0, text[1:-1]
    for match in re.finditer(_UNQUOTE, inner):
        found += inner[position : match.start()].encode("utf-8", "surrogateescape")
        position = match.end()
        kind, digits = match.lastgroup, match.group(match.lastgroup or 0)
        if kind == "bad":
            raise ValueError("invalid syntax")
        if kind == "simple":
            found += _UNESCAPES[digits].encode()
        elif kind in {"hex", "octal"}:
            found.append(int(digits, 16 if kind == "hex" else 8))
        else:
            found += _rune(int(digits, 16))
    found += inner[position:].encode("utf-8", "surrogateescape")
    return bytes(found)


def _rune(code: int) -> bytes:
    try:
        return chr(code).encode()
    except (ValueError, OverflowError):  # beyond Unicode, or half of a surrogate pair
        raise ValueError("invalid syntax") from None

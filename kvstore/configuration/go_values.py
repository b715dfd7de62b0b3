"""Numbers, switches, durations, texts and URLs as Go's standard library reads them, and so etcd's flags.

Go 1.16, with which etcd 3.5.1 is built: strconv.ParseInt, strconv.ParseBool, time.ParseDuration,
net/url.Parse, net.SplitHostPort, and `%q`. Every error is a ValueError in Go's words.
"""

from __future__ import annotations

import re
from typing import NamedTuple

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
UINT64_MAX = 2**64 - 1

# Patterns are compiled when first used (`re` keeps them): most commands read hardly any value.
_DIGITS = {
    # base 0: the prefix chooses, and an underscore may separate digits, or prefix and digits
    0: r"0[xX](_?[0-9a-fA-F])+|0[bB](_?[01])+|0[oO]?(_?[0-7])+|[1-9](_?[0-9])*|0",
    10: r"[0-9]+",
    16: r"[0-9a-fA-F]+",
}
_PREFIX_BASES = {"x": 16, "b": 2, "o": 8}


def parse_integer(text: str, base: int = 0, *, minimum: int = INT64_MIN, maximum: int = INT64_MAX) -> int:
    """A number in base 0 (as in Go's source text), 10 or 16; no sign is allowed where `minimum` is 0."""
    digits = text[1:] if minimum < 0 and text[:1] in ("+", "-") else text
    if not re.fullmatch(_DIGITS[base], digits):
        raise ValueError("invalid syntax")
    digits = digits.replace("_", "")
    if base == 0 and len(digits) > 1 and digits[0] == "0":
        prefix = _PREFIX_BASES.get(digits[1].lower())
        value = int(digits, 8) if prefix is None else int(digits[2:], prefix)
    else:
        value = int(digits, base or 10)
    if text.startswith("-"):
        value = -value
    if not minimum <= value <= maximum:
        raise ValueError("value out of range")
    return value


_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


def parse_bool(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("invalid syntax")


_NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # the micro sign
    "μs": 1_000,  # the Greek letter
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_DURATION_PART = r"(?P<whole>[0-9]*)(?:\.(?P<fraction>[0-9]*))?(?P<unit>[^0-9.]*)"


def parse_duration(text: str) -> int:
    """A duration such as 1h30m, in nanoseconds."""
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0
    invalid = f"time: invalid duration {quote(text)}"
    if not rest:
        raise ValueError(invalid)
    total = 0
    while rest:
        part = re.match(_DURATION_PART, rest)
        assert part is not None, "everything in it is optional"
        whole, fraction, unit = part["whole"], part["fraction"] or "", part["unit"]
        if not whole and not fraction:
            raise ValueError(invalid)
        if not unit:
            raise ValueError(f"time: missing unit in duration {quote(text)}")
        if unit not in _NANOSECONDS:
            raise ValueError(f"time: unknown unit {quote(unit)} in duration {quote(text)}")
        size = _NANOSECONDS[unit]
        total += int(whole or "0") * size + int(fraction or "0") * size // 10 ** len(fraction)
        if total > INT64_MAX:
            raise ValueError(invalid)
        rest = rest[part.end() :]
    return -total if text.startswith("-") else total


ESCAPES = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    "\\": "\\\\",
    '"': '\\"',
}
"""What stands for a character in Go's double quotes."""
_SURROGATE_FIRST, _SURROGATE_LAST = 0xDC80, 0xDCFF  # where `surrogateescape` puts bytes that are not UTF-8


def quote(text: str) -> str:
    """`%q`: a text in double quotes; bytes that are not UTF-8 are its lone surrogates."""
    return '"' + "".join(map(_escape, text)) + '"'


def _escape(char: str) -> str:
    if char in ESCAPES:
        return ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    if _SURROGATE_FIRST <= code <= _SURROGATE_LAST:
        return f"\\x{code & 0xFF:02x}"
    if char < " " or char == "\x7f":
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if char <= "\uffff" else f"\\U{code:08x}"


class SplitUrl(NamedTuple):
    """The parts of a URL."""

    scheme: str
    """In lower case; empty without one."""
    host: str
    """Host and port as written, without percent-encoding; empty without an authority."""
    path: str
    is_plain: bool
    """It has neither user information nor query nor fragment."""


_SCHEME = r"([A-Za-z][A-Za-z0-9+.-]*):"
_USER = r"[A-Za-z0-9\-._:~!$&'()*+,;=%@]*"
_OPTIONAL_PORT = r"(:[0-9]*)?"
_HOST_CHARACTERS = r"[A-Za-z0-9\-_.~!$&'()*+,;=:\[\]<>\"\u0080-\U0010ffff]*"
_ESCAPE = r"%([0-9A-Fa-f]{2})?"


def split_url(text: str) -> SplitUrl:
    """`net/url.Parse`, as far as servers' addresses need it."""
    text, _, fragment = text.partition("#")
    try:
        return _split_url(text, plain=not fragment)
    except ValueError as error:
        raise ValueError(f"parse {quote(text)}: {error}") from None


def _split_url(text: str, *, plain: bool) -> SplitUrl:
    if any(char < " " or char == "\x7f" for char in text):
        raise ValueError("net/url: invalid control character in URL")
    found = re.match(_SCHEME, text)
    if text.startswith(":"):
        raise ValueError("missing protocol scheme")
    scheme = found[1].lower() if found else ""
    rest, mark, _ = (text[found.end() :] if found else text).partition("?")
    plain = plain and not mark
    if not rest.startswith("/"):
        if not scheme and ":" in rest.partition("/")[0]:
            raise ValueError("first path segment in URL cannot contain colon")
        return SplitUrl(scheme, "", rest if not scheme else "", plain)
    if not rest.startswith("//") or (not scheme and rest.startswith("///")):
        return SplitUrl(scheme, "", rest, plain)
    authority, slash, path = rest[2:].partition("/")
    user, at, host = authority.rpartition("@")
    if not re.fullmatch(_USER, user):
        raise ValueError("net/url: invalid userinfo")
    return SplitUrl(scheme, _read_host(host), slash + path, plain and not at)


def _read_host(text: str) -> str:
    bracketed = text.startswith("[")
    end = text.rfind("]") + 1 if bracketed else text.rfind(":")
    if bracketed and not end:
        raise ValueError("missing ']' in host")
    port = text[end:] if end >= 0 else ""
    if not re.fullmatch(_OPTIONAL_PORT, port):
        raise ValueError(f"invalid port {quote(port)} after host")
    zone = text.find("%25") if bracketed else -1
    for escape in re.finditer(_ESCAPE, text):
        # only what is not ASCII may be escaped, but for the percent sign; in a zone nearly anything
        in_zone = 0 <= zone <= escape.start()
        if escape[1] is None or (int(escape[1], 16) < 0x80 and escape[1] != "25" and not in_zone):
            raise ValueError(f"invalid URL escape {quote(text[escape.start() :][:3])}")
    bare = re.sub(_ESCAPE, "", text)
    allowed = re.match(_HOST_CHARACTERS, bare)
    assert allowed is not None, "it matches nothing at least"
    if allowed.end() < len(bare):
        raise ValueError(f"invalid character {quote(bare[allowed.end()])} in host name")
    from urllib.parse import unquote_to_bytes  # no command without a URL waits for it

    return unquote_to_bytes(text).decode("utf-8", "surrogateescape")


_HOST_PORT = r"(?:\[([^\[\]]*)\]|([^:\[\]]*)):([^:\[\]]*)"


def split_host_port(text: str) -> tuple[str, str] | None:
    """`net.SplitHostPort`: the host, without the brackets of IPv6, and the port; None for another form."""
    found = re.fullmatch(_HOST_PORT, text)
    if found is None:
        return None
    bracketed, plain, port = found.groups()
    return plain if bracketed is None else bracketed, port

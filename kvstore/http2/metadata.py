"""gRPC's header fields: timeouts, status messages, and metadata of text and of bytes."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from kvstore.http2.engine import Header
from kvstore.http2.status import malformed_timeout, quoted

TIMEOUT_UNITS = {
    ord("H"): 3600.0,
    ord("M"): 60.0,
    ord("S"): 1.0,
    ord("m"): 1e-3,
    ord("u"): 1e-6,
    ord("n"): 1e-9,
}
TIMEOUT_LENGTH_MAX = 9
"""Eight digits and the unit, as gRPC allows."""

_ENCODED = re.compile(rb"[^\x20-\x24\x26-\x7e]")
"""Bytes of a status message that travel as %XX: the percent sign, and what is no printable ASCII."""


def parse_timeout(value: bytes) -> float:
    """Seconds of a `grpc-timeout`. Raises StatusError."""
    unit = TIMEOUT_UNITS.get(value[-1]) if value else None
    digits = value[:-1]
    if unit is None or not digits.isdigit() or len(value) > TIMEOUT_LENGTH_MAX:
        raise malformed_timeout(_why(value))
    return int(digits) * unit


def _why(value: bytes) -> str:
    if len(value) < 2:
        return f"transport: timeout string is too short: {quoted(value)}"
    if len(value) > TIMEOUT_LENGTH_MAX:
        return f"transport: timeout string is too long: {quoted(value)}"
    if value[-1] not in TIMEOUT_UNITS:
        return f"transport: timeout unit is not recognized: {quoted(value)}"
    return f"strconv.ParseInt: parsing {quoted(value[:-1])}: invalid syntax"


def format_timeout(seconds: float) -> bytes:
    """A `grpc-timeout` of at least so many seconds, in the finest unit that has the digits."""
    left = max(0.0, seconds)
    for unit, scale in ((b"u", 1e6), (b"m", 1e3), (b"S", 1.0), (b"M", 1 / 60)):
        count = int(left * scale)
        if count < 10**8 - 1:
            return b"%d%b" % (count + (count < left * scale), unit)
    return b"%dH" % min(int(left / 3600) + 1, 10**8 - 1)


@lru_cache(maxsize=256)
def encode_message(text: str) -> bytes:
    """The value of `grpc-message`."""
    return _ENCODED.sub(lambda match: b"%%%02X" % match.group()[0], text.encode("utf-8", "replace"))


def decode_message(value: bytes) -> str:
    """The text of a `grpc-message`; what is not encoded as it should be stays as it is."""
    plain = re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes.fromhex(match.group(1).decode()), value)
    return plain.decode("utf-8", "replace")


def is_grpc(content_type: bytes) -> bool:
    """`application/grpc`, alone or with a subtype or parameters."""
    return content_type == b"application/grpc" or content_type.startswith(
        (b"application/grpc+", b"application/grpc;")
    )


def _is_reserved(name: bytes) -> bool:
    reserved = name.startswith((b":", b"grpc-")) or name in (b"content-type", b"te", b"user-agent")
    return reserved and name != b"grpc-tags-bin"


def decode_metadata(headers: Iterable[Header]) -> Iterator[tuple[str, str | bytes]]:
    """Metadata of a call, in order; values of `-bin` keys as bytes. Undecodable ones are left out."""
    for name, value in headers:
        if _is_reserved(name):
            continue
        key = name.decode("ascii", "replace")
        if not name.endswith(b"-bin"):
            yield key, value.decode("ascii", "replace")
            continue
        for part in value.split(b","):  # several values may be joined into one field
            try:
                yield key, decode_binary(part)
            except ValueError:
                continue


def decode_binary(value: bytes) -> bytes:
    """The bytes of a `-bin` value, padded or not. Raises ValueError."""
    value = value.strip(b" ").rstrip(b"=")
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def encode_metadata(pairs: Iterable[tuple[str, str | bytes]]) -> list[Header]:
    """Header fields of metadata; bytes need a key that ends in `-bin`."""
    found = []
    for key, value in pairs:
        name = key.encode("ascii")
        if isinstance(value, bytes):
            assert name.endswith(b"-bin"), key
            found.append((name, base64.b64encode(value).rstrip(b"=")))
        else:
            found.append((name, value.encode("ascii", "replace")))
    return found

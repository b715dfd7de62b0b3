"""How a call ends: gRPC's codes, and the texts of what this package refuses by itself.

The texts are those of grpc-go, which etcd's clients know, in the release that etcd 3.5 has; where that one
resets the stream without a word, those of its later releases.
"""

from __future__ import annotations

OK = 0
CANCELLED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
RESOURCE_EXHAUSTED = 8
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14

DEADLINE_TEXT = "context deadline exceeded"
TRUNCATED_TEXT = "unexpected EOF"


class StatusError(Exception):
    """A call ends with this status; for what concerns no handler."""

    def __init__(self, code: int, text: str, http_status: bytes = b"200") -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.http_status = http_status
        """Other than 200 for what is no gRPC at all."""


def too_large(nbytes: int, limit: int) -> StatusError:
    """A message, as received or decompressed."""
    text = f"grpc: received message larger than max ({nbytes} vs. {limit})"
    return StatusError(RESOURCE_EXHAUSTED, text)


def quoted(value: bytes) -> str:
    """As Go prints a string with %q, for values that are text."""
    text = value.decode("utf-8", "replace").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def unknown_path(path: bytes, services: frozenset[bytes]) -> StatusError:
    """No method has this path."""
    service, slash, name = path.removeprefix(b"/").rpartition(b"/")
    if not slash:
        return StatusError(RESOURCE_EXHAUSTED, f"malformed method name: {quoted(path)}")
    if service in services:
        return StatusError(UNIMPLEMENTED, f"unknown method {_text(name)} for service {_text(service)}")
    return StatusError(UNIMPLEMENTED, f"unknown service {_text(service)}")


def not_installed(encoding: bytes) -> StatusError:
    """A compression that is not supported."""
    text = f"grpc: Decompressor is not installed for grpc-encoding {quoted(encoding)}"
    return StatusError(UNIMPLEMENTED, text)


def wrong_content_type(value: bytes) -> StatusError:
    return StatusError(INVALID_ARGUMENT, f"invalid gRPC request content-type {quoted(value)}", b"415")


def wrong_method(value: bytes) -> StatusError:
    text = f"Received a HEADERS frame with :method {quoted(value)} which should be POST"
    return StatusError(INTERNAL, text, b"405")


def malformed_timeout(why: str) -> StatusError:
    return StatusError(INTERNAL, f"malformed grpc-timeout: {why}", b"400")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")

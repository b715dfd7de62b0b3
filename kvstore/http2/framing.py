"""gRPC's messages in the data of a stream: a flag, four bytes of length, the message.

Messages and DATA frames are independent: a frame may hold many messages, a message may take many frames.
"""

from __future__ import annotations

import zlib

from kvstore.http2.status import INTERNAL, StatusError, not_installed, too_large

PREFIX_BYTES = 5
IDENTITY, GZIP = b"identity", b"gzip"
ENCODINGS = frozenset((b"", IDENTITY, GZIP))
"""Of received messages; what is sent is never compressed."""
ACCEPTED = b"identity,gzip"
"""The value of `grpc-accept-encoding`."""

_GZIP_BITS = 31  # zlib's spelling of "with gzip's header and trailer"
_GZIP_HEADER_BYTES = 10
_GZIP_MAGIC = b"\x1f\x8b\x08"


def check_encoding(encoding: bytes) -> None:
    """Raise StatusError for a `grpc-encoding` that is not supported."""
    if encoding not in ENCODINGS:
        raise not_installed(encoding)


def prefix(nbytes: int) -> bytes:
    """What stands before an uncompressed message."""
    return nbytes.to_bytes(PREFIX_BYTES, "big")


class MessageReader:
    """Takes the data of one stream apart into messages.

    Holds at most one incomplete message. A message that is longer than `limit`, as received or decompressed,
    raises StatusError as soon as that is known, and so does anything malformed; the reader is of no use then.
    """

    __slots__ = ("_encoding", "_head", "_limit", "_missing", "_parts", "nbytes")

    def __init__(self, limit: int, encoding: bytes) -> None:
        self._limit = limit
        self._encoding = encoding
        self._head = b""
        """Of the incomplete message, its prefix as far as it came. Complete while `_missing` is not None."""
        self._missing: int | None = None
        """Bytes of the message that are still to come; None before its prefix is complete."""
        self._parts: list[bytes] = []
        self.nbytes = 0
        """Of the incomplete message, prefix included; 0 between messages."""

    def feed(self, data: bytes) -> list[tuple[bytes, int]]:
        """The messages that `data` completes, each with its size on the wire."""
        found: list[tuple[bytes, int]] = []
        position, size = 0, len(data)
        while True:
            if self._missing is None:
                wanted = PREFIX_BYTES - len(self._head)
                self._head += data[position : position + wanted]
                self.nbytes += min(wanted, size - position)
                position += wanted
                if len(self._head) < PREFIX_BYTES:
                    return found
                self._missing = self._checked_length()
            part = data[position : position + self._missing]  # the whole message, if it came in one frame
            position += len(part)
            self._missing -= len(part)
            self.nbytes += len(part)
            if self._missing:
                if part:
                    self._parts.append(part)
                return found
            found.append((self._complete(part), self.nbytes))
            self.nbytes = 0

    def _checked_length(self) -> int:
        length = int.from_bytes(self._head[1:], "big")
        if length > self._limit:
            raise too_large(length, self._limit)
        flag = self._head[0]
        if flag > 1:
            raise StatusError(INTERNAL, f"grpc: received unexpected payload format {flag}")
        if flag and self._encoding != GZIP:
            raise StatusError(INTERNAL, "grpc: compressed flag set with identity or empty encoding")
        return length

    def _complete(self, part: bytes) -> bytes:
        if self._parts:
            self._parts.append(part)
            part = b"".join(self._parts)
            self._parts.clear()
        is_compressed = self._head[0]
        self._head, self._missing = b"", None
        return gunzip(part, self._limit) if is_compressed else part


def gunzip(data: bytes, limit: int) -> bytes:
    """Decompress a message, of one or more members. Raises StatusError."""
    if not data:
        raise _not_decompressed("EOF")
    if len(data) < _GZIP_HEADER_BYTES:
        raise _not_decompressed("unexpected EOF")
    if not data.startswith(_GZIP_MAGIC):
        raise _not_decompressed("gzip: invalid header")
    claimed = int.from_bytes(data[-4:], "little")  # of the last member
    if claimed > limit:
        raise too_large(claimed, limit)
    found: list[bytes] = []
    nbytes = 0
    while data:
        member = zlib.decompressobj(_GZIP_BITS)
        try:
            part = member.decompress(data, limit + 1 - nbytes)
        except zlib.error as error:
            why = "gzip: invalid checksum" if "check" in str(error) else "flate: corrupt input"
            raise _not_decompressed(why) from None
        nbytes += len(part)
        if nbytes > limit:
            raise too_large(nbytes, limit)
        if not member.eof:
            raise _not_decompressed("unexpected EOF")
        found.append(part)
        data = member.unused_data
    return b"".join(found)


def _not_decompressed(why: str) -> StatusError:
    return StatusError(INTERNAL, f"grpc: failed to decompress the received message {why}")

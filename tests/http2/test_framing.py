"""Messages in the data of a stream, however frames divide them."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.http2.framing import GZIP, MessageReader, check_encoding, gunzip, prefix
from kvstore.http2.status import StatusError
from tests.http2.raw import framed

LIMIT = 1000


@given(
    messages=st.lists(st.tuples(st.binary(max_size=60), st.booleans()), max_size=8),
    sizes=st.lists(st.integers(1, 40), max_size=60),
    rest=st.integers(0, 20),
)
def test_messages_come_out_as_they_went_in(
    messages: list[tuple[bytes, bool]], sizes: list[int], rest: int
) -> None:
    wire = [framed(gzip.compress(data), 1) if packed else framed(data) for data, packed in messages]
    data = b"".join(wire) + framed(bytes(20))[:rest]
    reader = MessageReader(LIMIT, GZIP)
    found: list[tuple[bytes, int]] = []
    position = 0
    for step in [*sizes, len(data)]:
        found += reader.feed(data[position : position + step])
        position += step
        assert sum(nbytes for _, nbytes in found) + reader.nbytes == min(position, len(data))
    assert found == [(data, len(whole)) for (data, _), whole in zip(messages, wire, strict=True)]
    assert reader.nbytes == rest


def test_the_prefix_is_that_of_an_uncompressed_message() -> None:
    assert prefix(0x01020304) == b"\0\1\2\3\4"
    assert MessageReader(LIMIT, b"").feed(prefix(0) + prefix(1) + b"x") == [(b"", 5), (b"x", 6)]


def test_a_length_beyond_the_limit_is_refused_before_its_bytes_come() -> None:
    assert MessageReader(LIMIT, b"").feed(prefix(LIMIT)) == []
    with pytest.raises(StatusError, match=r"larger than max \(1001 vs. 1000\)"):
        MessageReader(LIMIT, b"").feed(prefix(LIMIT + 1))


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1, 10 * LIMIT])
def test_decompression_is_bounded(size: int) -> None:
    packed = gzip.compress(bytes(size))
    understated = packed[:-4] + bytes(4)  # claims to be empty
    if size > LIMIT:
        with pytest.raises(StatusError, match="larger than max"):
            gunzip(packed, LIMIT)
        with pytest.raises(StatusError, match=r"larger than max \(1001 vs|invalid checksum"):
            gunzip(understated, LIMIT)
    else:
        assert gunzip(packed, LIMIT) == bytes(size)
        with pytest.raises(StatusError, match=r"gzip: invalid checksum|corrupt"):
            gunzip(understated, LIMIT)


@pytest.mark.parametrize(
    "packed",
    [gzip.compress(b"x") + b"rubbish-of-any-kind\0\0\0\0", zlib.compress(b"x" * 99)],
    ids=["trailing rubbish", "zlib"],
)
def test_what_is_no_gzip_is_refused(packed: bytes) -> None:
    with pytest.raises(StatusError, match="failed to decompress the received message"):
        gunzip(packed, LIMIT)


def test_encodings() -> None:
    for encoding in (b"", b"identity", b"gzip"):
        check_encoding(encoding)
    with pytest.raises(StatusError, match='not installed for grpc-encoding "zstd"'):
        check_encoding(b"zstd")

"""Header fields of gRPC."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.http2.metadata import (
    decode_binary,
    decode_message,
    decode_metadata,
    encode_message,
    encode_metadata,
    format_timeout,
    is_grpc,
    parse_timeout,
)
from kvstore.http2.status import StatusError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"3S", 3.0),
        (b"4m", 0.004),
        (b"5u", 5e-6),
        (b"6n", 6e-9),
        (b"99999999S", 99_999_999.0),
        (b"0S", 0.0),
    ],
)
def test_timeouts_are_read(text: bytes, seconds: float) -> None:
    assert parse_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", [b"", b"S", b"1", b"1x", b"-1S", b"+1S", b" 1S", b"1_0S", b"1.5S", b"100000000S"]
)
def test_what_is_no_timeout_is_refused(text: bytes) -> None:
    with pytest.raises(StatusError, match="malformed grpc-timeout"):
        parse_timeout(text)


@given(st.floats(min_value=-1.0, max_value=1e12))
def test_a_written_timeout_is_never_shorter_and_hardly_longer(seconds: float) -> None:
    written = format_timeout(seconds)
    assert len(written) <= 9
    read = parse_timeout(written)
    assert read >= min(seconds, 99_999_999 * 3600.0) - 1e-6
    assert read <= max(seconds, 0.0) * (1 + 1e-5) + 3600.0 * (seconds > 1e9) + 1e-5


@given(st.text())
def test_status_messages_travel_as_printable_ascii(text: str) -> None:
    wire = encode_message(text)
    assert all(0x20 <= byte <= 0x7E for byte in wire)
    assert decode_message(wire) == text.encode("utf-8", "replace").decode()


def test_status_messages_that_are_plain_stay_as_they_are() -> None:
    plain = "etcdserver: mvcc: required revision has been compacted"
    assert encode_message(plain) == plain.encode()
    assert decode_message(b"100%") == "100%"


@given(st.lists(st.tuples(st.sampled_from(["a-bin", "b-bin"]), st.binary()), max_size=5))
def test_bytes_survive(pairs: list[tuple[str, bytes]]) -> None:
    assert list(decode_metadata(encode_metadata(pairs))) == pairs


def test_reserved_names_are_no_metadata() -> None:
    fields = [(b":path", b"/x"), (b"grpc-timeout", b"1S"), (b"te", b"trailers"), (b"content-type", b"x")]
    fields += [(b"user-agent", b"x"), (b"grpc-encoding", b"gzip"), (b"a", b"b")]
    assert list(decode_metadata(fields)) == [("a", "b")]


def test_binary_values_padded_and_not() -> None:
    assert decode_binary(b"AP8=") == decode_binary(b"AP8") == decode_binary(b" AP8") == b"\x00\xff"
    for wrong in (b"*", b"A", b"AP8!"):
        with pytest.raises(ValueError, match=r"\w"):
            decode_binary(wrong)


def test_content_types() -> None:
    for fine in (b"application/grpc", b"application/grpc+proto", b"application/grpc;x=1"):
        assert is_grpc(fine)
    for wrong in (b"", b"application/json", b"application/grpc-web", b"application/grpcx"):
        assert not is_grpc(wrong)

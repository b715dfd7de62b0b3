"""The bytes of an entry survive the round trip, and nothing else is mistaken for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.node.envelope import EnvelopeError, decode_envelope, encode_envelope

ids = st.integers(min_value=0, max_value=2**64 - 1)


@given(ids, ids, ids, st.lists(st.binary(max_size=50), min_size=1, max_size=20))
def test_round_trip(member_id: int, incarnation: int, counter: int, commands: list[bytes]) -> None:
    data = encode_envelope(member_id, incarnation, counter, commands)
    assert len(data) == 29 + sum(4 + len(command) for command in commands)
    assert decode_envelope(data) == (member_id, incarnation, counter, commands)


def test_every_truncation_and_any_excess_is_refused() -> None:
    data = encode_envelope(1, 2, 3, [b"one", b"", b"three"])
    for end in range(len(data)):
        with pytest.raises(EnvelopeError):
            decode_envelope(data[:end])
    with pytest.raises(EnvelopeError):
        decode_envelope(data + b"x")


def test_unknown_version_is_refused() -> None:
    data = bytearray(encode_envelope(1, 2, 3, [b"x"]))
    data[0] += 1
    with pytest.raises(EnvelopeError, match="version"):
        decode_envelope(bytes(data))

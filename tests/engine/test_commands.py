"""The envelope: every command survives it, and no broken bytes decode to something else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.engine import (
    Alarm,
    Checkpoint,
    CommandError,
    Compact,
    Compare,
    DeleteRange,
    LeaseCheckpoint,
    LeaseExpire,
    LeaseGrant,
    LeaseRevoke,
    Put,
    Range,
    SetMemberAttributes,
    Txn,
    decode,
    encode,
)

int64 = st.integers(-(2**63), 2**63 - 1)
int32 = st.integers(-(2**31), 2**31 - 1)
uint64 = st.integers(0, 2**64 - 1)
data = st.binary(max_size=20)
flag = st.booleans()


def make(kind, *fields):
    """Draws exactly these fields: `builds` would draw those with defaults too, of any size."""
    return st.tuples(*fields).map(lambda drawn: kind(*drawn))


def several(strategy, most: int = 3):
    return st.lists(strategy, max_size=most).map(tuple)


puts = make(Put, data, data, int64, flag, flag, flag)
deletes = make(DeleteRange, data, data, flag)
ranges = make(Range, data, data, int64, int64, int32, int32, flag, flag, int64, int64, int64, int64, flag)
gets = make(Range, data, data)
compares = make(Compare, data, int32, int32, int64 | data, data)
operations = st.recursive(
    puts | deletes | ranges | gets,
    lambda inner: make(Txn, several(compares), several(inner), several(inner)),
    max_leaves=10,
)
txns = make(Txn, several(compares), several(operations), several(operations))
others = (
    make(Compact, int64, flag, flag)
    | make(SetMemberAttributes, uint64, st.text(max_size=9), several(st.text(max_size=9)))
    | make(Alarm, int32, uint64, int32)
    | make(LeaseGrant, int64, int64)
    | make(LeaseRevoke, int64)
    | make(LeaseExpire, uint64, int64, uint64)
    | make(LeaseCheckpoint, uint64, several(make(Checkpoint, int64, uint64, int64)))
)
commands = puts | deletes | txns | others


@given(commands)
def test_a_command_survives_the_envelope(command) -> None:
    encoded = encode(command)
    assert encoded[0] == 1
    decoded = decode(encoded)
    assert decoded == command
    assert type(decoded) is type(command)
    assert decode(memoryview(encoded)) == command


@given(txns | others, st.data())
def test_a_truncated_command_is_refused(command, draw) -> None:
    encoded = encode(command)
    end = draw.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(CommandError):
        decode(encoded[:end])


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_raise_the_one_error(noise) -> None:
    for prefix in (b"", *(bytes((1, kind)) for kind in range(8))):
        try:
            command = decode(prefix + noise)
        except CommandError:
            continue
        assert decode(encode(command)) == command


def test_the_bytes_are_pinned() -> None:
    """These are in logs on disk: a change here is a new version, never an edit."""
    assert encode(Put(b"k", b"v", 5, True)).hex() == "0101" + "01" + "0000000000000005" + "00000001" + "6b76"
    assert encode(DeleteRange(b"k", b"l")).hex() == "0102" + "00" + "00000001" + "6b6c"
    assert encode(Compact(7, True)).hex() == "0104" + "0000000000000007" + "01"
    assert encode(Compact(7, True, resume=True)).hex() == "0104" + "0000000000000007" + "03"
    compare = "0000001b0000000300000001010000000000000000000000016b0000000076"
    put = "01" + "0000000f" + "00" + "0000000000000000" + "00000001" + "6b76"
    txn = "0103" + "00000001" + "00000001" + "00000000" + compare + put
    assert encode(Txn((Compare(b"k", 3, 1, b"v"),), (Put(b"k", b"v"),))).hex() == txn


@pytest.mark.parametrize("request_", [Txn((), (None,)), object(), None])
def test_what_is_no_command_cannot_be_encoded(request_) -> None:
    with pytest.raises(TypeError):
        encode(request_)


def test_nesting_has_an_end() -> None:
    txn = Txn()
    for _ in range(140):
        txn = Txn((), (txn,))
    with pytest.raises(CommandError, match="too deep"):
        decode(encode(txn))

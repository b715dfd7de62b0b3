"""Encoding is exact both ways, and bytes of another protocol are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.core.messages import Message, MessageType
from raft.core.types import ConfState, Entry, EntryKind, SnapshotMeta
from raft.transport import codec
from raft.transport.transport_protocol import (
    ChangeRefusal,
    ChangeReply,
    ChangeRequest,
    ForwardedBatch,
    ForwardRefused,
    Handshake,
    HandshakeReply,
    LeaderReply,
    LeaderRequest,
    ReplicaRecorded,
)
from raft.transport.wire import peer_pb2 as wire

U64 = st.integers(0, 2**64 - 1)
IDS = st.lists(U64, max_size=3).map(tuple)
ENTRIES = st.builds(Entry, U64, U64, st.sampled_from(EntryKind), st.binary(max_size=40))
CONFS = st.builds(ConfState, IDS, IDS, IDS, IDS, st.booleans())
RAFT = st.builds(
    Message,
    type=st.sampled_from([kind for kind in MessageType if kind is not MessageType.PROPOSE]),
    to=U64,
    from_=U64,
    term=U64,
    log_term=U64,
    index=U64,
    entries=st.lists(ENTRIES, max_size=3).map(tuple),
    commit=U64,
    reject=st.booleans(),
    reject_hint=U64,
    context=U64,
    snapshot=st.none() | st.builds(SnapshotMeta, U64, U64, CONFS),
)
MESSAGES = st.one_of(
    RAFT,
    st.builds(ForwardedBatch, U64, U64, U64, st.binary(max_size=40)),
    st.builds(ForwardRefused, U64, U64, U64),
    st.builds(ReplicaRecorded, U64),
    st.builds(LeaderRequest, U64, U64, st.binary(max_size=40)),
    st.builds(LeaderReply, U64, U64, st.binary(max_size=40)),
    st.builds(ChangeRequest, U64, U64, U64, st.sampled_from(EntryKind), st.binary(max_size=40)),
    st.builds(ChangeReply, U64, U64, U64, U64, st.sampled_from(ChangeRefusal)),
)
HANDSHAKES = st.builds(
    Handshake,
    format_version=st.integers(0, 2**32 - 1),
    cluster_id=U64,
    member_id=U64,
    disk_id=U64,
    incarnation=U64,
)


@given(st.lists(MESSAGES, max_size=5))
def test_messages_survive_the_wire_in_order(messages: list[object]) -> None:
    assert codec.decode_frame(codec.encode_frame(messages)) == messages


@given(RAFT)
def test_types_survive_too(message: Message) -> None:
    (decoded,) = codec.decode_frame(codec.encode_frame([message]))
    assert isinstance(decoded, Message)
    assert type(decoded.type) is MessageType
    assert all(type(entry) is Entry and type(entry.kind) is EntryKind for entry in decoded.entries)
    assert decoded.snapshot is None or type(decoded.snapshot.conf) is ConfState


REFUSAL_CODES = {
    ChangeRefusal.NOT_APPENDED: 1,
    ChangeRefusal.LEARNER_NOT_READY: 2,
    ChangeRefusal.DOES_NOT_FIT: 3,
}


@pytest.mark.parametrize("reason", ChangeRefusal)
def test_membership_changes_keep_the_shape_that_the_previous_version_reads(reason: ChangeRefusal) -> None:
    """It sends and expects a PROPOSE message: one entry, or a refusal with its code in `reject_hint`."""
    request = wire.Message(type=15, to=2, term=7, entries=[wire.Entry(kind=2, data=b"change")])
    refusal = wire.Message(type=15, to=2, term=7, reject=True, reject_hint=REFUSAL_CODES[reason], context=9)
    for message in (request, refusal):
        setattr(message, "from", 1)
    frame = wire.Frame(messages=[wire.PeerMessage(raft=request), wire.PeerMessage(raft=refusal)])
    changes = [ChangeRequest(2, 1, 7, EntryKind(2), b"change"), ChangeReply(2, 1, 7, 9, reason)]
    assert codec.decode_frame(frame.SerializeToString()) == changes
    assert codec.encode_frame(changes) == frame.SerializeToString()


def test_a_refusal_with_an_unknown_code_is_final() -> None:
    refusal = wire.PeerMessage(raft=wire.Message(type=15, reject=True, reject_hint=99))
    (decoded,) = codec.decode_frame(wire.Frame(messages=[refusal]).SerializeToString())
    assert isinstance(decoded, ChangeReply)
    assert decoded.reason is ChangeRefusal.DOES_NOT_FIT


@given(HANDSHAKES, st.booleans(), st.text(max_size=30))
def test_handshakes_survive_the_wire(handshake: Handshake, known: bool, refusal: str) -> None:
    assert codec.decode_handshake(codec.encode_handshake(handshake)) == handshake
    assert codec.decode_opening(codec.encode_opening(handshake)) == handshake
    answer = HandshakeReply(handshake=handshake, earlier_disk_known=known, refusal=refusal)
    assert codec.decode_answer(codec.encode_answer(answer)) == answer


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff",
        wire.Frame(messages=[wire.PeerMessage()]).SerializeToString(),
        wire.Frame(messages=[wire.PeerMessage(raft=wire.Message(type=99))]).SerializeToString(),
        wire.Frame(
            messages=[wire.PeerMessage(raft=wire.Message(type=1, entries=[wire.Entry(kind=9)]))]
        ).SerializeToString(),
        wire.Frame(messages=[wire.PeerMessage(raft=wire.Message(type=15))]).SerializeToString(),
    ],
    ids=["garbage", "no kind", "unknown type", "unknown entry kind", "a change without an entry"],
)
def test_third_party_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(codec.Malformed):
        codec.decode_frame(data)


def test_a_stream_must_begin_with_a_handshake() -> None:
    with pytest.raises(codec.Malformed):
        codec.decode_opening(codec.encode_frame([]))


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        messages = codec.decode_frame(data)
    except codec.Malformed:
        return
    assert codec.decode_frame(codec.encode_frame(messages)) == messages

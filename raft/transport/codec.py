"""Peer messages to bytes and back. The only module that touches the generated messages.

Decoding returns exactly what was encoded. Other bytes raise `Malformed`; unknown fields are skipped, unknown
kinds of message are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError

from raft.core.messages import Message, MessageType
from raft.core.types import ConfState, Entry, EntryKind, SnapshotMeta
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
    PeerMessage,
    ReplicaRecorded,
    SnapshotChunk,
    SnapshotOffer,
    SnapshotOpening,
    SnapshotStatus,
)
from raft.transport.wire import peer_pb2 as wire

_Wire = TypeVar(
    "_Wire",
    wire.Handshake,
    wire.HandshakeReply,
    wire.Description,
    wire.Frame,
    wire.SnapshotFrame,
    wire.SnapshotStatus,
)
_MESSAGE_TYPES = {int(member): member for member in MessageType}
_ENTRY_KINDS = {int(member): member for member in EntryKind}
_REFUSAL_CODES = {
    ChangeRefusal.NOT_APPENDED: 1,
    ChangeRefusal.LEARNER_NOT_READY: 2,
    ChangeRefusal.DOES_NOT_FIT: 3,
}
"""A refusal travels in `reject_hint` of a PROPOSE message: the shape that every version understands."""
_REFUSALS = {code: reason for reason, code in _REFUSAL_CODES.items()}


class Malformed(ValueError):
    """Bytes from a peer that do not follow the protocol."""


def encode_handshake(handshake: Handshake) -> bytes:
    return _handshake_to_wire(handshake).SerializeToString()


def decode_handshake(data: bytes) -> Handshake:
    return _handshake_from_wire(_parse(wire.Handshake(), data))


def encode_opening(handshake: Handshake) -> bytes:
    return wire.Frame(handshake=_handshake_to_wire(handshake)).SerializeToString()


def decode_opening(data: bytes) -> Handshake:
    frame = _parse(wire.Frame(), data)
    if not frame.HasField("handshake"):
        raise Malformed("a stream must begin with a handshake")
    return _handshake_from_wire(frame.handshake)


def encode_answer(answer: HandshakeReply) -> bytes:
    return wire.HandshakeReply(
        handshake=_handshake_to_wire(answer.handshake),
        earlier_disk_known=answer.earlier_disk_known,
        refusal=answer.refusal,
        removed=answer.removed,
    ).SerializeToString()


def decode_answer(data: bytes) -> HandshakeReply:
    answer = _parse(wire.HandshakeReply(), data)
    return HandshakeReply(
        handshake=_handshake_from_wire(answer.handshake),
        earlier_disk_known=answer.earlier_disk_known,
        refusal=answer.refusal,
        removed=answer.removed,
    )


def encode_description(data: bytes) -> bytes:
    """Encode the description of the cluster for a joining process; opaque here."""
    return wire.Description(data=data).SerializeToString()


def decode_description(data: bytes) -> bytes:
    return _parse(wire.Description(), data).data


def encode_frame(messages: Iterable[PeerMessage]) -> bytes:
    """Encode any number of messages as one frame, in order."""
    frame = wire.Frame()
    add = frame.messages.add
    for message in messages:
        if isinstance(message, Message):
            _fill_message(add().raft, message)
        elif isinstance(message, ForwardedBatch):
            batch = add().batch
            batch.term, batch.incarnation, batch.counter = message.term, message.incarnation, message.counter
            batch.data = message.data
        elif isinstance(message, ReplicaRecorded):
            add().replica_recorded.disk_id = message.disk_id
        elif isinstance(message, (LeaderRequest, LeaderReply)):
            target = add().leader_request if isinstance(message, LeaderRequest) else add().leader_reply
            target.incarnation, target.number, target.data = message.incarnation, message.number, message.data
        elif isinstance(message, (ChangeRequest, ChangeReply)):
            _fill_message(add().raft, _change_to_message(message))
        else:
            refused = add().refused
            refused.term, refused.incarnation, refused.counter = (
                message.term,
                message.incarnation,
                message.counter,
            )
    return frame.SerializeToString()


def decode_frame(data: bytes) -> list[PeerMessage]:
    """Decode a frame; raises Malformed for bytes that are no frame or a kind this code does not know."""
    decoded: list[PeerMessage] = []
    for item in _parse(wire.Frame(), data).messages:
        kind = item.WhichOneof("kind")
        if kind == "raft":
            raft = _message_from_wire(item.raft)
            decoded.append(raft if raft.type is not MessageType.PROPOSE else _change_from_message(raft))
        elif kind == "batch":
            batch = item.batch
            decoded.append(ForwardedBatch(batch.term, batch.incarnation, batch.counter, batch.data))
        elif kind == "refused":
            refused = item.refused
            decoded.append(ForwardRefused(refused.term, refused.incarnation, refused.counter))
        elif kind == "replica_recorded":
            decoded.append(ReplicaRecorded(item.replica_recorded.disk_id))
        elif kind == "leader_request":
            decoded.append(
                LeaderRequest(
                    item.leader_request.incarnation, item.leader_request.number, item.leader_request.data
                )
            )
        elif kind == "leader_reply":
            decoded.append(
                LeaderReply(item.leader_reply.incarnation, item.leader_reply.number, item.leader_reply.data)
            )
        else:
            raise Malformed("a peer message of no known kind")
    return decoded


def encode_snapshot_frame(frame: SnapshotOpening | SnapshotChunk) -> bytes:
    if isinstance(frame, SnapshotChunk):
        chunk = wire.SnapshotChunk(offset=frame.offset, crc32c=frame.crc32c, data=frame.data)
        return wire.SnapshotFrame(chunk=chunk).SerializeToString()
    offer = frame.offer
    opening = wire.SnapshotOpening(
        handshake=_handshake_to_wire(frame.handshake), size_bytes=offer.size_bytes, sha256=offer.sha256
    )
    _fill_message(opening.message, offer.message)
    return wire.SnapshotFrame(opening=opening).SerializeToString()


def decode_snapshot_frame(data: bytes) -> SnapshotOpening | SnapshotChunk:
    """Raises Malformed."""
    frame = _parse(wire.SnapshotFrame(), data)
    if frame.HasField("chunk"):
        return SnapshotChunk(frame.chunk.offset, frame.chunk.crc32c, frame.chunk.data)
    opening = frame.opening
    message = _message_from_wire(opening.message)
    if message.type is not MessageType.SNAPSHOT or message.snapshot is None:
        raise Malformed("a snapshot must come with its SNAPSHOT message")
    return SnapshotOpening(
        _handshake_from_wire(opening.handshake), SnapshotOffer(message, opening.size_bytes, opening.sha256)
    )


def encode_snapshot_status(status: SnapshotStatus) -> bytes:
    return wire.SnapshotStatus(
        offset=status.offset, done=status.done, refusal=status.refusal
    ).SerializeToString()


def decode_snapshot_status(data: bytes) -> SnapshotStatus:
    """Raises Malformed."""
    status = _parse(wire.SnapshotStatus(), data)
    return SnapshotStatus(status.offset, status.done, status.refusal)


def _parse(empty: _Wire, data: bytes) -> _Wire:
    try:
        empty.ParseFromString(data)
    except DecodeError as error:
        raise Malformed(f"bytes that are no {type(empty).__name__}") from error
    return empty


def _handshake_to_wire(handshake: Handshake) -> wire.Handshake:
    return wire.Handshake(
        format_version=handshake.format_version,
        cluster_id=handshake.cluster_id,
        member_id=handshake.member_id,
        disk_id=handshake.disk_id,
        incarnation=handshake.incarnation,
        urls=handshake.urls,
    )


def _handshake_from_wire(handshake: wire.Handshake) -> Handshake:
    return Handshake(
        format_version=handshake.format_version,
        cluster_id=handshake.cluster_id,
        member_id=handshake.member_id,
        disk_id=handshake.disk_id,
        incarnation=handshake.incarnation,
        urls=tuple(handshake.urls),
    )


def _fill_message(target: wire.Message, message: Message) -> None:
    """Set the fields that differ from zero: most messages use half of them, and each assignment costs."""
    target.type = message.type
    target.to = message.to
    setattr(target, "from", message.from_)  # a keyword in Python, the paper's word on the wire
    target.term = message.term
    if message.log_term:
        target.log_term = message.log_term
    if message.index:
        target.index = message.index
    if message.commit:
        target.commit = message.commit
    if message.reject:
        target.reject = True
    if message.reject_hint:
        target.reject_hint = message.reject_hint
    if message.context:
        target.context = message.context
    for term, index, kind, data in message.entries:
        target.entries.add(term=term, index=index, kind=kind, data=data)
    if message.snapshot is not None:
        snapshot = message.snapshot
        target.snapshot.index, target.snapshot.term = snapshot.index, snapshot.term
        conf = target.snapshot.conf
        conf.voters.extend(snapshot.conf.voters)
        conf.learners.extend(snapshot.conf.learners)
        conf.voters_outgoing.extend(snapshot.conf.voters_outgoing)
        conf.learners_next.extend(snapshot.conf.learners_next)
        conf.auto_leave = snapshot.conf.auto_leave


def _message_from_wire(message: wire.Message) -> Message:
    message_type = _MESSAGE_TYPES.get(message.type)
    if message_type is None:
        raise Malformed(f"a message of unknown type {message.type}")
    return Message(
        message_type,
        message.to,
        getattr(message, "from"),
        message.term,
        message.log_term,
        message.index,
        tuple(_entry_from_wire(entry) for entry in message.entries),
        message.commit,
        message.reject,
        message.reject_hint,
        message.context,
        _snapshot_from_wire(message.snapshot) if message.HasField("snapshot") else None,
    )


def _change_to_message(change: ChangeRequest | ChangeReply) -> Message:
    message = Message(MessageType.PROPOSE, change.to, change.from_, change.term)
    if isinstance(change, ChangeRequest):
        message.entries = (Entry(0, 0, change.kind, change.data),)
    else:
        message.reject, message.reject_hint = True, _REFUSAL_CODES[change.reason]
        message.context = change.counter
    return message


def _change_from_message(message: Message) -> ChangeRequest | ChangeReply:
    to, from_, term = message.to, message.from_, message.term
    if message.reject:
        reason = _REFUSALS.get(message.reject_hint, ChangeRefusal.DOES_NOT_FIT)
        return ChangeReply(to, from_, term, message.context, reason)
    if len(message.entries) != 1:
        raise Malformed("a forwarded membership change is exactly one entry")
    entry = message.entries[0]
    return ChangeRequest(to, from_, term, entry.kind, entry.data)


def _entry_from_wire(entry: wire.Entry) -> Entry:
    kind = _ENTRY_KINDS.get(entry.kind)
    if kind is None:
        raise Malformed(f"an entry of unknown kind {entry.kind}")
    return Entry(entry.term, entry.index, kind, entry.data)


def _snapshot_from_wire(snapshot: wire.SnapshotMeta) -> SnapshotMeta:
    conf = snapshot.conf
    return SnapshotMeta(
        snapshot.index,
        snapshot.term,
        ConfState(
            tuple(conf.voters),
            tuple(conf.learners),
            tuple(conf.voters_outgoing),
            tuple(conf.learners_next),
            conf.auto_leave,
        ),
    )

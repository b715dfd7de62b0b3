"""Peer messages to bytes and back. The only module that touches the generated messages.

Both ways are exact: what is decoded equals what was encoded. Bytes that are not ours raise
`Malformed`; unknown fields are skipped, unknown kinds of message are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError

from raft.core.messages import Message, MessageType
from raft.core.types import ConfState, Entry, EntryKind, SnapshotMeta
from raft.transport.protocol import (
    Answer,
    DiskRecorded,
    ForwardedBatch,
    ForwardRefused,
    Hello,
    HelloAnswer,
    ImageChunk,
    ImageOffer,
    ImageOpening,
    ImageStatus,
    PeerMessage,
    Question,
)
from raft.transport.wire import peer_pb2 as wire

_Wire = TypeVar(
    "_Wire",
    wire.Hello,
    wire.HelloAnswer,
    wire.Description,
    wire.Frame,
    wire.ImageFrame,
    wire.ImageStatus,
)
_MESSAGE_TYPES = {int(member): member for member in MessageType}
_ENTRY_KINDS = {int(member): member for member in EntryKind}


class Malformed(ValueError):
    """Bytes from a peer that do not follow the protocol."""


def encode_hello(hello: Hello) -> bytes:
    return _hello_to_wire(hello).SerializeToString()


def decode_hello(data: bytes) -> Hello:
    return _hello_from_wire(_parse(wire.Hello(), data))


def encode_opening(hello: Hello) -> bytes:
    """Encode the first frame of a stream."""
    return wire.Frame(hello=_hello_to_wire(hello)).SerializeToString()


def decode_opening(data: bytes) -> Hello:
    frame = _parse(wire.Frame(), data)
    if not frame.HasField("hello"):
        raise Malformed("a stream must begin with a hello")
    return _hello_from_wire(frame.hello)


def encode_answer(answer: HelloAnswer) -> bytes:
    return wire.HelloAnswer(
        hello=_hello_to_wire(answer.hello),
        earlier_disk_known=answer.earlier_disk_known,
        refusal=answer.refusal,
        removed=answer.removed,
    ).SerializeToString()


def decode_answer(data: bytes) -> HelloAnswer:
    answer = _parse(wire.HelloAnswer(), data)
    return HelloAnswer(
        hello=_hello_from_wire(answer.hello),
        earlier_disk_known=answer.earlier_disk_known,
        refusal=answer.refusal,
        removed=answer.removed,
    )


def encode_description(data: bytes) -> bytes:
    """Encode what the layers above tell a process that is to join."""
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
            batch.term, batch.boot_id, batch.counter = message.term, message.boot_id, message.counter
            batch.data = message.data
        elif isinstance(message, DiskRecorded):
            add().disk_recorded.disk_id = message.disk_id
        elif isinstance(message, (Question, Answer)):
            target = add().question if isinstance(message, Question) else add().answer
            target.boot_id, target.number, target.data = message.boot_id, message.number, message.data
        else:
            refused = add().refused
            refused.term, refused.boot_id, refused.counter = message.term, message.boot_id, message.counter
    return frame.SerializeToString()


def decode_frame(data: bytes) -> list[PeerMessage]:
    """Decode a frame; raises Malformed for bytes that are no frame or a kind this code does not know."""
    decoded: list[PeerMessage] = []
    for item in _parse(wire.Frame(), data).messages:
        kind = item.WhichOneof("kind")
        if kind == "raft":
            decoded.append(_message_from_wire(item.raft))
        elif kind == "batch":
            batch = item.batch
            decoded.append(ForwardedBatch(batch.term, batch.boot_id, batch.counter, batch.data))
        elif kind == "refused":
            refused = item.refused
            decoded.append(ForwardRefused(refused.term, refused.boot_id, refused.counter))
        elif kind == "disk_recorded":
            decoded.append(DiskRecorded(item.disk_recorded.disk_id))
        elif kind == "question":
            decoded.append(Question(item.question.boot_id, item.question.number, item.question.data))
        elif kind == "answer":
            decoded.append(Answer(item.answer.boot_id, item.answer.number, item.answer.data))
        else:
            raise Malformed("a peer message of no known kind")
    return decoded


def encode_image_frame(frame: ImageOpening | ImageChunk) -> bytes:
    if isinstance(frame, ImageChunk):
        chunk = wire.ImageChunk(offset=frame.offset, crc32c=frame.crc32c, data=frame.data)
        return wire.ImageFrame(chunk=chunk).SerializeToString()
    offer = frame.offer
    opening = wire.ImageOpening(
        hello=_hello_to_wire(frame.hello), size_bytes=offer.size_bytes, sha256=offer.sha256
    )
    _fill_message(opening.message, offer.message)
    return wire.ImageFrame(opening=opening).SerializeToString()


def decode_image_frame(data: bytes) -> ImageOpening | ImageChunk:
    """Raises Malformed."""
    frame = _parse(wire.ImageFrame(), data)
    if frame.HasField("chunk"):
        return ImageChunk(frame.chunk.offset, frame.chunk.crc32c, frame.chunk.data)
    opening = frame.opening
    message = _message_from_wire(opening.message)
    if message.type is not MessageType.SNAPSHOT or message.snapshot is None:
        raise Malformed("an image must come with its snapshot message")
    return ImageOpening(
        _hello_from_wire(opening.hello), ImageOffer(message, opening.size_bytes, opening.sha256)
    )


def encode_image_status(status: ImageStatus) -> bytes:
    return wire.ImageStatus(
        offset=status.offset, done=status.done, refusal=status.refusal
    ).SerializeToString()


def decode_image_status(data: bytes) -> ImageStatus:
    """Raises Malformed."""
    status = _parse(wire.ImageStatus(), data)
    return ImageStatus(status.offset, status.done, status.refusal)


def _parse(empty: _Wire, data: bytes) -> _Wire:
    try:
        empty.ParseFromString(data)
    except DecodeError as error:
        raise Malformed(f"bytes that are no {type(empty).__name__}") from error
    return empty


def _hello_to_wire(hello: Hello) -> wire.Hello:
    return wire.Hello(
        format_version=hello.format_version,
        cluster_id=hello.cluster_id,
        member_id=hello.member_id,
        disk_id=hello.disk_id,
        boot_id=hello.boot_id,
        urls=hello.urls,
    )


def _hello_from_wire(hello: wire.Hello) -> Hello:
    return Hello(
        format_version=hello.format_version,
        cluster_id=hello.cluster_id,
        member_id=hello.member_id,
        disk_id=hello.disk_id,
        boot_id=hello.boot_id,
        urls=tuple(hello.urls),
    )


def _fill_message(target: wire.Message, message: Message) -> None:
    """Set what differs from zero: most messages use half of the fields, and each setting costs."""
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

from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Handshake(_message.Message):
    __slots__ = ("format_version", "cluster_id", "member_id", "disk_id", "incarnation", "urls")
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    DISK_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    URLS_FIELD_NUMBER: _ClassVar[int]
    format_version: int
    cluster_id: int
    member_id: int
    disk_id: int
    incarnation: int
    urls: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, format_version: _Optional[int] = ..., cluster_id: _Optional[int] = ..., member_id: _Optional[int] = ..., disk_id: _Optional[int] = ..., incarnation: _Optional[int] = ..., urls: _Optional[_Iterable[str]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Description(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class HandshakeReply(_message.Message):
    __slots__ = ("handshake", "earlier_disk_known", "refusal", "removed")
    HANDSHAKE_FIELD_NUMBER: _ClassVar[int]
    EARLIER_DISK_KNOWN_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    handshake: Handshake
    earlier_disk_known: bool
    refusal: str
    removed: bool
    def __init__(self, handshake: _Optional[_Union[Handshake, _Mapping]] = ..., earlier_disk_known: bool = ..., refusal: _Optional[str] = ..., removed: bool = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("handshake", "messages")
    HANDSHAKE_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    handshake: Handshake
    messages: _containers.RepeatedCompositeFieldContainer[PeerMessage]
    def __init__(self, handshake: _Optional[_Union[Handshake, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[PeerMessage, _Mapping]]] = ...) -> None: ...

class PeerMessage(_message.Message):
    __slots__ = ("raft", "batch", "refused", "replica_recorded", "leader_request", "leader_reply")
    RAFT_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    REPLICA_RECORDED_FIELD_NUMBER: _ClassVar[int]
    LEADER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    LEADER_REPLY_FIELD_NUMBER: _ClassVar[int]
    raft: Message
    batch: ForwardedBatch
    refused: ForwardRefused
    replica_recorded: ReplicaRecorded
    leader_request: LeaderRequest
    leader_reply: LeaderReply
    def __init__(self, raft: _Optional[_Union[Message, _Mapping]] = ..., batch: _Optional[_Union[ForwardedBatch, _Mapping]] = ..., refused: _Optional[_Union[ForwardRefused, _Mapping]] = ..., replica_recorded: _Optional[_Union[ReplicaRecorded, _Mapping]] = ..., leader_request: _Optional[_Union[LeaderRequest, _Mapping]] = ..., leader_reply: _Optional[_Union[LeaderReply, _Mapping]] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("type", "to", "term", "log_term", "index", "entries", "commit", "reject", "reject_hint", "context", "snapshot")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    LOG_TERM_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    REJECT_FIELD_NUMBER: _ClassVar[int]
    REJECT_HINT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    type: int
    to: int
    term: int
    log_term: int
    index: int
    entries: _containers.RepeatedCompositeFieldContainer[Entry]
    commit: int
    reject: bool
    reject_hint: int
    context: int
    snapshot: SnapshotMeta
    def __init__(self, type: _Optional[int] = ..., to: _Optional[int] = ..., term: _Optional[int] = ..., log_term: _Optional[int] = ..., index: _Optional[int] = ..., entries: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ..., commit: _Optional[int] = ..., reject: bool = ..., reject_hint: _Optional[int] = ..., context: _Optional[int] = ..., snapshot: _Optional[_Union[SnapshotMeta, _Mapping]] = ..., **kwargs) -> None: ...

class SnapshotFrame(_message.Message):
    __slots__ = ("opening", "chunk")
    OPENING_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    opening: SnapshotOpening
    chunk: SnapshotChunk
    def __init__(self, opening: _Optional[_Union[SnapshotOpening, _Mapping]] = ..., chunk: _Optional[_Union[SnapshotChunk, _Mapping]] = ...) -> None: ...

class SnapshotOpening(_message.Message):
    __slots__ = ("handshake", "message", "size_bytes", "sha256")
    HANDSHAKE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    handshake: Handshake
    message: Message
    size_bytes: int
    sha256: bytes
    def __init__(self, handshake: _Optional[_Union[Handshake, _Mapping]] = ..., message: _Optional[_Union[Message, _Mapping]] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class SnapshotChunk(_message.Message):
    __slots__ = ("offset", "crc32c", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    crc32c: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., crc32c: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class SnapshotStatus(_message.Message):
    __slots__ = ("offset", "done", "refusal")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    offset: int
    done: bool
    refusal: str
    def __init__(self, offset: _Optional[int] = ..., done: bool = ..., refusal: _Optional[str] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("term", "index", "kind", "data")
    TERM_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    term: int
    index: int
    kind: int
    data: bytes
    def __init__(self, term: _Optional[int] = ..., index: _Optional[int] = ..., kind: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class SnapshotMeta(_message.Message):
    __slots__ = ("index", "term", "conf")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    CONF_FIELD_NUMBER: _ClassVar[int]
    index: int
    term: int
    conf: ConfState
    def __init__(self, index: _Optional[int] = ..., term: _Optional[int] = ..., conf: _Optional[_Union[ConfState, _Mapping]] = ...) -> None: ...

class ConfState(_message.Message):
    __slots__ = ("voters", "learners", "voters_outgoing", "learners_next", "auto_leave")
    VOTERS_FIELD_NUMBER: _ClassVar[int]
    LEARNERS_FIELD_NUMBER: _ClassVar[int]
    VOTERS_OUTGOING_FIELD_NUMBER: _ClassVar[int]
    LEARNERS_NEXT_FIELD_NUMBER: _ClassVar[int]
    AUTO_LEAVE_FIELD_NUMBER: _ClassVar[int]
    voters: _containers.RepeatedScalarFieldContainer[int]
    learners: _containers.RepeatedScalarFieldContainer[int]
    voters_outgoing: _containers.RepeatedScalarFieldContainer[int]
    learners_next: _containers.RepeatedScalarFieldContainer[int]
    auto_leave: bool
    def __init__(self, voters: _Optional[_Iterable[int]] = ..., learners: _Optional[_Iterable[int]] = ..., voters_outgoing: _Optional[_Iterable[int]] = ..., learners_next: _Optional[_Iterable[int]] = ..., auto_leave: bool = ...) -> None: ...

class ForwardedBatch(_message.Message):
    __slots__ = ("term", "incarnation", "counter", "data")
    TERM_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    COUNTER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    term: int
    incarnation: int
    counter: int
    data: bytes
    def __init__(self, term: _Optional[int] = ..., incarnation: _Optional[int] = ..., counter: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class LeaderRequest(_message.Message):
    __slots__ = ("incarnation", "number", "data")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    number: int
    data: bytes
    def __init__(self, incarnation: _Optional[int] = ..., number: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class LeaderReply(_message.Message):
    __slots__ = ("incarnation", "number", "data")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    number: int
    data: bytes
    def __init__(self, incarnation: _Optional[int] = ..., number: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ReplicaRecorded(_message.Message):
    __slots__ = ("disk_id",)
    DISK_ID_FIELD_NUMBER: _ClassVar[int]
    disk_id: int
    def __init__(self, disk_id: _Optional[int] = ...) -> None: ...

class ForwardRefused(_message.Message):
    __slots__ = ("term", "incarnation", "counter")
    TERM_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    COUNTER_FIELD_NUMBER: _ClassVar[int]
    term: int
    incarnation: int
    counter: int
    def __init__(self, term: _Optional[int] = ..., incarnation: _Optional[int] = ..., counter: _Optional[int] = ...) -> None: ...

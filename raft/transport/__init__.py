"""The peer transport: one protocol, two implementations.

The contract (`transport_protocol`): every member dials every other, so a pair has two streams, and the
dialler is always the sender. A stream opens with a handshake each way, which the receiver accepts or refuses.
Then messages flow best effort. A stream keeps their order within each of two lanes; urgent messages never
wait behind bulk ones. A message that cannot be queued is dropped and reported. The end of a stream is
reported to both sides and loses what was queued on it. A probe is one plain connection with a handshake each
way: evidence, not a timer, distinguishes a dead process from an unreachable one.

A snapshot travels on a connection of its own, in chunks, and can resume (`snapshot_stream`).

`memory_transport` joins members of one loop through a network with faults, on virtual time if wanted.
`peer_transport`, which this package does not import, connects processes, over an injected gRPC `stack`. One
conformance suite runs against both.
"""

from raft.transport.memory_transport import LinkConditions, MemoryTransport, Network
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
    Liveness,
    PeerLink,
    PeerMessage,
    PeerStatistics,
    Receiver,
    ReplicaRecorded,
    SnapshotFailed,
    SnapshotOffer,
    SnapshotRefused,
    SnapshotSink,
    Transport,
)

__all__ = [
    "ChangeRefusal",
    "ChangeReply",
    "ChangeRequest",
    "ForwardRefused",
    "ForwardedBatch",
    "Handshake",
    "HandshakeReply",
    "LeaderReply",
    "LeaderRequest",
    "LinkConditions",
    "Liveness",
    "MemoryTransport",
    "Network",
    "PeerLink",
    "PeerMessage",
    "PeerStatistics",
    "Receiver",
    "ReplicaRecorded",
    "SnapshotFailed",
    "SnapshotOffer",
    "SnapshotRefused",
    "SnapshotSink",
    "Transport",
]

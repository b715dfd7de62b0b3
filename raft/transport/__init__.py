"""How members reach one another: one protocol, two twins.

The contract (`protocol.py`): every member dials every other, so a pair has two streams and the
dialler is always the sender. First words on a stream are a hello each way; the receiver judges
it. After that, messages flow best effort: what one stream delivers keeps its order within each of
two lanes, urgent is never behind bulk, a message that cannot be queued is dropped and reported,
and the end of a stream is reported to both sides and loses what was queued on it. A probe is one
plain connection with an exchange of hellos: evidence, not a timer, tells a dead process from an
unreachable one.

An image of the state travels on a connection of its own, in chunks, resumable (`snapshots`).

`memory` joins members of one loop through a network with faults, on virtual time if wanted;
the gRPC twin
(`grpc_transport`, loaded only by who needs it) speaks between processes. One conformance suite
runs against both.
"""

from raft.transport.memory_transport import LinkConditions, MemoryTransport, Network
from raft.transport.transport_protocol import (
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

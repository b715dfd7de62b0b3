"""How members reach one another: one protocol, two twins.

The contract (`protocol.py`): every member dials every other, so a pair has two streams and the
dialler is always the sender. First words on a stream are a hello each way; the receiver judges
it. After that, messages flow best effort: what one stream delivers keeps its order within each of
two lanes, urgent is never behind bulk, a message that cannot be queued is dropped and reported,
and the end of a stream is reported to both sides and loses what was queued on it. A probe is one
plain connection with an exchange of hellos: evidence, not a timer, tells a dead process from an
unreachable one.

An image of the state travels on a connection of its own, in chunks, resumable (`images`).

`memory` joins members of one loop through a network with faults, on virtual time if wanted;
the gRPC twin
(`grpc_transport`, loaded only by who needs it) speaks between processes. One conformance suite
runs against both.
"""

from raft.transport.memory import LinkConditions, MemoryTransport, Network
from raft.transport.protocol import (
    Answer,
    DiskRecorded,
    ForwardedBatch,
    ForwardRefused,
    Hello,
    HelloAnswer,
    ImageFailed,
    ImageOffer,
    ImageRefused,
    ImageSink,
    Liveness,
    PeerLink,
    PeerMessage,
    PeerStatistics,
    Question,
    Receiver,
    Transport,
)

__all__ = [
    "Answer",
    "DiskRecorded",
    "ForwardRefused",
    "ForwardedBatch",
    "Hello",
    "HelloAnswer",
    "ImageFailed",
    "ImageOffer",
    "ImageRefused",
    "ImageSink",
    "LinkConditions",
    "Liveness",
    "MemoryTransport",
    "Network",
    "PeerLink",
    "PeerMessage",
    "PeerStatistics",
    "Question",
    "Receiver",
    "Transport",
]

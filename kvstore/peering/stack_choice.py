"""Which gRPC stack carries peer messages: libnghttp2, or grpc.aio if that is asked for or all there is."""

from __future__ import annotations

import logging

from raft.transport.grpc_stack import GrpcStack
from raft.transport.stack import Stack

logger = logging.getLogger("kvstore.peering")


def make_peer_stack(name: str) -> Stack:
    """The stack of this name, `ngh2` or `grpcio`; grpcio too where ngh2 cannot be imported.

    Call it on the event loop.
    """
    if name == "ngh2":
        try:
            from kvstore.peering.http2_stack import Http2Stack
        except ImportError as error:
            logger.warning("peers speak over grpcio, which is slower: ngh2 cannot be imported (%s)", error)
        else:
            return Http2Stack()
    return GrpcStack()

"""The gRPC stack on which a member speaks with its peers, chosen and injected into `raft.transport`."""

from __future__ import annotations

import logging

from raft.transport.grpc_stack import GrpcStack
from raft.transport.stack import Stack

__all__ = ["make_peer_stack"]

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

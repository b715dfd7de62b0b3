"""The gRPC stack on which a member speaks with its peers, for injection into `raft.transport`."""

from kvstore.peering.stack_choice import make_peer_stack

__all__ = ["make_peer_stack"]

"""The gRPC services: wire messages in, wire messages out, nothing kept beyond a call.

`call` says what a handler is, `convert` is the only place that knows both the wire's and the
engine's shapes, one module per service holds its rows, and `grpc_binding` carries them all over
grpc.aio. What has no row answers Unimplemented.
"""

from __future__ import annotations

from kvstore.rpc.call import Call, Method, MethodStatistics
from kvstore.rpc.grpc_binding import Gate, make_grpc_server
from kvstore.rpc.services import all_methods

__all__ = ["Call", "Gate", "Method", "MethodStatistics", "all_methods", "make_grpc_server"]

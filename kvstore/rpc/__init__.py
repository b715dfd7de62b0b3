"""The gRPC services: wire messages in, wire messages out, nothing kept beyond a call.

`call` defines a handler, `convert` is the only module that knows both wire messages and the engine's types,
one module per service holds its methods, `method_table` lists them all, and `grpc_binding` serves them over
grpc.aio. A method that is not in the table answers Unimplemented.
"""

from __future__ import annotations

from kvstore.rpc.call import Call, Method, MethodStatistics
from kvstore.rpc.grpc_binding import Gate, make_grpc_server
from kvstore.rpc.method_table import all_methods

__all__ = ["Call", "Gate", "Method", "MethodStatistics", "all_methods", "make_grpc_server"]

"""The gRPC services: wire messages in, wire messages out, nothing kept beyond a call.

`call` defines a handler, `convert` is the only module that knows both wire messages and the engine's types,
one module per service holds its methods, and `method_table` lists them all. Two bindings serve them:
`http2_binding` over `kvstore.http2`, and `grpc_binding` over grpc.aio, the reference; `server_stack` chooses.
A method that is not in the table answers Unimplemented.
"""

from __future__ import annotations

from kvstore.rpc.binding import Gate, RpcServer
from kvstore.rpc.call import Call, Method, MethodStatistics
from kvstore.rpc.method_table import all_methods
from kvstore.rpc.server_stack import make_server

__all__ = ["Call", "Gate", "Method", "MethodStatistics", "RpcServer", "all_methods", "make_server"]

"""Which binding serves: libnghttp2, or grpc.aio where that is asked for or nothing else can be had."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from kvstore.rpc.binding import KEEPALIVE_INTERVAL_S, KEEPALIVE_TIMEOUT_S, Gate, RpcServer
from kvstore.rpc.call import Method
from kvstore.rpc.grpc_binding import make_grpc_server

logger = logging.getLogger("kvstore.rpc")

NGH2, GRPCIO = "ngh2", "grpcio"
"""The values of `--grpc-stack`."""


def make_server(
    stack: str,
    methods: Sequence[Method],
    *,
    request_bytes_max: int,
    gate: Gate,
    keepalive_interval_s: float = KEEPALIVE_INTERVAL_S,
    keepalive_timeout_s: float = KEEPALIVE_TIMEOUT_S,
) -> RpcServer:
    """A server of these methods on the stack, not yet bound to any address; call it on the event loop."""
    make: Callable[..., RpcServer] = make_grpc_server
    if stack == NGH2:
        try:
            from kvstore.rpc.http2_binding import make_http2_server
        except ImportError as error:
            logger.warning("serving gRPC with grpcio, which is slower: ngh2 cannot be imported (%s)", error)
        else:
            make = make_http2_server
    return make(
        methods,
        request_bytes_max=request_bytes_max,
        gate=gate,
        keepalive_interval_s=keepalive_interval_s,
        keepalive_timeout_s=keepalive_timeout_s,
    )

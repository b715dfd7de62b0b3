"""gRPC over HTTP/2: what a member serves and what its clients and peers speak. Knows neither Raft nor keys.

`engine` is libnghttp2, and the only module that imports it; `connection` joins an engine with a transport for
either side. `server` listens, `server_connection` makes calls of what arrives, and `server_stream` with
its `request_side` is one call. gRPC's own rules are pure functions and small parsers: `framing`, `metadata`,
`status`.

The rules of the package:

* No task, future or timer per call: deadlines share a `timer_wheel`, writes one callback per loop iteration.
* Everything that can queue has a bound, in `limits` or in the engine's configuration.
* Flow control carries back-pressure: bytes are credited once a handler has taken their message, or while the
  message is incomplete; replies are passed to the engine in pieces, as the peer's window opens.

docs/grpc-server.md says what of gRPC and HTTP is served, with every bound.
"""

"""What operators and their tools read over plain HTTP/1.1: `/health`, `/version`, `/metrics`.

Only GET and HEAD, no bodies, everything bounded: the size of a request's head, the time it may
take, and the number of connections. A request that is no HTTP gets one clear line and a closed
connection; nothing a caller sends can raise beyond its own connection.
"""

from __future__ import annotations

from kvstore.http.listener import HttpListener, Response
from kvstore.http.routes import make_routes

__all__ = ["HttpListener", "Response", "make_routes"]

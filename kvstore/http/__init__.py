"""Plain HTTP/1.1 for operators and their tools: `/health`, `/version`, `/metrics`.

Only GET and HEAD, no bodies. The size and time of a request's head and the number of connections are bounded.
A malformed request gets one clear line and a closed connection, and never affects another connection.
"""

from __future__ import annotations

from kvstore.http.listener import HttpListener, Response
from kvstore.http.routes import make_routes

__all__ = ["HttpListener", "Response", "make_routes"]

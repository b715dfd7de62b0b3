"""What the peer transport needs of a gRPC stack: streams of byte messages, unary calls, a listener.

The composition root injects an implementation. Lanes, handshakes, back-off and the judgement of liveness are
written once above it (`peer_link`, `peer_transport`) and know no stack.

Rules for every implementation:

* All calls and callbacks run on the event loop, except `Stack.reset_connections`.
* A handler is never called from inside a call of its user's, nor after `close`. `ended` is the last call.
* An exception of a handler is a bug: it is reported to the loop's exception handler, and the stream ends.
* Nothing at all received for SILENCE_TIMEOUT_S, a transport-level ping included, ends a connection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class StreamEnd(NamedTuple):
    """Why a stream ended."""

    reason: str
    """In one line, for the log."""
    is_evidence: bool
    """The peer's kernel closed, reset or refused the connection: the process may be dead. See CallFailed."""


class CallFailed(Exception):
    """A unary call has no reply; the text is the reason in one line."""

    def __init__(self, reason: str, *, is_evidence: bool) -> None:
        super().__init__(reason)
        self.is_evidence = is_evidence
        """The peer's kernel closed, reset or refused the connection before a reply: no process serves there.
        Never so for our own `reset_connections`, a timeout, an unknown name or a missing route, a failure of
        TLS, a refusal by a limit, or a reply that is an error: those say nothing, or that it lives."""


class Refused(Exception):
    """Raised by a unary handler that does not accept the request; the caller receives the text."""


class Stream(Protocol):
    """One bidirectional stream of messages."""

    @property
    def is_writable(self) -> bool:
        """Whether everything written so far has left for the transport."""

    def write(self, data: bytes) -> None:
        """Queue a message, also before the connection is open; it leaves within this loop iteration."""

    def close(self, error: str = "") -> None:
        """End the stream. May be called twice.

        The side that dialled closes its connection at once. The side that accepted first sends what was
        written; `error` then reaches the dialler as the reason.
        """


class StreamHandler(Protocol):
    """The user of a stream."""

    def message(self, data: bytes) -> None:
        """One message, in order."""

    def drained(self) -> None:
        """The stream is writable again."""

    def ended(self, end: StreamEnd) -> None:
        """The stream ended without us; what was queued is lost."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """What a listener serves, by the path of the method."""

    unary: Mapping[str, Callable[[bytes], bytes]]
    """Request to reply. Raises Refused."""
    streams: Mapping[str, Callable[[Stream], StreamHandler]]


class Listener(Protocol):
    """Listening sockets, and the connections accepted on them."""

    @property
    def ports(self) -> tuple[int, ...]:
        """Bound, in the order of the addresses."""

    def close_nowait(self) -> None:
        """Accept nothing more, and end what was accepted."""

    async def wait_closed(self) -> None:
        """After `close_nowait`: return once its sockets are closed."""


class Stack(Protocol):
    """Opens connections for one member."""

    def dial(self, host: str, port: int, method: str, handler: StreamHandler) -> Stream:
        """Open a stream on a connection of its own; a failure to connect is an end of the stream."""

    async def call(self, host: str, port: int, method: str, data: bytes) -> bytes:
        """One request and its reply, on a connection of its own; cancel it to give up. Raises CallFailed."""

    async def listen(self, addresses: Sequence[tuple[str, int]], handlers: Handlers) -> Listener:
        """Listen on each (host, port); port 0 picks a free one. Raises OSError."""

    def reset_connections(self) -> None:
        """Shut down every socket of this stack, listening ones included. Safe on any thread."""

    async def close(self) -> None:
        """Wait until the sockets of every closed stream are closed."""

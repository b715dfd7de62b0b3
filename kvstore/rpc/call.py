"""Service handlers, independent of the binding that carries their bytes.

A handler is a plain callable `(request, call) -> reply | None`. It returns its reply, or None and replies
later through the call: exactly one of `reply` and `fail`, once. It never blocks and never awaits; it raises
KVError to refuse. Bindings other than grpc.aio (`grpc_binding`) can run the same handlers.

A method with a stream of requests has no handler: it `opens` an `Inbound` for each call, which receives the
requests one by one and answers them through the call. Back-pressure goes both ways: a sender faster than its
caller checks `has_room` and waits for `on_drained`; a receiver without capacity holds the requests.

A binding calls handlers only through `answer`, `open_stream` and `receive`: these raise every failure as a
KVError with a deliberate status, so that no exception reaches a client as an accidental Unknown.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from google.protobuf.message import DecodeError, Message

from kvstore.engine import Outcome
from kvstore.engine.results import R
from kvstore.errors import Code, KVError, NoLeader, OutcomeUnknown, RequestError
from kvstore.replica.outcome import OnResult

logger = logging.getLogger("kvstore.rpc")

OUTCOME_TRAILER = "kvstore-outcome"
"""Trailer of every failed call: whether the request may have been applied."""

HAS_LEADER_KEY = "hasleader"
"""Request metadata: refuse at once when this member knows no leader (etcd's WithRequireLeader)."""


class Malformed(RequestError):
    """Undecodable bytes; grpc-go answers the same code."""

    code, text = Code.INTERNAL, "grpc: failed to unmarshal the received message"


class HandlerFault(OutcomeUnknown):
    """A bug in a handler; its proposals may still take effect."""

    code, text = Code.INTERNAL, "etcdserver: internal error"


class Call(ABC):
    """One call, as its handler sees it. All methods run on the event loop."""

    __slots__ = ("_on_drained", "_on_gone", "gone")

    def __init__(self) -> None:
        self.gone = False
        """The caller cancelled, left or passed its deadline: it reads nothing sent from now on."""
        self._on_gone: Callable[[], None] | None = None
        self._on_drained: Callable[[], None] | None = None

    @property
    @abstractmethod
    def peer(self) -> str:
        """The caller's address, for logs only."""

    @abstractmethod
    def metadata(self, key: str) -> str | None:
        """First value of a lower-case text key of the request's metadata."""

    @abstractmethod
    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, None without one."""

    @abstractmethod
    def send(self, message: Message | bytes) -> None:
        """One message of a streaming reply, or its bytes; more may follow."""

    @property
    @abstractmethod
    def has_room(self) -> bool:
        """Whether the caller has read enough for more to be sent; else wait for `on_drained`."""

    @abstractmethod
    def finish(self) -> None:
        """Complete a streaming reply after the messages sent. Ignored once the caller is gone."""

    @abstractmethod
    def hold_requests(self) -> None:
        """Stop taking requests of the caller's stream; flow control then stops the caller."""

    @abstractmethod
    def resume_requests(self) -> None:
        """Take requests again. Harmless when none were held."""

    @abstractmethod
    def reply(self, message: Message) -> None:
        """The reply of a unary call. Ignored once the caller is gone."""

    @abstractmethod
    def fail(self, error: KVError) -> None:
        """End the call with an error's code and text. Ignored once the caller is gone."""

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Call back once when the caller is gone, to withdraw what waits for it."""
        assert self._on_gone is None, "registered twice"
        self._on_gone = callback

    def on_drained(self, callback: Callable[[], None]) -> None:
        """Call back each time the caller's connection has taken everything sent."""
        assert self._on_drained is None, "registered twice"
        self._on_drained = callback

    def mark_gone(self) -> None:
        """For bindings: the caller is gone, or its stream is complete. Idempotent."""
        if self.gone:
            return
        self.gone = True
        if self._on_gone is not None:
            self._on_gone()


Handler = Callable[[Any, Call], Message | None]
"""Answers one request: returns the reply, or None and replies later; raises KVError."""


class Inbound(Protocol):
    """The requests of one call of a method that takes a stream of them."""

    def receive(self, request: Any) -> None:
        """One request, in order. Raises KVError to end the call with it."""

    def half_closed(self) -> None:
        """The caller has sent its last request; it may still read. Answer what is open, then `finish`."""


@dataclass(slots=True)
class MethodStatistics:
    """Plain counters of one method since start; read by the metrics collector, never reset."""

    started: int = 0
    handled: dict[int, int] = field(default_factory=dict)
    """Completed calls by gRPC code. Invariant: their total never exceeds `started`."""
    received_bytes: int = 0
    sent_bytes: int = 0

    def ended(self, code: int) -> None:
        """Count one completed call."""
        self.handled[code] = self.handled.get(code, 0) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One row of a service: its path, request type and handler."""

    service: str
    """Full name with package, as in the path: `etcdserverpb.KV`."""
    name: str
    request_type: type[Message]
    handler: Handler | None = None
    """For methods of one request."""
    streaming: bool = False
    """The reply is a stream: the handler returns None and uses `send`, until `finish`, `fail` or the
    caller is gone."""
    opens: Callable[[Call], Inbound] | None = None
    """For methods that take a stream of requests and answer with a stream; raises KVError. Invariant:
    exactly one of `handler` and `opens` is set."""
    needs_leader: Callable[[], bool] | None = None
    """Whether a leader is known; consulted when the caller requires one in its metadata."""
    admit: Callable[[Message | None], None] | None = None
    """Raises KVError for a request (None: a stream about to open) that this member must not serve."""
    statistics: MethodStatistics = field(default_factory=MethodStatistics)

    def __post_init__(self) -> None:
        assert (self.handler is None) != (self.opens is None), "a method has a handler, or opens streams"

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"

    @property
    def kind(self) -> str:
        """The name of this method's shape in gRPC's metrics."""
        if self.opens is not None:
            return "bidi_stream"
        return "server_stream" if self.streaming else "unary"


def unary(service: str, *rows: tuple[str, type[Message], Handler]) -> tuple[Method, ...]:
    """The unary methods of a service: name, request type and handler of each."""
    return tuple(
        Method(service=service, name=name, request_type=request_type, handler=handler)
        for name, request_type, handler in rows
    )


def answer(method: Method, data: bytes, call: Call) -> Message | None:
    """Parse the request, run the checks of every method, then the handler. Raises only KVError."""
    assert method.handler is not None
    request = _parse(method, data)
    _check_leader(method, call)
    if method.admit is not None:
        method.admit(request)
    try:
        return method.handler(request, call)
    except KVError:
        raise
    except Exception:
        logger.exception("handler of %s failed", method.path)
        raise HandlerFault from None


def open_stream(method: Method, call: Call) -> Inbound:
    """Begin a call whose requests are a stream. Raises only KVError."""
    assert method.opens is not None
    _check_leader(method, call)
    if method.admit is not None:
        method.admit(None)
    try:
        return method.opens(call)
    except KVError:
        raise
    except Exception:
        logger.exception("opening a stream of %s failed", method.path)
        raise HandlerFault from None


def receive(method: Method, inbound: Inbound, data: bytes | None) -> None:
    """Pass on one request of a stream, or (None) its end. Raises only KVError."""
    request = None if data is None else _parse(method, data)
    try:
        if request is None:
            inbound.half_closed()
        else:
            inbound.receive(request)
    except KVError:
        raise
    except Exception:
        logger.exception("a stream of %s failed", method.path)
        raise HandlerFault from None


def _parse(method: Method, data: bytes) -> Message:
    try:
        return method.request_type.FromString(data)
    except DecodeError:
        raise Malformed from None


def _check_leader(method: Method, call: Call) -> None:
    has_leader = method.needs_leader
    if has_leader is not None and call.metadata(HAS_LEADER_KEY) == "true" and not has_leader():
        raise NoLeader


def reply_with(call: Call, make: Callable[[], Message]) -> None:
    """Complete a call with what `make` returns or raises. Raises nothing."""
    if call.gone:
        return
    try:
        message = make()
    except KVError as error:
        call.fail(error)
    except Exception:
        logger.exception("a late reply to %s failed", call.peer)
        call.fail(HandlerFault())
    else:
        call.reply(message)


def reply_unless(call: Call, make: Callable[[], Message], error: KVError | None) -> None:
    """Complete a call that waited: with the error, or as `reply_with` when there is none."""
    if error is not None:
        call.fail(error)
    else:
        reply_with(call, make)


def reply_to_outcome(call: Call, make: Callable[[R], Message]) -> OnResult[R]:
    """The callback that completes a call with the message of a command's result, or with the error."""

    def on_result(outcome: Outcome[R]) -> None:
        if isinstance(outcome, KVError):
            call.fail(outcome)
        else:
            reply_with(call, partial(make, outcome))

    return on_result


def outcome_of(error: KVError) -> str:
    """The value of the outcome trailer."""
    return "unknown" if isinstance(error, OutcomeUnknown) else "not-applied"

"""From a gRPC status to a typed error, and what is known of the request's outcome."""

from __future__ import annotations

from kvstore import errors
from kvstore.client.causes import CONNECTING, RESOLVING
from kvstore.errors import Code, KVError, OutcomeUnknown, RequestError, Unavailable

OUTCOME_TRAILER = "kvstore-outcome"
"""Trailer of our servers: `not-applied` or `unknown`. etcd sends none."""

# What gRPC says when a request never left this process: no connection could be made.
_NEVER_SENT = (CONNECTING, RESOLVING)

# Refusals: etcd decides them before or while applying, and applies nothing.
_REFUSALS = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED,
        Code.RESOURCE_EXHAUSTED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
        Code.UNAUTHENTICATED,
    }
)

_BY_STATUS: dict[tuple[Code, str], type[KVError]] = {
    (kind.code, kind.text): kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RequestError) and kind.text
}


def never_sent(code: Code, text: str) -> bool:
    """True when the request certainly did not leave this process."""
    return code is Code.UNAVAILABLE and text.startswith(_NEVER_SENT)


def error_from_status(code: Code, text: str, outcome: str | None, *, changes: bool) -> KVError:
    """The error of a failed call; `outcome` is the trailer, `changes` whether the call writes.

    Only a refusal, the word of our server or a request that never left make it certain that nothing
    was applied. Everything else that writes is `OutcomeUnknown`, whatever the text sounds like.
    """
    error: KVError
    if code in _REFUSALS and outcome != "unknown":
        error = _BY_STATUS.get((code, text), RequestError)(text)
    elif not changes or outcome == "not-applied" or never_sent(code, text):
        error = Unavailable(text)
    else:
        error = OutcomeUnknown(text)
    error.code = code
    return error

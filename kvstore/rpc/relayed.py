"""Errors of the Lock and Election services, which etcd runs as clients of its own store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from kvstore.errors import Code, KVError, RequestError
from kvstore.rpc.call import Call, reply_to_outcome


class Relayed(RequestError):
    """A refusal passed on from the store: etcd keeps its text and loses its code."""

    code = Code.UNKNOWN


class MissingLeader(RequestError):
    text = '"leader" field must be provided'


class NoElectedLeader(RequestError):
    text = "election: no leader"


def relayed(error: KVError) -> KVError:
    """What the caller is told; failures of the service itself keep their code."""
    return Relayed(error.text) if isinstance(error, RequestError) else error


def relay(call: Call, make: Callable[[Any], Message], outcome: Any) -> None:
    """Settle a call with what `make` says of an outcome; a refusal is passed on."""
    reply_to_outcome(call, make, relayed(outcome) if isinstance(outcome, KVError) else outcome)

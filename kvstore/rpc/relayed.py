"""Errors of the Lock and Election services, which etcd runs as clients of its own store."""

from __future__ import annotations

from kvstore.errors import Code, KVError, RequestError


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

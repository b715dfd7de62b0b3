"""Calls to a cluster over the etcd v3 API: endpoints, failover, typed errors.

A tower of its own: it knows the wire messages and the errors, neither Raft nor the server, and works
against etcd as well. What it guarantees:

* A call ends in its reply or in one error of `kvstore.errors`, within its timeout.
* An error is `OutcomeUnknown` unless it is certain that nothing was applied: the server said so, or
  the request never left. Nothing unknown is ever sent again.
* A watch goes on where it left off, on whichever member answers.
* A read, and a write that certainly was not applied, moves on to the next endpoint.
"""

from kvstore.client.connection import Connection, NoSuchHost, TimedOut
from kvstore.client.endpoints import Endpoint, EndpointError, parse_endpoints
from kvstore.client.methods import (
    ALARM,
    CAMPAIGN,
    COMPACT,
    DEFRAGMENT,
    DELETE_RANGE,
    HASH_KV,
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    LEASE_LEASES,
    LEASE_REVOKE,
    LEASE_TIME_TO_LIVE,
    LOCK,
    MEMBER_ADD,
    MEMBER_LIST,
    MEMBER_PROMOTE,
    MEMBER_REMOVE,
    MEMBER_UPDATE,
    MOVE_LEADER,
    OBSERVE,
    PUT,
    RANGE,
    RESIGN,
    SNAPSHOT,
    STATUS,
    TXN,
    UNLOCK,
    WATCH,
    Caller,
    Method,
)
from kvstore.client.sessions import Session, keep_alives, observe, wait_for
from kvstore.client.streams import Stream, StreamCaller
from kvstore.client.watching import Watching

__all__ = [
    "ALARM",
    "CAMPAIGN",
    "COMPACT",
    "DEFRAGMENT",
    "DELETE_RANGE",
    "HASH_KV",
    "LEASE_GRANT",
    "LEASE_KEEP_ALIVE",
    "LEASE_LEASES",
    "LEASE_REVOKE",
    "LEASE_TIME_TO_LIVE",
    "LOCK",
    "MEMBER_ADD",
    "MEMBER_LIST",
    "MEMBER_PROMOTE",
    "MEMBER_REMOVE",
    "MEMBER_UPDATE",
    "MOVE_LEADER",
    "OBSERVE",
    "PUT",
    "RANGE",
    "RESIGN",
    "SNAPSHOT",
    "STATUS",
    "TXN",
    "UNLOCK",
    "WATCH",
    "Caller",
    "Connection",
    "Endpoint",
    "EndpointError",
    "Method",
    "NoSuchHost",
    "Session",
    "Stream",
    "StreamCaller",
    "TimedOut",
    "Watching",
    "keep_alives",
    "observe",
    "parse_endpoints",
    "wait_for",
]

"""What became of a command: its result, or the error for the client."""

from __future__ import annotations

from collections.abc import Callable

from kvstore import errors
from kvstore.engine import Outcome
from kvstore.engine.results import R
from raft.node import node_errors

OnResult = Callable[[Outcome[R]], None]
"""Called exactly once."""

_KV_ERRORS: tuple[tuple[type[node_errors.NodeError], Callable[[], errors.KVError]], ...] = (
    (node_errors.OutcomeUnknown, errors.OutcomeUnknown),
    (node_errors.Stopped, errors.ServerStopped),
    (node_errors.TooManyRequests, errors.TooManyRequests),
    (node_errors.NoSpace, errors.NoSpace),
    (node_errors.LearnerNotReady, errors.LearnerNotReady),
    (node_errors.ChangeRefused, errors.NotEnoughStartedMembers),
    (node_errors.TransferFailed, errors.LeaderTransferTimedOut),
    (node_errors.NotApplied, errors.NotAppliedInTime),
    (node_errors.ReadTimedOut, errors.ReadTimedOut),
)
"""The first match counts: a class comes before its base. A write that found no leader timed out, as in
etcd, which says "no leader" only to callers that required one in their metadata."""


def as_kv_error(error: node_errors.NodeError) -> errors.KVError:
    """The client's error for the node's. What may have been applied stays unknown, always."""
    for kind, make in _KV_ERRORS:
        if isinstance(error, kind):
            return make()
    return errors.OutcomeUnknown()  # an unlisted error may mean anything

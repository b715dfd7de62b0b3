"""What the driver's errors mean to a client."""

from __future__ import annotations

from collections.abc import Callable

from kvstore import errors
from raft.node import node_errors

_MEANINGS: tuple[tuple[type[node_errors.NodeError], Callable[[], errors.KVError]], ...] = (
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
"""First match counts: a class stands before its base. A write that found no leader timed out, as in
etcd, which says "no leader" only to those who asked for one in their metadata."""


def as_kv_error(error: node_errors.NodeError) -> errors.KVError:
    """The client's error for the driver's. What may have been applied stays unknown, always."""
    for kind, make in _MEANINGS:
        if isinstance(error, kind):
            return make()
    return errors.OutcomeUnknown()  # an error this table does not know promises nothing

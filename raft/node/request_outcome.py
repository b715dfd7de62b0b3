"""Which error a caller gets instead of an outcome: one rule for commands and membership changes.

Before a request is forwarded, to our own core or to a leader, it is certainly not applied. Afterwards its
outcome is unknown until a refusal, or an entry of a higher term applied here, shows that it never will be.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from raft.node.node_errors import NodeError, NoLeader, NotApplied, OutcomeUnknown, RequestTimedOut, Stopped

logger = logging.getLogger(__name__)

OnResult = Callable[[object, NodeError | None], None]
"""Receives (outcome, None) or (None, error), exactly once, in the loop."""

Session = tuple[int, int, int]
"""What a request is forwarded to: term, leader, and the incarnation of the leader."""


def timed_out(*, forwarded: bool, leader: int) -> NodeError:
    """The deadline has passed; `leader` is the one known now, 0 for none."""
    if forwarded:
        return RequestTimedOut("request timed out; it may be applied later")
    if leader:
        return NotApplied("timed out before the request could be forwarded to the leader")
    return NoLeader("no leader")


def stopped(*, forwarded: bool) -> NodeError:
    return OutcomeUnknown("stopped; it may be applied") if forwarded else Stopped("server stopped")


def superseded() -> NodeError:
    """A snapshot has replaced the state over the indexes where a forwarded request may be."""
    return OutcomeUnknown("superseded by a snapshot; it may be applied")


def fail(on_result: OnResult, error: NodeError) -> None:
    try:
        on_result(None, error)
    except Exception:  # a caller's bug must not stop the member or starve its neighbours
        logger.exception("the callback of a request raised")

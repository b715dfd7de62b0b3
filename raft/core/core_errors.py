"""Everything the core refuses, and why.

CoreError
 +- ProposalDropped     the proposal is in no log and never will be; may be made again elsewhere
 +- ConfChangeRefused   a membership change that makes no sense in the present configuration
 +- BootRefused         what was found on disk contradicts itself; the member must not start
 +- LogCompacted        the entries requested are compacted: only a snapshot holds them
"""

from __future__ import annotations

from enum import Enum

from raft.core.types import NO_NODE


class CoreError(Exception):
    """Base of the errors of `raft.core`. Any other exception is a broken invariant: stop the process."""


class DropReason(Enum):
    """Why a proposal entered no log."""

    NOT_LEADER = "this member does not lead"
    REMOVED = "this member leads but is no longer a member"
    TRANSFERRING = "leadership is being transferred"
    UNCOMMITTED_FULL = "too many bytes wait to be committed"
    CONF_PENDING = "an earlier membership change may not be applied yet"
    CONF_INVALID = "the membership change does not fit the present configuration"


class ProposalDropped(CoreError):
    """Certainly not proposed: no entry was made. `leader` is a hint, NO_NODE while none is known."""

    def __init__(self, reason: DropReason, leader: int = NO_NODE, detail: str = "") -> None:
        self.reason = reason
        self.leader = leader
        super().__init__(detail or reason.value)


class ConfChangeRefused(CoreError):
    """The change cannot be made to this configuration; the text says which rule forbids it."""


class BootRefused(CoreError):
    """Hard state, log and applied index do not fit together; see the text."""


class LogCompacted(CoreError):
    """The entries requested lie at or below the log's base."""

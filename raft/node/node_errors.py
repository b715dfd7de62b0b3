"""Why a proposal or a read was not answered with an outcome.

NodeError
 +- NotApplied          certainly not applied, and never will be
 |   +- NoLeader        no leader to forward the command to before its deadline
 |   +- TooManyRequests a bounded queue was full
 |   +- NoSpace         the log has no space for its next segment
 |   +- Stopped         this member stopped before forwarding the command
 |   +- LearnerNotReady a learner to be promoted holds too little of the log
 |   +- ChangeRefused   a membership change that does not fit the configuration
 |   +- TransferFailed  leadership was not transferred
 +- OutcomeUnknown      may or may not be applied; never retried blindly
 |   +- RequestTimedOut forwarded, and not applied here in time
 +- ReadTimedOut        no quorum confirmed the read in time; reads change nothing

BackendBeyondLog          the member cannot start

What separates the two families is forwarding: once a command is in a log or in a message it may be
applied, whatever happens to this process; before that it cannot be.
"""

from __future__ import annotations


class NodeError(Exception):
    """Base of everything a member can answer instead of an outcome."""


class NotApplied(NodeError):
    """The command was not applied and never will be; it may be sent again freely."""


class NoLeader(NotApplied):
    """No leader was known for the whole of the request timeout."""


class TooManyRequests(NotApplied):
    """A bounded queue is full, or too much is applied that the backend does not hold yet."""


class NoSpace(NotApplied):
    """This member leads and its log has no space left; reads go on."""


class Stopped(NotApplied):
    """The member stopped before the command was forwarded, or before the read was confirmed."""


class LearnerNotReady(NotApplied):
    """A learner was to be promoted that does not hold nearly what the leader holds."""


class ChangeRefused(NotApplied):
    """The membership change makes no sense in the present configuration."""


class TransferFailed(NotApplied):
    """The chosen member does not lead, and by this attempt never will."""


class OutcomeUnknown(NodeError):
    """The command may or may not be applied, now or later."""


class RequestTimedOut(OutcomeUnknown):
    """The command was forwarded and not applied here within the request timeout."""


class ReadTimedOut(NodeError):
    """No quorum confirmed the read within the request timeout."""


class BackendBeyondLog(Exception):
    """The backend and the log do not belong together; the text says how, in one line."""

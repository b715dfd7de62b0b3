"""Every error a client can see, with etcd's exact text and gRPC code.

KVError
 +- RequestError      the request was wrong or refused; certainly not applied
 +- ServiceError      the service could not answer
     +- Unavailable   certainly not applied
     +- OutcomeUnknown   may or may not have been applied; never retried blindly

The text is the contract: clients compare it whole (reference: etcd `api/v3rpc/rpctypes`).
Codes are plain ints, so that this module imports no gRPC.
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """The gRPC status codes, by number."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class KVError(Exception):
    """Base of all errors of the store; `code` and `text` go on the wire as they stand."""

    code: Code = Code.UNKNOWN
    text: str = ""

    def __init__(self, text: str | None = None) -> None:
        if text is not None:
            self.text = text
        super().__init__(self.text)


class RequestError(KVError):
    """The request was refused and changed nothing."""


class EmptyKey(RequestError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: key is not provided"


class KeyNotFound(RequestError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: key not found"


class ValueProvided(RequestError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: value is provided"


class LeaseProvided(RequestError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: lease is provided"


class TooManyOps(RequestError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request"


class DuplicateKey(RequestError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request"


class InvalidSortOption(RequestError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: invalid sort option"


class Compacted(RequestError):
    code, text = Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"


class FutureRevision(RequestError):
    code, text = Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision"


class NoSpace(RequestError):
    code, text = Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"


class LeaseNotFound(RequestError):
    code, text = Code.NOT_FOUND, "etcdserver: requested lease not found"


class LeaseExists(RequestError):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: lease already exists"


class LeaseTtlTooLarge(RequestError):
    code, text = Code.OUT_OF_RANGE, "etcdserver: too large lease TTL"


class MemberNotFound(RequestError):
    code, text = Code.NOT_FOUND, "etcdserver: member not found"


class MemberExists(RequestError):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: member ID already exist"


class PeerUrlsExist(RequestError):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: Peer URLs already exists"


class MemberUrlsInvalid(RequestError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: given member URLs are invalid"


class MemberNotLearner(RequestError):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: can only promote a learner member"


class LearnerNotReady(RequestError):
    code = Code.FAILED_PRECONDITION
    text = "etcdserver: can only promote a learner member which is in sync with leader"


class TooManyLearners(RequestError):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: too many learner members in cluster"


class NotEnoughStartedMembers(RequestError):
    code = Code.FAILED_PRECONDITION
    text = "etcdserver: re-configuration failed due to not enough started members"


class NotLeader(RequestError):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: not leader"


class BadLeaderTransferee(RequestError):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: bad leader transferee"


class LeaderTransferTimedOut(RequestError):
    """A transfer that failed changed nothing that a client can see."""

    code, text = Code.UNKNOWN, "etcdserver: request timed out, leader transfer took too long"


class RequestTooLarge(RequestError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: request is too large"


class TooManyRequests(RequestError):
    code, text = Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests"


class WrongVersionFormat(RequestError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: wrong downgrade target version format"


class InvalidDowngradeTarget(RequestError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: invalid downgrade target version"


class NoDowngrade(RequestError):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: no inflight downgrade job"


class ServiceError(KVError):
    """The service could not answer."""

    code = Code.UNAVAILABLE


class Unavailable(ServiceError):
    """Certainly not applied."""


class NoLeader(Unavailable):
    text = "etcdserver: no leader"


class UnhealthyCluster(Unavailable):
    text = "etcdserver: unhealthy cluster"


class NotSupportedForLearner(Unavailable):
    text = "etcdserver: rpc not supported for learner"


class ServerStopped(Unavailable):
    text = "etcdserver: server stopped"


class NotAppliedInTime(Unavailable):
    """A write that found no leader in time."""

    text = "etcdserver: request timed out"


class ReadTimedOut(Unavailable):
    """A read that found no quorum in time; reads change nothing, so nothing is unknown."""

    text = "etcdserver: request timed out"


class OutcomeUnknown(ServiceError):
    """May or may not have been applied. A timeout is this, never a failure."""

    text = "etcdserver: request timed out"


class Corrupt(ServiceError):
    code, text = Code.DATA_LOSS, "etcdserver: corrupt cluster"

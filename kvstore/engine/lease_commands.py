"""The commands about leases, and how they travel: bodies of the envelope of `commands`.

Whatever depends on a clock is decided by the leader's lessor before it proposes. Its commands name
the term in which it leads and the grant they are about, so that a late one changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

LEASE_CHECKPOINTS_MAX = 1000
"""Leases in one checkpoint, as etcd (`maxLeaseCheckpointBatchSize`)."""

LEASE_GRANT_COST_BYTES = 64
"""What etcd weighs a grant with against the quota (`leaseOverhead`)."""

KIND_LEASE_GRANT = 10
KIND_LEASE_REVOKE = 11
KIND_LEASE_EXPIRE = 12
KIND_LEASE_CHECKPOINT = 13


class LeaseGrant(NamedTuple):
    """Create a lease. Id and time to live are chosen before proposing; neither may be 0."""

    id: int
    ttl_seconds: int


class LeaseRevoke(NamedTuple):
    """End a lease and delete its keys, in one revision."""

    id: int


class LeaseExpire(NamedTuple):
    """The time of a lease ran out on the clock of the leader of `term`.

    Does nothing in an entry of another term (then another lessor gave the lease its full time
    again) or when the lease is not that of the grant at log index `granted_at`.
    """

    term: int
    id: int
    granted_at: int


class Checkpoint(NamedTuple):
    """The time a lease had left; 0 means all of it."""

    id: int
    granted_at: int
    remaining_seconds: int


class LeaseCheckpoint(NamedTuple):
    """What leases have left on the clock of the leader of `term`: what its successor starts from."""

    term: int
    checkpoints: tuple[Checkpoint, ...]


LeaseCommand = LeaseGrant | LeaseRevoke | LeaseExpire | LeaseCheckpoint

_GRANT = Struct(">qq")
_REVOKE = Struct(">q")
_EXPIRE = Struct(">QqQ")
_CHECKPOINT_HEAD = Struct(">QI")
_CHECKPOINT = Struct(">qQq")


def encode_lease_command(command: object) -> tuple[int, bytes] | None:
    """Kind and body; None for what is no lease command."""
    if isinstance(command, LeaseGrant):
        return KIND_LEASE_GRANT, _GRANT.pack(*command)
    if isinstance(command, LeaseRevoke):
        return KIND_LEASE_REVOKE, _REVOKE.pack(*command)
    if isinstance(command, LeaseExpire):
        return KIND_LEASE_EXPIRE, _EXPIRE.pack(*command)
    if isinstance(command, LeaseCheckpoint):
        rows = b"".join(_CHECKPOINT.pack(*each) for each in command.checkpoints)
        return KIND_LEASE_CHECKPOINT, _CHECKPOINT_HEAD.pack(command.term, len(command.checkpoints)) + rows
    return None


def _decode_grant(data: bytes, offset: int, end: int) -> LeaseGrant:
    return LeaseGrant(*_GRANT.unpack(data[offset:end]))


def _decode_revoke(data: bytes, offset: int, end: int) -> LeaseRevoke:
    return LeaseRevoke(*_REVOKE.unpack(data[offset:end]))


def _decode_expire(data: bytes, offset: int, end: int) -> LeaseExpire:
    return LeaseExpire(*_EXPIRE.unpack(data[offset:end]))


def _decode_checkpoint(data: bytes, offset: int, end: int) -> LeaseCheckpoint:
    term, count = _CHECKPOINT_HEAD.unpack_from(data, offset)
    rows = Struct(f"{count * _CHECKPOINT.size}s").unpack(data[offset + _CHECKPOINT_HEAD.size : end])[0]
    return LeaseCheckpoint(term, tuple(Checkpoint(*row) for row in _CHECKPOINT.iter_unpack(rows)))


LEASE_DECODERS: dict[int, Callable[[bytes, int, int], LeaseCommand]] = {
    KIND_LEASE_GRANT: _decode_grant,
    KIND_LEASE_REVOKE: _decode_revoke,
    KIND_LEASE_EXPIRE: _decode_expire,
    KIND_LEASE_CHECKPOINT: _decode_checkpoint,
}

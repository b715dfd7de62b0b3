"""Membership as the state machine sees it: the commands, how they travel, and who may join or leave.

These commands come inside a membership change of the log only (`Engine.apply_change`), never in a
batch: what is accepted here changes the configuration of consensus in the same step. The rules and
their order are etcd's (`ValidateConfigurationChange`). Ids are chosen before proposing, never reused.
"""

from __future__ import annotations

from struct import Struct
from struct import error as struct_error
from typing import NamedTuple

from kvstore.engine.results import Member, MembersResult
from kvstore.engine.tables import Tables
from kvstore.errors import (
    KVError,
    MemberExists,
    MemberNotFound,
    MemberNotLearner,
    NotEnoughStartedMembers,
    PeerUrlsExist,
    TooManyLearners,
)

KIND_MEMBER_ADD = 16
KIND_MEMBER_REMOVE = 17
KIND_MEMBER_UPDATE = 18
KIND_MEMBER_PROMOTE = 19

_VERSION = 1
_HEAD = Struct(">BBQ")
"""Version, kind, member id."""
_ADD = Struct(">BI")
"""Is a learner, most learners; the URLs follow."""
_LENGTH = Struct(">I")


class MemberAdd(NamedTuple):
    """Let a new member in. `learners_max` counts for a learner."""

    id: int
    peer_urls: tuple[str, ...]
    is_learner: bool
    learners_max: int


class MemberRemove(NamedTuple):
    id: int


class MemberUpdate(NamedTuple):
    """Move a member to other peer URLs."""

    id: int
    peer_urls: tuple[str, ...]


class MemberPromote(NamedTuple):
    id: int


MemberCommand = MemberAdd | MemberRemove | MemberUpdate | MemberPromote

_KINDS: dict[type[MemberCommand], int] = {
    MemberAdd: KIND_MEMBER_ADD,
    MemberRemove: KIND_MEMBER_REMOVE,
    MemberUpdate: KIND_MEMBER_UPDATE,
    MemberPromote: KIND_MEMBER_PROMOTE,
}


def encode_member_command(command: MemberCommand) -> bytes:
    parts = [_HEAD.pack(_VERSION, _KINDS[type(command)], command.id)]
    if isinstance(command, MemberAdd):
        parts.append(_ADD.pack(command.is_learner, command.learners_max))
    if isinstance(command, MemberAdd | MemberUpdate):
        for url in command.peer_urls:
            data = url.encode()
            parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)


def decode_member_command(data: bytes) -> MemberCommand:
    """Raises ValueError for bytes that are none: then this member must stop."""
    try:
        version, kind, member_id = _HEAD.unpack_from(data)
        if version != _VERSION:
            raise ValueError(f"unknown version {version} of a membership command")
        if kind == KIND_MEMBER_ADD:
            is_learner, learners_max = _ADD.unpack_from(data, _HEAD.size)
            urls = _decode_urls(data, _HEAD.size + _ADD.size)
            return MemberAdd(member_id, urls, bool(is_learner), learners_max)
        if kind == KIND_MEMBER_UPDATE:
            return MemberUpdate(member_id, _decode_urls(data, _HEAD.size))
    except struct_error as error:
        raise ValueError("membership command truncated") from error
    if kind == KIND_MEMBER_REMOVE:
        return MemberRemove(member_id)
    if kind == KIND_MEMBER_PROMOTE:
        return MemberPromote(member_id)
    raise ValueError(f"unknown kind {kind} of a membership command")


def _decode_urls(data: bytes, offset: int) -> tuple[str, ...]:
    urls = []
    while offset < len(data):
        (length,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size
        urls.append(data[offset : offset + length].decode())
        offset += length
    if offset != len(data):
        raise ValueError("membership command truncated")
    return tuple(urls)


def apply_member_command(
    tables: Tables, command: MemberCommand, *, fits: bool, revision: int
) -> tuple[bool, MembersResult | KVError]:
    """Judge and make the change: whether it was accepted, and its outcome."""
    try:
        _check(tables, command)
        if not fits:  # no member would be left to vote
            raise NotEnoughStartedMembers
    except KVError as refusal:
        return False, refusal
    if isinstance(command, MemberRemove):
        tables.remove_member(command.id)
    elif isinstance(command, MemberAdd):
        tables.set_member(Member(command.id, "", command.peer_urls, is_learner=command.is_learner))
    else:
        known = tables.member(command.id)
        assert known is not None, "checked"
        if isinstance(command, MemberUpdate):
            tables.set_member(known._replace(peer_urls=command.peer_urls))
        else:
            tables.set_member(known._replace(is_learner=False))
    return True, MembersResult(revision, tables.members())


def _check(tables: Tables, command: MemberCommand) -> None:
    known = tables.member(command.id)
    if tables.is_removed(command.id):
        raise MemberNotFound
    if isinstance(command, MemberAdd):
        if known is not None:
            raise MemberExists
    elif known is None:
        raise MemberNotFound
    if isinstance(command, MemberPromote) and known is not None and not known.is_learner:
        raise MemberNotLearner
    if isinstance(command, MemberAdd | MemberUpdate):
        taken = {url for member in tables.members() if member.id != command.id for url in member.peer_urls}
        if any(url in taken for url in command.peer_urls):
            raise PeerUrlsExist
    if isinstance(command, MemberAdd) and command.is_learner:
        learners = sum(member.is_learner for member in tables.members())
        if learners >= command.learners_max:
            raise TooManyLearners

"""Changing the cluster: who may be added, removed, moved or promoted, and who leads.

The checks before proposing are etcd's (`mayAddMember`, `mayRemoveMember`, `mayPromoteMember`): they
keep an operator from losing the quorum, and judge by what this member sees now. The rules that must
hold whatever was asked at the same time are the engine's, when the change is applied.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from kvstore.engine import (
    Member,
    MemberAdd,
    MemberCommand,
    MemberPromote,
    MemberRemove,
    MemberUpdate,
    encode_member_command,
)
from kvstore.errors import (
    BadLeaderTransferee,
    MemberUrlsInvalid,
    NotEnoughStartedMembers,
    NotLeader,
    UnhealthyCluster,
)
from kvstore.server.faults import as_kv_error
from kvstore.server.local_member import LocalMember, OnResult
from kvstore.server.settings import parse_url
from raft.core.confchange import ConfChange, ConfStep, ConfStepKind
from raft.node import NodeError

HEALTHY_ELECTION_TIMEOUTS = 5
"""A member counts as healthy when it has been connected for so many election timeouts: etcd's 5 s
with its default timeout."""


class MembershipView(Protocol):
    """The driver's membership, as far as this room uses it."""

    def change(
        self, change: ConfChange, command: bytes, on_result: Callable[[object, NodeError | None], None]
    ) -> None: ...
    def connected_seconds(self) -> dict[int, float]: ...


class TransferView(Protocol):
    """The driver's leadership transfer, as far as this room uses it."""

    def begin(self, to: int, on_result: Callable[[NodeError | None], object]) -> None: ...


def new_member_id() -> int:
    """64 random bits: nobody had them before."""
    return secrets.randbits(64) or 1


class ClusterChanges:
    """Checks a request and hands it to the driver. Holds no state."""

    def __init__(
        self,
        member: LocalMember,
        membership: Callable[[], MembershipView],
        transfer: Callable[[], TransferView],
        *,
        election_timeout_ms: int,
        learners_max: int,
        strict: bool,
    ) -> None:
        """`strict`: refuse what might cost the quorum (`strict-reconfig-check`)."""
        self._member = member
        self._membership = membership
        self._transfer = transfer
        self._healthy_s = HEALTHY_ELECTION_TIMEOUTS * election_timeout_ms / 1000
        self._learners_max = learners_max
        self._strict = strict

    def add(self, member_id: int, peer_urls: Sequence[str], *, is_learner: bool, on_result: OnResult) -> None:
        """Let a member in under an id of `new_member_id`. `on_result` gets a MembersResult or a KVError.

        Raises MemberUrlsInvalid, NotEnoughStartedMembers, UnhealthyCluster.
        """
        urls = _checked_urls(peer_urls)
        if self._strict:
            if not is_learner and not self._quorum_started(1, 0):
                raise NotEnoughStartedMembers
            if self._healthy_voters() < len(self._voters()):
                raise UnhealthyCluster
        kind = ConfStepKind.ADD_LEARNER if is_learner else ConfStepKind.ADD_VOTER
        self._propose(kind, MemberAdd(member_id, urls, is_learner, self._learners_max), on_result)

    def remove(self, member_id: int, on_result: OnResult) -> None:
        """Remove a member for ever. Raises NotEnoughStartedMembers, UnhealthyCluster."""
        if self._strict:
            self._check_removal(member_id)
        self._propose(ConfStepKind.REMOVE, MemberRemove(member_id), on_result)

    def update(self, member_id: int, peer_urls: Sequence[str], on_result: OnResult) -> None:
        """Move a member to other peer URLs. Raises MemberUrlsInvalid."""
        self._propose(ConfStepKind.UPDATE, MemberUpdate(member_id, _checked_urls(peer_urls)), on_result)

    def promote(self, member_id: int, on_result: OnResult) -> None:
        """Let a learner vote; the leader refuses while it lags. Raises NotEnoughStartedMembers."""
        if self._strict and not self._quorum_started(1, 1):
            raise NotEnoughStartedMembers
        self._propose(ConfStepKind.ADD_VOTER, MemberPromote(member_id), on_result)

    def move_leader(self, to: int, on_result: OnResult) -> None:
        """Hand leadership to another voter; `on_result` gets None or a KVError.

        Raises NotLeader, BadLeaderTransferee.
        """
        if self._member.node.leader != self._member.member_id:
            raise NotLeader
        chosen = self._member.engine.member(to)
        if chosen is None or chosen.is_learner:
            raise BadLeaderTransferee
        self._transfer().begin(to, lambda error: on_result(None if error is None else as_kv_error(error)))

    # -- checks

    def _voters(self) -> list[Member]:
        return [member for member in self._member.engine.members() if not member.is_learner]

    def _quorum_started(self, more: int, more_started: int, *, without: int = 0) -> bool:
        """Whether the voters who have started are a quorum of the voters to be."""
        voters = [member for member in self._voters() if member.id != without]
        count = len(voters) + more
        started = sum(bool(member.name) for member in voters) + more_started
        if more and not more_started and started == 1 and count == 2:
            return True  # a single member must be able to grow
        return count > 0 and started >= count // 2 + 1

    def _healthy_voters(self) -> int:
        """How many voters, this member included, have been connected for long enough."""
        connected = self._membership().connected_seconds()
        return sum(
            voter.id == self._member.member_id or connected.get(voter.id, 0.0) >= self._healthy_s
            for voter in self._voters()
        )

    def _check_removal(self, member_id: int) -> None:
        leaving = self._member.engine.member(member_id)
        if leaving is not None and leaving.is_learner:
            return
        if not self._quorum_started(0, 0, without=member_id):
            raise NotEnoughStartedMembers
        away = member_id not in self._membership().connected_seconds()
        if member_id != self._member.member_id and away:
            return  # it is no part of the quorum that works now
        voters = len(self._voters())
        if self._healthy_voters() - 1 < 1 + (voters - 1) // 2:
            raise UnhealthyCluster

    # -- proposing

    def _propose(self, kind: ConfStepKind, command: MemberCommand, on_result: OnResult) -> None:
        change = ConfChange((ConfStep(kind, command.id),))
        self._membership().change(change, encode_member_command(command), partial(_completed, on_result))


def _completed(on_result: OnResult, outcome: Any, error: NodeError | None) -> None:
    on_result(outcome if error is None else as_kv_error(error))


def _checked_urls(urls: Sequence[str]) -> tuple[str, ...]:
    """Sorted, as etcd keeps them. Raises MemberUrlsInvalid for none, and for what no peer can dial."""
    try:
        parsed = sorted(parse_url(url) for url in urls)
    except ValueError:
        raise MemberUrlsInvalid from None
    if not parsed or any(url.scheme != "http" or not url.host or not url.port for url in parsed):
        raise MemberUrlsInvalid
    return tuple(map(str, parsed))

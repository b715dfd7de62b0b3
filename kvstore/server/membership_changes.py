"""Membership changes: members added, removed, updated and promoted, and leadership transferred.

The checks before a proposal are etcd's (`mayAddMember`, `mayRemoveMember`, `mayPromoteMember`): they protect
the quorum from an operator's mistake, as far as this member can see. The engine checks again when it applies
the change, whatever changes were proposed concurrently.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from kvstore.configuration.config_setting import parse_url
from kvstore.engine import (
    Member,
    MemberAdd,
    MemberCommand,
    MemberPromote,
    MemberRemove,
    MembersResult,
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
from kvstore.replica.outcome import OnResult, as_kv_error
from kvstore.replica.replica import OnBarrier, Replica
from raft.core.confchange import ConfChange, ConfStep, ConfStepKind
from raft.node import NodeError

HEALTHY_ELECTION_TIMEOUTS = 5
"""A member connected for so long counts as healthy: 5 s with the default timeout, as in etcd."""


class MembershipView(Protocol):
    """The part of `raft.node.membership` that changes use."""

    def change(
        self, change: ConfChange, command: bytes, on_result: Callable[[object, NodeError | None], None]
    ) -> None: ...
    def connected_seconds(self) -> dict[int, float]: ...


class TransferView(Protocol):
    """The part of the node's leadership transfer that `move_leader` uses."""

    def begin(self, to: int, on_result: Callable[[NodeError | None], object]) -> None: ...


def new_member_id() -> int:
    """64 random bits, which no earlier member had."""
    return secrets.randbits(64) or 1


class MembershipChanges:
    """Checks a request and proposes it to the node. Holds no state."""

    def __init__(
        self,
        replica: Replica,
        membership: Callable[[], MembershipView],
        transfer: Callable[[], TransferView],
        *,
        election_timeout_ms: int,
        learners_max: int,
        strict: bool,
        new_member_id: Callable[[], int] = new_member_id,
    ) -> None:
        """`strict`: refuse changes that might cost the quorum (`strict-reconfig-check`)."""
        self.new_member_id = new_member_id
        """Names the next member that joins, as no earlier one was named."""
        self._replica = replica
        self._membership = membership
        self._transfer = transfer
        self._healthy_s = HEALTHY_ELECTION_TIMEOUTS * election_timeout_ms / 1000
        self._learners_max = learners_max
        self._strict = strict

    def add(
        self,
        member_id: int,
        peer_urls: Sequence[str],
        *,
        is_learner: bool,
        on_result: OnResult[MembersResult],
    ) -> None:
        """Add a member under an id of `new_member_id`.

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

    def remove(self, member_id: int, on_result: OnResult[MembersResult]) -> None:
        """Remove a member permanently. Raises NotEnoughStartedMembers, UnhealthyCluster."""
        if self._strict:
            self._check_removal(member_id)
        self._propose(ConfStepKind.REMOVE, MemberRemove(member_id), on_result)

    def update(self, member_id: int, peer_urls: Sequence[str], on_result: OnResult[MembersResult]) -> None:
        """Change the peer URLs of a member. Raises MemberUrlsInvalid."""
        self._propose(ConfStepKind.UPDATE, MemberUpdate(member_id, _checked_urls(peer_urls)), on_result)

    def promote(self, member_id: int, on_result: OnResult[MembersResult]) -> None:
        """Make a learner a voter; the leader refuses while it lags. Raises NotEnoughStartedMembers."""
        if self._strict and not self._quorum_started(1, 1):
            raise NotEnoughStartedMembers
        self._propose(ConfStepKind.ADD_VOTER, MemberPromote(member_id), on_result)

    def move_leader(self, to: int, on_result: OnBarrier) -> None:
        """Transfer leadership to another voter. Raises NotLeader, BadLeaderTransferee."""
        if self._replica.node.leader != self._replica.member_id:
            raise NotLeader
        chosen = self._replica.engine.member(to)
        if chosen is None or chosen.is_learner:
            raise BadLeaderTransferee
        self._transfer().begin(to, lambda error: on_result(None if error is None else as_kv_error(error)))

    # -- checks

    def _voters(self) -> list[Member]:
        return [member for member in self._replica.engine.members() if not member.is_learner]

    def _quorum_started(self, more: int, more_started: int, *, without: int = 0) -> bool:
        """Whether the started voters are a quorum of the voters after the change."""
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
            voter.id == self._replica.member_id or connected.get(voter.id, 0.0) >= self._healthy_s
            for voter in self._voters()
        )

    def _check_removal(self, member_id: int) -> None:
        leaving = self._replica.engine.member(member_id)
        if leaving is not None and leaving.is_learner:
            return
        if not self._quorum_started(0, 0, without=member_id):
            raise NotEnoughStartedMembers
        disconnected = member_id not in self._membership().connected_seconds()
        if member_id != self._replica.member_id and disconnected:
            return  # it is no part of the current quorum
        voters = len(self._voters())
        if self._healthy_voters() - 1 < 1 + (voters - 1) // 2:
            raise UnhealthyCluster

    # -- proposing

    def _propose(
        self, kind: ConfStepKind, command: MemberCommand, on_result: OnResult[MembersResult]
    ) -> None:
        change = ConfChange((ConfStep(kind, command.id),))
        self._membership().change(change, encode_member_command(command), partial(_completed, on_result))


def _completed(on_result: OnResult[MembersResult], outcome: Any, error: NodeError | None) -> None:
    on_result(outcome if error is None else as_kv_error(error))


def _checked_urls(urls: Sequence[str]) -> tuple[str, ...]:
    """Sorted, as in etcd. Raises MemberUrlsInvalid for an empty list, and for URLs that no peer can dial."""
    try:
        parsed = sorted(parse_url(url) for url in urls)
    except ValueError:
        raise MemberUrlsInvalid from None
    if not parsed or any(url.scheme != "http" or not url.host or not url.port for url in parsed):
        raise MemberUrlsInvalid
    return tuple(map(str, parsed))

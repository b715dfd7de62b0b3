"""One member's replica: commands in, outcomes out, and linearizable reads.

The one module where the node (which knows no keys) and the engine (which knows no consensus) meet. No task
and no future per operation: every call completes by a callback on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, overload

from kvstore.engine import (
    Alarm,
    AlarmResult,
    Command,
    Compact,
    CompactResult,
    DeleteRange,
    DeleteResult,
    Engine,
    LeaseCheckpoint,
    LeaseExpire,
    LeaseGrant,
    LeaseGrantResult,
    LeaseResult,
    LeaseRevoke,
    MemberResult,
    Put,
    PutResult,
    SetMemberAttributes,
    Txn,
    TxnResult,
    encode,
)
from kvstore.errors import KVError, RequestTooLarge
from kvstore.replica.outcome import OnResult, as_kv_error
from kvstore.replica.quota import Quota
from raft.node import Answerer, NodeError, NodeEvent, NodeStatus, OnReply

OnBarrier = Callable[[KVError | None], None]
"""Called exactly once: None when a read of the engine is linearizable now."""


class NodeView(Protocol):
    """The part of `raft.node.Node` that this package and those above use."""

    @property
    def term(self) -> int: ...
    @property
    def leader(self) -> int: ...
    def status(self) -> NodeStatus: ...
    def propose(self, command: bytes, on_result: Callable[[object, NodeError | None], None]) -> None: ...
    def read_barrier(self, on_result: Callable[[NodeError | None], None]) -> None: ...
    def subscribe(self, listener: Callable[[NodeEvent], None]) -> None: ...
    def call_leader(self, data: bytes, on_result: OnReply) -> None: ...
    def answer_with(self, answerer: Answerer) -> None: ...


class Limits(NamedTuple):
    """Bounds on one request, from the configuration."""

    request_bytes_max: int
    """Size of an encoded command; larger ones are refused before they are proposed."""
    txn_operations_max: int
    """Compares, or operations of one branch, of a transaction."""
    leaderless_s: float = 3.0
    """Time without a leader after which calls that required one end: three election timeouts."""
    progress_interval_s: float = 600.0
    """Between two progress notifications of a watcher that requested them and gets no events."""


class Replica:
    """Joins the node, the engine and the quota of one member. Keeps counters only."""

    def __init__(
        self,
        *,
        node: NodeView,
        engine: Engine,
        cluster_id: int,
        member_id: int,
        limits: Limits,
        quota_bytes: int | None,
    ) -> None:
        self.node = node
        self.engine = engine
        self.cluster_id = cluster_id
        self.member_id = member_id
        self.limits = limits
        self.quota = Quota(engine, member_id, self.propose, quota_bytes)
        self.proposals_pending = 0
        """Proposals without an outcome."""
        self.proposals_failed = 0
        """Proposals that the node failed, since start."""
        self.read_indexes_failed = 0
        """Linearizable reads that no leader confirmed, since start."""

    def has_leader(self) -> bool:
        return self.node.leader != 0

    def is_learner(self) -> bool:
        member = self.engine.member(self.member_id)
        return member is not None and member.is_learner

    @overload
    def propose(self, command: Put, on_result: OnResult[PutResult]) -> None: ...
    @overload
    def propose(self, command: DeleteRange, on_result: OnResult[DeleteResult]) -> None: ...
    @overload
    def propose(self, command: Txn, on_result: OnResult[TxnResult]) -> None: ...
    @overload
    def propose(self, command: Compact, on_result: OnResult[CompactResult]) -> None: ...
    @overload
    def propose(self, command: Alarm, on_result: OnResult[AlarmResult]) -> None: ...
    @overload
    def propose(self, command: SetMemberAttributes, on_result: OnResult[MemberResult]) -> None: ...
    @overload
    def propose(self, command: LeaseGrant, on_result: OnResult[LeaseGrantResult]) -> None: ...
    @overload
    def propose(
        self, command: LeaseRevoke | LeaseExpire | LeaseCheckpoint, on_result: OnResult[LeaseResult]
    ) -> None: ...
    def propose(self, command: Command, on_result: OnResult[Any]) -> None:
        """Replicate a validated command. Raises RequestTooLarge; every other error goes to `on_result`."""
        data = encode(command)
        if len(data) > self.limits.request_bytes_max:
            raise RequestTooLarge
        self.proposals_pending += 1
        self.node.propose(data, partial(self._proposed, on_result))

    def _proposed(self, on_result: OnResult[Any], outcome: object, error: NodeError | None) -> None:
        """The node answers with what the engine returned, unseen: for this command, by the overloads."""
        self.proposals_pending -= 1
        if error is not None:
            self.proposals_failed += 1
            outcome = as_kv_error(error)
        on_result(outcome)

    def barrier(self, on_result: OnBarrier) -> None:
        """Complete when the engine reflects every write acknowledged before this call."""
        self.node.read_barrier(partial(self._confirmed, on_result))

    def _confirmed(self, on_result: OnBarrier, error: NodeError | None) -> None:
        if error is None:
            on_result(None)
            return
        self.read_indexes_failed += 1
        on_result(as_kv_error(error))

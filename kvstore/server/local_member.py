"""This member as its services see it: commands in, outcomes out, and reads with a proof.

The one place where the driver (which knows no keys) and the engine (which knows no consensus) meet.
No task and no future per operation: everything settles by a callback on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

from kvstore.engine import Command, Engine, encode
from kvstore.errors import KVError, RequestTooLarge
from kvstore.server.faults import as_kv_error
from kvstore.server.leader_loss import LeaderLoss
from kvstore.server.lessor import Lessor
from kvstore.server.quota import Quota
from kvstore.server.watch_hub import WatchHub
from raft.node import Answerer, NodeError, NodeEvent, NodeStatus, OnReply

OnResult = Callable[[Any], None]
"""Called exactly once, with the engine's result or with the KVError that stands for it."""

OnBarrier = Callable[[KVError | None], None]
"""Called exactly once: None when a read of the engine is linearizable now."""


class NodeView(Protocol):
    """The driver, as far as this room uses it."""

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
    """Time without a leader after which calls that asked for one are ended: three election timeouts."""
    progress_interval_s: float = 600.0
    """Between two progress notices of a watcher that wants them and is told nothing else."""


class LocalMember:
    """Joins driver, engine and quota of one member. Holds no state of its own but counters."""

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
        self.quota = Quota(self, quota_bytes)
        self.lessor = Lessor(self)
        self.watches = WatchHub(engine)
        """Who is told of what is applied here; whoever has the engine apply calls `watches.applied`."""
        self.leader_loss = LeaderLoss(limits.leaderless_s)
        """Whom it concerns that there is no leader for long."""
        self.proposals_pending = 0
        """Proposals handed to the driver and not yet settled."""
        self.proposals_failed = 0
        """Proposals the driver settled with an error, since start."""
        self.read_indexes_failed = 0
        """Linearizable reads that found no proof, since start."""

    def has_leader(self) -> bool:
        """Whether this member knows a leader of its term."""
        return self.node.leader != 0

    def is_learner(self) -> bool:
        """Whether this member only listens."""
        return any(member.id == self.member_id and member.is_learner for member in self.engine.members())

    def propose(self, command: Command, on_result: OnResult) -> None:
        """Replicate a validated command. Raises RequestTooLarge; all else comes through `on_result`."""
        data = encode(command)
        if len(data) > self.limits.request_bytes_max:
            raise RequestTooLarge
        self.proposals_pending += 1
        self.node.propose(data, partial(self._proposed, on_result))

    def _proposed(self, on_result: OnResult, outcome: object, error: NodeError | None) -> None:
        self.proposals_pending -= 1
        if error is not None:
            self.proposals_failed += 1
            outcome = as_kv_error(error)
        on_result(outcome)

    def barrier(self, on_result: OnBarrier) -> None:
        """Settle when the engine reflects every write acknowledged before this call."""
        self.node.read_barrier(partial(self._confirmed, on_result))

    def _confirmed(self, on_result: OnBarrier, error: NodeError | None) -> None:
        if error is None:
            on_result(None)
            return
        self.read_indexes_failed += 1
        on_result(as_kv_error(error))

"""A member of a cluster: the one loop that owns the consensus core, and the guarantees around it.

The guarantees, and where each is kept:

* A command completes exactly once: with its outcome, when it is applied *here*; with NotApplied, when it
  certainly never will be; with OutcomeUnknown otherwise. It is never applied twice. On its way to the leader
  (`forwarder`) it waits in `proposal_queue`; the leader takes it in order, once (`forwarding_sessions`).
  One rule decides which error a caller gets (`request_outcome`).
* A membership change likewise, one at a time (`change_queue`, `membership`).
* A read completes when the local state holds everything that was acknowledged anywhere before the read
  arrived (`reads`).
* A leader call is answered by a member that leads when it receives it, perhaps more than once (`leader_rpc`).
* No vote and no acknowledgement leaves before the disk holds it; messages to others leave before our own sync
  (`outbox`).
* A member whose replica is new, of another member, or truncated gives no vote or acknowledgement that an
  earlier one might contradict (`identity_check`, `torn_tail_guard`).
* A dead leader is replaced at once, a living one never for a lost connection (`failover`).
* The backend follows behind the log (`checkpointer`).
* A member that lags behind the log receives a snapshot, which becomes its state in one step; the log is
  compacted with a bounded tail for those that lag (`snapshots`, `compaction`).

The caller opens log, backend and transport, passes them to `assemble`, hands the log the hooks of the `Node`
it gets (`Node.fail` on a disk error, `Node.on_log_space`, `count_operations`), awaits `start`, and finally
awaits `stop`, which closes log and backend. All methods belong to one event loop; time is the loop's own, and
randomness comes from the generator given, so a virtual-time loop and a seed repeat a run.
"""

from raft.node.assembly import assemble
from raft.node.envelope import count_operations
from raft.node.leader_rpc import Answerer, OnReply
from raft.node.node import Node
from raft.node.node_config import NodeConfig, StartCampaign
from raft.node.node_errors import (
    BackendBeyondLog,
    ChangeRefused,
    LearnerNotReady,
    NodeError,
    NoLeader,
    NoSpace,
    NotApplied,
    OutcomeUnknown,
    ReadTimedOut,
    RequestTimedOut,
    Stopped,
    TooManyRequests,
    TransferFailed,
)
from raft.node.node_status import NodeEvent, NodeStatistics, NodeStatus
from raft.node.reads import OnRead
from raft.node.replica import MemberOptions, MemberStorage
from raft.node.request_outcome import OnResult
from raft.node.state_machine import StateMachine

__all__ = [
    "Answerer",
    "BackendBeyondLog",
    "ChangeRefused",
    "LearnerNotReady",
    "MemberOptions",
    "MemberStorage",
    "NoLeader",
    "NoSpace",
    "Node",
    "NodeConfig",
    "NodeError",
    "NodeEvent",
    "NodeStatistics",
    "NodeStatus",
    "NotApplied",
    "OnRead",
    "OnReply",
    "OnResult",
    "OutcomeUnknown",
    "ReadTimedOut",
    "RequestTimedOut",
    "StartCampaign",
    "StateMachine",
    "Stopped",
    "TooManyRequests",
    "TransferFailed",
    "assemble",
    "count_operations",
]

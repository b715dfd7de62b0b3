"""A member of a cluster: the one loop that owns the consensus core, and what is promised around it.

The promises, and where each is kept:

* A command is settled exactly once: with its outcome, when it is applied *here*; with NotApplied, when
  it certainly never will be; with OutcomeUnknown otherwise. It is never applied twice (`proposals`,
  `forwarding`).
* A read is settled when the local state holds everything that was acknowledged anywhere before the
  read arrived (`reads`).
* A question to the leader's application is answered by one that leads when it gets it, perhaps more
  than one (`leader_rpc`).
* No promise leaves before the disk holds it; messages to others leave before our own sync (`node`).
* A member with a fresh, foreign or cut disk makes no promises that an earlier disk might contradict
  (`identity_check`).
* A dead leader is replaced at once, a living one never for a lost connection (`failover`).
* The state file follows behind the log (`checkpointer`).
* A member that the log cannot help is brought an image of the state, which becomes its own in one step;
  the log is compacted with a bounded tail for those who lag (`snapshots`, `compaction`).

The caller constructs a `Node` from an opened log, state file and transport, hands the log its hooks
(`Node.fail` on a disk error, `Node.on_log_space`, `count_operations`), awaits `start`, and awaits `stop`
in the end, which closes log and state file. All methods belong to one event loop; time is the loop's
own, and chance comes from the generator given, so a virtual-time loop and a seed repeat a run.
"""

from raft.node.envelope import count_operations
from raft.node.leader_rpc import Answerer, OnReply
from raft.node.node import Node
from raft.node.node_config import NodeConfig
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
from raft.node.proposals import OnResult
from raft.node.reads import OnRead
from raft.node.state_machine import StateMachine

__all__ = [
    "Answerer",
    "BackendBeyondLog",
    "ChangeRefused",
    "LearnerNotReady",
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
    "StateMachine",
    "Stopped",
    "TooManyRequests",
    "TransferFailed",
    "count_operations",
]

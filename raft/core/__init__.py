"""Consensus: one member of a Raft cluster as a pure, deterministic machine.

Semantics of etcd-io/raft with asynchronous storage writes. The core never blocks, reads no clock,
owns no thread and does no I/O. Its caller (`raft.node`; tests) keeps this contract:

* One caller at a time. Feed inputs (`step`, `tick`, `propose`, ...), then `take_ready()` and execute
  all of it. A take consumes: a Ready is never dropped and never taken twice.
* `Ready.messages` may leave at once, even before the disk is touched. Messages to one member keep
  their order where the network allows; loss, repetition and reordering are survived.
* `Ready.append` goes to the log, first in, first out; several may be in flight, and one sync may cover
  several. Once it is durable, and not before, send its `responses` and call `on_append_done(token)`, in
  order (a later token's completion includes the earlier ones'). A failed write ends the process.
* `Ready.apply` holds entries both committed and durable here, each exactly once, without gaps. Pass every
  membership change among them to `apply_conf`, in log order; then call `on_apply_done`.
* A SNAPSHOT message requests that a snapshot at or above this log's base be sent to that member. The
  receiver's caller steps the message, with the metadata of the snapshot received, only once the bytes are
  durable; the core answers with `AppendWork.snapshot` if it needs it. That work is done when the log is
  marked *and* the state machine is restored. The sender's caller calls `report_snapshot`.
* Request contexts of `read_index` come back exactly once, as a read state or as dropped, or never if
  the network lost them: the caller keeps the clock.
* Ticks are the only time. After a stall deliver one or two, not the backlog, and messages first.

What is certain when: `propose` returns ids and guarantees nothing; an entry is committed when it is
applied under its id; a read may be served once `applied >= ReadState.index`.
"""

from raft.core.confchange import ConfChange, ConfStep, ConfStepKind, ConfTransition
from raft.core.core_config import BootState, Config
from raft.core.core_errors import (
    BootRefused,
    ConfChangeRefused,
    CoreError,
    DropReason,
    LogCompacted,
    ProposalDropped,
)
from raft.core.core_status import PeerStatus, Status
from raft.core.messages import Message, MessageType
from raft.core.progress import ProgressState
from raft.core.raft_core import RaftCore
from raft.core.ready import AppendToken, AppendWork, ApplyWork, ReadState, Ready
from raft.core.types import (
    EMPTY_HARD_STATE,
    EMPTY_SNAPSHOT,
    NO_NODE,
    ConfState,
    Entry,
    EntryId,
    EntryKind,
    HardState,
    Role,
    SnapshotMeta,
    SoftState,
)

__all__ = [
    "EMPTY_HARD_STATE",
    "EMPTY_SNAPSHOT",
    "NO_NODE",
    "AppendToken",
    "AppendWork",
    "ApplyWork",
    "BootRefused",
    "BootState",
    "ConfChange",
    "ConfChangeRefused",
    "ConfState",
    "ConfStep",
    "ConfStepKind",
    "ConfTransition",
    "Config",
    "CoreError",
    "DropReason",
    "Entry",
    "EntryId",
    "EntryKind",
    "HardState",
    "LogCompacted",
    "Message",
    "MessageType",
    "PeerStatus",
    "ProgressState",
    "ProposalDropped",
    "RaftCore",
    "ReadState",
    "Ready",
    "Role",
    "SnapshotMeta",
    "SoftState",
    "Status",
]

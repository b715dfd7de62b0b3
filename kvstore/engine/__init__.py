"""The replicated state machine: a multi-version key-value store with etcd's semantics.

Contract
* Pure and deterministic: no clock, no randomness, no input but commands. Two engines that applied the
  same batches from the same log answer alike, byte for byte, and hold the same rows.
* `check_*` before proposing, `encode` to propose, `Engine.apply` when committed, `Engine.range` and
  `Engine.read_txn` to read. Reads see what is applied; that they may be served is the caller's
  business.
* Each command is atomic and has its own revision and outcome. A refused one changed nothing; its
  outcome is the `KVError` itself. An exception out of `apply` means that this member no longer
  knows the state: stop the process.
* One revision counter for the whole store: 1 when empty, plus 1 for every command that changed at
  least one key. History stays readable until a `Compact`.
* While `observing`, `take_changes` yields what was changed, by whole revisions; `history` replays the
  same from any retained revision, in bounded slices. `to_event` makes of a change what a watch shows.
* `drain_changes` yields the rows that bring the backend to the applied state; `load` and
  `load_done` rebuild a fresh engine from those rows, ordered by row key.
* Leases are state without a clock: which exist, for how long, on which keys. That the time of one
  is over is a command of the leader that measures it, a no-op when it comes too late.
* Memory is bounded by the quota: the proposer compares `logical_bytes + quota_cost_bytes(...)`
  with it, and raises the NOSPACE alarm; while that stands, the engine refuses what would add.
"""

from kvstore.engine.commands import CommandError, decode, encode
from kvstore.engine.engine import BackendError, Engine
from kvstore.engine.lease_commands import (
    LEASE_CHECKPOINTS_MAX,
    Checkpoint,
    LeaseCheckpoint,
    LeaseExpire,
    LeaseGrant,
    LeaseRevoke,
)
from kvstore.engine.lease_table import Lease, Leases
from kvstore.engine.member_commands import (
    MemberAdd,
    MemberCommand,
    MemberPromote,
    MemberRemove,
    MemberUpdate,
    encode_member_command,
)
from kvstore.engine.record import change_bytes, is_deletion, to_event
from kvstore.engine.requests import (
    OPEN_END,
    Alarm,
    AlarmAction,
    AlarmType,
    Command,
    Compact,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    Operation,
    Put,
    Range,
    SetMemberAttributes,
    SortOrder,
    SortTarget,
    Txn,
    is_read_only,
    is_serializable,
    quota_cost_bytes,
)
from kvstore.engine.results import (
    AlarmMember,
    AlarmResult,
    Change,
    CompactResult,
    DeleteResult,
    Event,
    KeyValue,
    LeaseGrantResult,
    LeaseResult,
    Member,
    MemberResult,
    MembersResult,
    Outcome,
    PutResult,
    RangeResult,
    RevisionChanges,
    TxnResult,
)
from kvstore.engine.revision_history import HistorySlice
from kvstore.engine.validate import TXN_OPERATIONS_MAX, check_delete, check_put, check_range, check_txn

__all__ = [
    "LEASE_CHECKPOINTS_MAX",
    "OPEN_END",
    "TXN_OPERATIONS_MAX",
    "Alarm",
    "AlarmAction",
    "AlarmMember",
    "AlarmResult",
    "AlarmType",
    "BackendError",
    "Change",
    "Checkpoint",
    "Command",
    "CommandError",
    "Compact",
    "CompactResult",
    "Compare",
    "CompareResult",
    "CompareTarget",
    "DeleteRange",
    "DeleteResult",
    "Engine",
    "Event",
    "HistorySlice",
    "KeyValue",
    "Lease",
    "LeaseCheckpoint",
    "LeaseExpire",
    "LeaseGrant",
    "LeaseGrantResult",
    "LeaseResult",
    "LeaseRevoke",
    "Leases",
    "Member",
    "MemberAdd",
    "MemberCommand",
    "MemberPromote",
    "MemberRemove",
    "MemberResult",
    "MemberUpdate",
    "MembersResult",
    "Operation",
    "Outcome",
    "Put",
    "PutResult",
    "Range",
    "RangeResult",
    "RevisionChanges",
    "SetMemberAttributes",
    "SortOrder",
    "SortTarget",
    "Txn",
    "TxnResult",
    "change_bytes",
    "check_delete",
    "check_put",
    "check_range",
    "check_txn",
    "decode",
    "encode",
    "encode_member_command",
    "is_deletion",
    "is_read_only",
    "is_serializable",
    "quota_cost_bytes",
    "to_event",
]

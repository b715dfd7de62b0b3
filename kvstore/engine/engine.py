"""The replicated state machine: decodes commands, applies them, and yields the rows for the backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct

from kvstore.engine.commands import PLAIN_PUT, PUT_HEAD, CommandError, decode
from kvstore.engine.hashing import hash_slices
from kvstore.engine.lease_commands import LeaseCheckpoint, LeaseExpire, LeaseGrant, LeaseRevoke
from kvstore.engine.lease_table import LEASE_BYTES, LEASE_PREFIX, Leases
from kvstore.engine.leasing import run_lease_command
from kvstore.engine.member_commands import apply_member_command, decode_member_command
from kvstore.engine.ranges import read_range
from kvstore.engine.record import DATA_PREFIX
from kvstore.engine.requests import (
    Alarm,
    AlarmAction,
    Command,
    Compact,
    DeleteRange,
    Put,
    Range,
    SetMemberAttributes,
    Txn,
    is_read_only,
    quota_cost_bytes,
)
from kvstore.engine.results import (
    AlarmMember,
    AlarmResult,
    CompactResult,
    Member,
    MemberResult,
    Outcome,
    PutResult,
    RangeResult,
    Result,
    RevisionChanges,
    TxnResult,
)
from kvstore.engine.revision_history import HistorySlice, read_history
from kvstore.engine.store import FIRST_REVISION, NEVER_COMPACTED, Store
from kvstore.engine.tables import ALARM_PREFIX, MEMBER_PREFIX, REMOVED_PREFIX, Tables
from kvstore.engine.txn import delete, put, run_txn
from kvstore.errors import Corrupt, KVError, LeaseNotFound, MemberNotFound, NoSpace

SWEEP_PER_BATCH = 256
"""Compacted records dropped after each applied batch, at the least: about 1 ms of work, so that a
single put waiting behind it is not delayed."""
SWEEP_PER_STEP = 50_000
"""Dropped at once for those who ask for the space: about 60 ms, well within an election timeout, since all
members are busy with it at the same time. More is asked for step by step."""
SWEEP_PER_CHANGE = 2
"""And for each change the batch made: a change supersedes at most one record, so the sweep gains on
the writers whatever they do."""

BACKEND_VERSION = 1
STATE_ROW = b"s"
"""The one row of numbers: backend version u8, revision i64, compact revision i64."""
_STATE = Struct(">Bqq")

_PUT_HEAD_BYTES = PUT_HEAD.size
_unpack_put = PUT_HEAD.unpack_from


def unpack_state(value: bytes) -> tuple[int, int]:
    """Revision and compact revision in the value of STATE_ROW."""
    _, revision, compact_revision = _STATE.unpack(value)
    return revision, compact_revision


class BackendError(ValueError):
    """The backend was written by a version this one does not know."""


def pack_state(revision: int, compact_revision: int) -> bytes:
    """The value of STATE_ROW."""
    return _STATE.pack(BACKEND_VERSION, revision, compact_revision)


class Engine:
    """See the package's contract. Structurally a `raft.node.state_machine.Machine`."""

    def __init__(self, *, members: Iterable[Member] = ()) -> None:
        """`members` is the bootstrap membership, identical on all of them. It is stored like any
        other state; a loaded backend replaces it."""
        self._store = Store()
        self._tables = Tables(members)
        self._entry = (0, 0)
        """Log index and term of the entry being applied."""
        self._saved_state = b""
        """The state row as last drained or loaded; empty before the first."""
        self._changes: list[RevisionChanges] = []
        """Since the last `take_changes`, while observed."""

    # -- applying --------------------------------------------------------------------------------

    def apply(
        self, index: int, term: int, commands: Sequence[bytes], wanted: bool
    ) -> Sequence[Outcome[Result]]:
        """Apply a batch: one outcome per command in order, or none at all unless `wanted`.

        A refused command's outcome is its KVError. Raises CommandError for bytes that are no
        command: then this member cannot know the state any more and must stop.
        """
        outcomes: list[Outcome[Result]] = []
        self._entry = index, term
        store = self._store
        tables = self._tables
        unsaved = store.unsaved_records
        plain = not (tables.no_space or tables.corrupt)
        for data in commands:
            if plain and data.startswith(PLAIN_PUT):
                _, _, _, lease, length = _unpack_put(data)
                if not lease:
                    middle = _PUT_HEAD_BYTES + length
                    if middle > len(data):
                        raise CommandError("put truncated")
                    store.put(data[_PUT_HEAD_BYTES:middle], data[middle:], 0)
                    self._commit()
                    if wanted:
                        outcomes.append(PutResult(store.revision, None))
                    continue
            outcome = self._apply_command(decode(data))
            if wanted:
                outcomes.append(outcome)
            plain = not (tables.no_space or tables.corrupt)
        if store.sweeping:
            changes = store.unsaved_records - unsaved
            store.sweep(max(SWEEP_PER_BATCH, SWEEP_PER_CHANGE * changes))
        return outcomes

    def apply_change(self, index: int, term: int, command: bytes, fits: bool) -> tuple[bool, Outcome[Result]]:
        """Apply our half of a membership change: whether it is accepted, and its outcome.

        Raises ValueError for bytes that are no membership command: then this member must stop.
        """
        self._entry = index, term
        wanted = decode_member_command(command)
        return apply_member_command(self._tables, wanted, fits=fits, revision=self._store.revision)

    def _apply_command(self, command: Command) -> Outcome[Result]:
        store = self._store
        try:
            outcome = self._run_command(command)
        except KVError as refusal:
            assert store.visible_revision == store.revision, "a refused command changed something"
            return refusal
        self._commit()
        return outcome

    def _commit(self) -> None:
        store = self._store
        if store.commit() and store.observing:
            self._changes.append(RevisionChanges(store.revision, store.changes))
            store.changes = []

    def _run_command(self, command: Command) -> Outcome[Result]:
        store = self._store
        if isinstance(command, Alarm):
            return self._apply_alarm(command)
        if isinstance(command, SetMemberAttributes):
            if not self._tables.set_attributes(*command):
                raise MemberNotFound
            return MemberResult(store.revision)
        if self._tables.corrupt:
            raise Corrupt
        if self._tables.no_space and quota_cost_bytes(command):
            raise NoSpace
        if isinstance(command, Put):
            if command.lease and command.lease not in store.leases:
                raise LeaseNotFound
            return put(store, command)
        if isinstance(command, DeleteRange):
            return delete(store, command)
        if isinstance(command, Txn):
            return run_txn(store, command)
        if isinstance(command, (LeaseGrant, LeaseRevoke, LeaseExpire, LeaseCheckpoint)):
            return run_lease_command(store, command, *self._entry)
        return self._compact(command)

    def _compact(self, command: Compact) -> CompactResult:
        store = self._store
        if not command.resume:
            store.compact(command.revision)
        # While space is short it must come back soon: writes, which would drive the sweep, are refused.
        if command.physical or self._tables.no_space:
            store.sweep(SWEEP_PER_STEP)
        return CompactResult(store.revision, store.sweeping)

    def _apply_alarm(self, command: Alarm) -> AlarmResult:
        alarm = AlarmMember(command.member_id, command.alarm)
        acted = False
        if command.action == AlarmAction.ACTIVATE:
            acted = self._tables.activate(alarm)
        elif command.action == AlarmAction.DEACTIVATE:
            acted = self._tables.deactivate(alarm)
        elif command.action == AlarmAction.GET:
            return AlarmResult(self._store.revision, self._tables.alarms(command.alarm))
        return AlarmResult(self._store.revision, (alarm,) if acted else ())

    # -- reading ---------------------------------------------------------------------------------

    def range(self, request: Range) -> RangeResult:
        """Raises FutureRevision, Compacted."""
        return read_range(self._store, request)

    def read_txn(self, txn: Txn) -> TxnResult:
        """A transaction that cannot write (`is_read_only`). Raises FutureRevision, Compacted."""
        assert is_read_only(txn), "a transaction that may write must go through the log"
        return run_txn(self._store, txn)

    @property
    def revision(self) -> int:
        return self._store.revision

    @property
    def compact_revision(self) -> int:
        """-1 before the first compaction, as in etcd."""
        return self._store.compact_revision

    @property
    def key_count(self) -> int:
        return len(self._store.current)

    @property
    def logical_bytes(self) -> int:
        """What the quota counts: all stored revisions and leases, equal on all members at one log index."""
        return self._store.logical_bytes + LEASE_BYTES * len(self._store.leases)

    @property
    def logical_bytes_in_use(self) -> int:
        """The current revisions and the leases alone."""
        return self._store.logical_bytes_in_use + LEASE_BYTES * len(self._store.leases)

    @property
    def leases(self) -> Leases:
        """Read-only; also reports to a lessor which leases changed."""
        return self._store.leases

    def members(self) -> tuple[Member, ...]:
        """Sorted by id."""
        return self._tables.members()

    def member(self, member_id: int) -> Member | None:
        """None for one that is unknown or removed."""
        return self._tables.member(member_id)

    def peer_urls(self, member_id: int) -> tuple[str, ...] | None:
        """Where a member is reached by the others; None for one that is unknown or removed."""
        member = self._tables.member(member_id)
        return None if member is None else member.peer_urls

    def is_removed(self, member_id: int) -> bool:
        return self._tables.is_removed(member_id)

    def alarms(self) -> tuple[AlarmMember, ...]:
        return self._tables.alarms()

    def hash_slices(self, revision: int = 0) -> tuple[int, Iterator[int | None]]:
        """The revision meant (0: now), and in slices of bounded work (None after each) the CRC-32
        over the retained history up to it; equal on all members.

        Visits every key; commands may be applied between two slices. Raises FutureRevision,
        Compacted, the iterator too.
        """
        readable = self._store.readable_revision(revision)
        return readable, hash_slices(self._store, readable)

    def hash_kv(self, revision: int = 0) -> int:
        """What `hash_slices` gives in the end, at once. Raises FutureRevision, Compacted."""
        (checksum,) = (found for found in self.hash_slices(revision)[1] if found is not None)
        return checksum

    # -- changes ---------------------------------------------------------------------------------

    @property
    def observing(self) -> bool:
        """Whether `apply` keeps changes for `take_changes`. A caller that sets it must take them."""
        return self._store.observing

    @observing.setter
    def observing(self, observing: bool) -> None:
        self._store.observing = observing
        self._store.changes = []
        self._changes = []

    def take_changes(self) -> list[RevisionChanges]:
        """Changes since the last call, whole revisions, with the pair before each."""
        changes, self._changes = self._changes, []
        return changes

    def history(self, key: bytes, range_end: bytes, start: int) -> HistorySlice:
        """Changes of an interval from a past revision on, a slice of them. Raises Compacted.

        Together the slices are what `take_changes` gave, but for previous pairs that are compacted.
        """
        return read_history(self._store, key, range_end, start)

    # -- the backend -------------------------------------------------------------------------------

    def drain_changes(self) -> list[tuple[bytes, bytes | None]]:
        """Rows changed since the last drain, one per row key; None deletes."""
        rows = self._store.drain_rows()
        rows += self._store.leases.drain_rows()
        rows += self._tables.drain_rows()
        state = self._state_row()
        if state != self._saved_state:
            self._saved_state = state
            rows.append((STATE_ROW, state))
        return rows

    def pending_change_bytes(self) -> int:
        return self._store.pending_change_bytes() + self._store.leases.pending_change_bytes

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Load rows of a backend, in row key order, in any number of calls.

        Only on a fresh engine. Raises BackendError for a backend of another version.
        """
        assert self._store.revision == FIRST_REVISION, "only a fresh engine can load"
        data_rows = (row for row in rows if row[0][:1] == DATA_PREFIX or self._load_other(*row))
        self._store.load_rows(data_rows)

    def load_done(self) -> None:
        """The backend is loaded. Harmless after no rows at all."""
        if not self._saved_state:
            self._store.load_done(FIRST_REVISION, NEVER_COMPACTED)
            return
        _, revision, compact_revision = _STATE.unpack(self._saved_state)
        self._store.load_done(revision, compact_revision)

    def fresh(self) -> Engine:
        """An empty engine, to load a backend into."""
        return Engine()

    def replace(self, loaded: Engine) -> None:
        """Hold the state of `loaded`, all of it at once; `loaded` is given up. Observers keep observing,
        and have missed what lies between: they read anew."""
        observing = self.observing
        self.__dict__.update(loaded.__dict__)  # all there is, so that no part added later is forgotten
        self.observing = observing

    def _load_other(self, row: bytes, value: bytes) -> bool:
        """Take a row that is not a key's; always False, so that it can stand in a filter."""
        if row == STATE_ROW:
            if value[:1] != bytes((BACKEND_VERSION,)):
                raise BackendError(f"backend of version {value[:1].hex()}, known is {BACKEND_VERSION}")
            self._saved_state = value
        elif row[:1] == LEASE_PREFIX:
            self._store.leases.load_row(row, value)
        elif row[:1] in (MEMBER_PREFIX, REMOVED_PREFIX, ALARM_PREFIX):
            self._tables.load_row(row, value)
        else:
            raise BackendError(f"unknown row {row[:16]!r} in the backend")
        return False

    def _state_row(self) -> bytes:
        return pack_state(self._store.revision, self._store.compact_revision)

"""The multi-version map: every key's current revision, and its history until compaction.

Where things live
    current    key -> newest record, for keys that exist
    history    key -> older records and tombstones, oldest first, only for keys that have any:
               a lone record as it stands, several as a list
    live       the keys of `current`, sorted
    dead       the keys of `history` that do not exist now, sorted
So a put of a new key makes no container, and an overwrite moves the old record without a copy.

A command changes the store through `put` and `delete_range` and then calls `commit`, which raises
the revision by one if anything changed. Whatever may refuse the command is checked before.

Compaction only moves `compact_revision`: from then on older revisions cannot be read. The records
out of reach are dropped by `sweep`, a bounded number after each applied batch, in an order
that depends on the stored records alone. So the stored records, and with them `logical_bytes`, are
the same on every member at the same log index, also on one that was loaded from a backend.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from sortedcontainers import SortedList  # type: ignore[import-untyped]  # ships no types

from kvstore.engine.changelog import ChangeLog
from kvstore.engine.lease_table import Leases
from kvstore.engine.record import (
    HEADER_BYTES,
    ROW_OVERHEAD_BYTES,
    is_tombstone,
    lease_of,
    make_record,
    make_tombstone,
    mod_revision_of,
    row_bytes,
    row_key,
    unpack_header,
    user_key,
)
from kvstore.engine.requests import OPEN_END
from kvstore.engine.results import Change
from kvstore.errors import Compacted, FutureRevision

FIRST_REVISION = 1
"""Of an empty store; the first write makes 2."""

NEVER_COMPACTED = -1
"""`compact_revision` before the first compaction, as etcd has it: compacting at 0 is then legal."""


class Store:
    """Not thread-safe, never blocks, same inputs same state."""

    def __init__(self) -> None:
        self.leases = Leases()
        self.revision = FIRST_REVISION
        """Of the last command that changed something. Never decreases."""
        self.compact_revision = NEVER_COMPACTED
        """Reads below it are refused. Never decreases; at most `revision`."""
        self.current: dict[bytes, bytes] = {}
        self.history: dict[bytes, bytes | list[bytes]] = {}
        self.live: Any = SortedList()
        self.dead: Any = SortedList()
        self.observing = False
        """Collect `changes`; costs nothing when False."""
        self.changes: list[Change] = []
        """Of the command being applied, in order, while `observing`: key, new record (perhaps a
        tombstone), record before the revision."""
        self.log = ChangeLog(FIRST_REVISION)
        """Which keys changed when."""
        self._sub = 0
        """Changes made by the command being applied; 0 between commands."""

        self._superseded_keys: deque[bytes] = deque()
        """One entry per record in `history` that is no tombstone, in the order in which they were
        superseded; entry i was superseded at `_superseded_revisions[i]`. Entries of one key stand
        in the order of its history."""
        self._superseded_revisions: deque[int] = deque()
        self._tombstones_kept: list[bytes] = []
        """Keys whose history begins with a tombstone exactly at `compact_revision`: a watch that
        starts there must still see the deletion. The next compaction drops it."""
        self._tombstones_expired: deque[bytes] = deque()
        """Those of earlier compactions, sorted by key, still to be dropped. They go before anything
        else, so while there are any, this compaction has kept none yet."""

        self._written_bytes = 0
        """Bytes of all rows ever stored (or loaded); `_written_bytes - _dropped_bytes` are held."""
        self._dropped_bytes = 0
        self._history_bytes = 0
        """Bytes held by `history`."""
        self._drained_bytes = 0
        """`_written_bytes` at the last drain."""
        self._unsaved_keys: list[bytes] = []
        """Keys of `_unsaved_records`, the rows the backend lacks, in the order they were made."""
        self._unsaved_records: list[bytes] = []
        self._unsaved_drops: list[bytes] = []
        """Row keys the backend may still hold and the store does not."""

        self._loading_key: bytes | None = None
        """While loading: the key of the last row, whose record is not placed yet because the next
        row may belong to the same key."""
        self._loading_record = b""

    # -- size ------------------------------------------------------------------------------------

    @property
    def logical_bytes(self) -> int:
        """All stored revisions, by `row_bytes`. The same on all members at the same log index."""
        return self._written_bytes - self._dropped_bytes

    @property
    def logical_bytes_in_use(self) -> int:
        """Current revisions alone: what compacting everything would leave."""
        return self._written_bytes - self._dropped_bytes - self._history_bytes

    # -- writing ---------------------------------------------------------------------------------

    @property
    def visible_revision(self) -> int:
        """What a read inside the command being applied sees as current."""
        return self.revision + 1 if self._sub else self.revision

    def put(self, key: bytes, value: bytes, lease: int) -> bytes | None:
        """Write in the revision being made; returns the record before."""
        main = self.revision + 1
        old = self.current.get(key)
        if old is None:
            record = make_record(main, main, 1, lease, self._sub, value)
            self.live.add(key)
            if key in self.history:
                self.dead.remove(key)
            if lease:
                self.leases.moved(key, 0, lease)
        else:
            create, _, version, old_lease, _ = unpack_header(old)
            record = make_record(create, main, version + 1, lease, self._sub, value)
            self._supersede(key, old, main)
            if lease != old_lease:
                self.leases.moved(key, old_lease, lease)
        self.current[key] = record
        self._sub += 1
        self._written_bytes += len(key) + len(record) + ROW_OVERHEAD_BYTES
        self._unsaved_keys.append(key)
        self._unsaved_records.append(record)
        self.log.append(main, key)
        if self.observing:
            self._observe(key, record, old, main)
        return old

    def delete_range(self, key: bytes, range_end: bytes) -> list[tuple[bytes, bytes]]:
        """Delete in the revision being made; returns the keys and their records before."""
        if not range_end:
            old = self.current.get(key)
            if old is None:
                return []
            deleted = [(key, old)]
            self.live.remove(key)
            self.dead.add(key)
        else:
            low, high = self.slice_of(self.live, key, range_end)
            if low == high:
                return []
            keys = self.live[low:high]
            deleted = [(each, self.current[each]) for each in keys]
            del self.live[low:high]
            self.dead.update(keys)
        main = self.revision + 1
        for each, old in deleted:
            tombstone = make_tombstone(main, self._sub)
            self._sub += 1
            del self.current[each]
            lease = lease_of(old)
            if lease:
                self.leases.moved(each, lease, 0)
            self._supersede(each, old, main)
            self._append_history(each, tombstone)
            self._written_bytes += row_bytes(each, tombstone)
            self._unsaved_keys.append(each)
            self._unsaved_records.append(tombstone)
            self.log.append(main, each)
            if self.observing:
                self._observe(each, tombstone, old, main)
        return deleted

    def _observe(self, key: bytes, record: bytes, before: bytes | None, main: int) -> None:
        """What a watcher is shown as previous is the pair before the revision, as in etcd, also when
        one command changed a key twice."""
        if before is not None and mod_revision_of(before) == main:
            before = self.record_at(key, main - 1)
        self.changes.append((key, record, before))

    def commit(self) -> bool:
        """End of a command: one new revision if it changed anything. Returns whether it did."""
        if not self._sub:
            return False
        self._sub = 0
        self.revision += 1
        return True

    def _supersede(self, key: bytes, old: bytes, main: int) -> None:
        self._superseded_keys.append(key)
        self._superseded_revisions.append(main)
        self._append_history(key, old)

    def _append_history(self, key: bytes, record: bytes) -> None:
        past = self.history.get(key)
        if past is None:
            self.history[key] = record
        elif isinstance(past, list):
            past.append(record)
        else:
            self.history[key] = [past, record]
        self._history_bytes += len(key) + len(record) + ROW_OVERHEAD_BYTES

    # -- reading ---------------------------------------------------------------------------------

    def readable_revision(self, revision: int) -> int:
        """The revision a range asks for, checked. Raises FutureRevision, Compacted."""
        current = self.visible_revision
        if revision > current:
            raise FutureRevision
        if revision <= 0:
            revision = current
        if revision < self.compact_revision:
            raise Compacted
        return revision

    @staticmethod
    def slice_of(keys: Any, key: bytes, range_end: bytes) -> tuple[int, int]:
        """Positions of an interval in a sorted list of keys; empty when upside down."""
        low: int = keys.bisect_left(key)
        high: int = len(keys) if range_end == OPEN_END else keys.bisect_left(range_end)
        return low, max(low, high)

    def select(
        self, key: bytes, range_end: bytes, revision: int, limit: int
    ) -> tuple[list[tuple[bytes, bytes]], int]:
        """Keys and records of an interval at a revision, in key order, at most `limit` (0: all);
        and how many there are in all."""
        if not range_end:
            record = self.record_at(key, revision)
            return ([], 0) if record is None else ([(key, record)], 1)
        low, high = self.slice_of(self.live, key, range_end)
        if revision == self.visible_revision:
            stop = min(high, low + limit) if limit > 0 else high
            current = self.current
            return [(each, current[each]) for each in self.live[low:stop]], high - low
        keys = self.live[low:high]
        low, high = self.slice_of(self.dead, key, range_end)
        if low < high:
            keys = sorted(keys + self.dead[low:high])
        found = [(each, record) for each in keys if (record := self.record_at(each, revision)) is not None]
        return (found[:limit] if limit > 0 else found), len(found)

    def count(self, key: bytes, range_end: bytes, revision: int) -> int:
        if range_end and revision == self.visible_revision:
            low, high = self.slice_of(self.live, key, range_end)
            return high - low
        return self.select(key, range_end, revision, 0)[1]

    def record_at(self, key: bytes, revision: int) -> bytes | None:
        """The record of a key as of a readable revision, None if it did not exist then."""
        record = self.current.get(key)
        if record is not None and mod_revision_of(record) <= revision:
            return record
        past = self.history.get(key)
        if past is None:
            return None
        if isinstance(past, list):
            position = bisect_right(past, revision, key=mod_revision_of)
            if not position:
                return None
            record = past[position - 1]
        else:
            record = past
            if mod_revision_of(record) > revision:
                return None
        return None if is_tombstone(record) else record

    def records_of(self, key: bytes, start: int, limit: int, stop: int = 0) -> list[bytes]:
        """A key's records and tombstones from revision `start` on, oldest first, at most `limit`
        (0: all), those before `stop` (0: all)."""
        past = self.history.get(key, ())
        if isinstance(past, bytes):
            past = [past]
        low = bisect_left(past, start, key=mod_revision_of)
        high = bisect_left(past, stop, low, key=mod_revision_of) if stop else len(past)
        records = list(past[low : min(high, low + limit) if limit else high])
        present = self.current.get(key)
        if present is not None and (not limit or len(records) < limit):
            mod = mod_revision_of(present)
            if start <= mod and (not stop or mod < stop):
                records.append(present)
        return records

    def build_log(self, budget: int) -> int:
        """Take a step at building what the change log lacks of a loaded backend; the visits it took."""
        return self.log.build(
            lambda: [*self.current, *self.dead],
            lambda key: map(mod_revision_of, self.records_of(key, 0, 0)),
            budget,
        )

    # -- compaction ------------------------------------------------------------------------------

    def compact(self, revision: int) -> None:
        """Forbid reads below `revision`. Raises Compacted, FutureRevision."""
        if revision <= self.compact_revision:
            raise Compacted
        if revision > self.revision:
            raise FutureRevision
        self.compact_revision = revision
        self.log.trim(revision)
        if self._tombstones_kept:
            assert not self._tombstones_expired, "tombstones were kept before the expired ones had gone"
            self._tombstones_expired.extend(sorted(self._tombstones_kept))
            self._tombstones_kept = []

    @property
    def sweeping(self) -> bool:
        """Whether compacted records are still held."""
        return bool(self._tombstones_expired) or (
            bool(self._superseded_revisions) and self._superseded_revisions[0] <= self.compact_revision
        )

    def sweep(self, budget: int) -> None:
        """Drop up to `budget` compacted records (0: all)."""
        remaining = budget or len(self._tombstones_expired) + len(self._superseded_keys)
        while self._tombstones_expired and remaining:
            remaining -= 1
            self._forget(self._tombstones_expired.popleft(), 0)
        counts: dict[bytes, int] = {}
        revisions, keys = self._superseded_revisions, self._superseded_keys
        while revisions and remaining and revisions[0] <= self.compact_revision:
            remaining -= 1
            revisions.popleft()
            key = keys.popleft()
            counts[key] = counts.get(key, 0) + 1
        for key, count in counts.items():
            self._forget(key, count)

    def is_retained(self, record: bytes, after: bytes | None) -> bool:
        """Whether compaction leaves a record, `after` being the next one of its key."""
        if after is not None and mod_revision_of(after) <= self.compact_revision:
            return False
        return not is_tombstone(record) or mod_revision_of(record) >= self.compact_revision

    def _forget(self, key: bytes, count: int) -> None:
        """Drop the `count` oldest records of a key, with the tombstones before and behind them."""
        past = self.history.get(key)
        if past is None:
            return
        records = past if isinstance(past, list) else [past]
        position = 0
        while position < len(records):
            record = records[position]
            if is_tombstone(record):
                after = records[position + 1] if position + 1 < len(records) else self.current.get(key)
                if self.is_retained(record, after):
                    self._tombstones_kept.append(key)
                    break
            elif count:
                count -= 1
            else:
                break
            size = row_bytes(key, record)
            self._dropped_bytes += size
            self._history_bytes -= size
            self._unsaved_drops.append(row_key(key, record))
            position += 1
        assert not count, "a superseded record was not in the history of its key"
        if position == len(records):
            del self.history[key]
            if key not in self.current:
                self.dead.remove(key)
        elif position:
            if len(records) - position == 1:
                self.history[key] = records[-1]
            else:
                del records[:position]

    # -- the backend -------------------------------------------------------------------------------

    def pending_change_bytes(self) -> int:
        unsaved_drops_bytes = len(self._unsaved_drops) * ROW_OVERHEAD_BYTES
        return self._written_bytes - self._drained_bytes + unsaved_drops_bytes

    @property
    def unsaved_records(self) -> int:
        """Records made since the last drain, that is: changes."""
        return len(self._unsaved_records)

    def drain_rows(self) -> list[tuple[bytes, bytes | None]]:
        """Rows made and dropped since the last call, one per row key."""
        keys, records, drops = self._unsaved_keys, self._unsaved_records, self._unsaved_drops
        self._unsaved_keys, self._unsaved_records, self._unsaved_drops = [], [], []
        self._drained_bytes = self._written_bytes
        if not drops:
            return [(row_key(key, record), record) for key, record in zip(keys, records, strict=True)]
        rows: dict[bytes, bytes | None] = dict(zip(map(row_key, keys, records), records, strict=True))
        rows.update(dict.fromkeys(drops))
        return list(rows.items())

    def load_rows(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Load data rows of a backend in row key order, in any number of calls."""
        last_key, last_record = self._loading_key, self._loading_record
        last_prefix = row_key(last_key, last_record)[:-16] if last_key is not None else None
        current = self.current
        written = 0
        for row, record in rows:
            assert len(record) >= HEADER_BYTES, "not a record"
            written += len(record)
            prefix = row[:-16]
            if prefix == last_prefix:
                assert last_key is not None
                self._append_history(last_key, last_record)
            else:
                if last_key is not None:
                    if is_tombstone(last_record):
                        self._append_history(last_key, last_record)
                    else:
                        current[last_key] = last_record
                last_key = user_key(row)
                last_prefix = prefix
            written += len(last_key) + ROW_OVERHEAD_BYTES
            last_record = record
        self._loading_key, self._loading_record = last_key, last_record
        self._written_bytes += written

    def load_done(self, revision: int, compact_revision: int) -> None:
        """All rows are in: build the indexes."""
        key, record = self._loading_key, self._loading_record
        self._loading_key, self._loading_record = None, b""
        if key is not None:
            if is_tombstone(record):
                self._append_history(key, record)
            else:
                self.current[key] = record
        self.revision = revision
        self.compact_revision = compact_revision
        self.log = ChangeLog(revision)
        self._drained_bytes = self._written_bytes
        self.live = SortedList(self.current)
        self.dead = SortedList([key for key in self.history if key not in self.current])
        if self.leases:
            named = ((each, lease_of(self.current[each])) for each in self.live)
            self.leases.load_keys((each, lease) for each, lease in named if lease)
        self._rebuild_superseded()

    def _rebuild_superseded(self) -> None:
        entries: list[tuple[int, int, bytes]] = []
        for key, records in self._histories():
            if is_tombstone(records[0]):
                if mod_revision_of(records[0]) < self.compact_revision:
                    self._tombstones_expired.append(key)
                elif mod_revision_of(records[0]) == self.compact_revision:
                    self._tombstones_kept.append(key)
            present = self.current.get(key)
            for position, record in enumerate(records):
                if not is_tombstone(record):
                    after = records[position + 1] if position + 1 < len(records) else present
                    assert after is not None, "a key neither exists nor ends in a tombstone"
                    _, mod, _, _, sub = unpack_header(after)
                    entries.append((mod, sub, key))
        entries.sort()
        self._superseded_keys = deque(key for _, _, key in entries)
        self._superseded_revisions = deque(mod for mod, _, _ in entries)

    def _histories(self) -> Iterator[tuple[bytes, list[bytes]]]:
        for key, past in self.history.items():
            yield key, past if isinstance(past, list) else [past]

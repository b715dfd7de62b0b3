"""The replicated side of leases: which exist, how long each lives, and which keys hang on them.

No clock: who measures time is the leader's lessor, above. A lease is one packed `bytes` object, and
one with a single key holds that key as it stands, so that a hundred thousand sessions of one key
each cost the collector nothing. The keys of a lease are not stored: each record names its lease, and
`load_done` of the store finds them again.

    row   "l" | id i64   ->  log index of the grant u64 | ttl i64 | remaining i64 (0: all of it)
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import NamedTuple
from zlib import crc32

from kvstore.errors import LeaseExists, LeaseNotFound

LEASE_PREFIX = b"l"

LEASE_BYTES = 256
"""What a lease counts for in the quota: what id, packed row, dict slots and the lessor's own entry
take in memory, rounded up."""

_ROW_KEY = Struct(">cq")
_ROW = Struct(">Qqq")


class Lease(NamedTuple):
    id: int
    granted_at: int
    """Log index of its grant: distinguishes it from an earlier one of the same id."""
    ttl_seconds: int
    remaining_seconds: int
    """What a new leader starts it with; 0 means the full time."""


class Leases:
    """Changed only by applied commands, so equal on all members at the same log index."""

    def __init__(self) -> None:
        self._rows: dict[int, bytes] = {}
        """Packed as in the backend."""
        self._keys: dict[int, bytes | dict[bytes, None]] = {}
        """Keys by lease, only for those that have any: one as it stands, several as a dict in the
        order of attaching. Exactly the current records that name the lease."""
        self._unsaved: dict[int, None] = {}
        """Leases whose row the backend lacks, or still has."""
        self._changed: dict[int, None] = {}
        """Leases granted, ended or checkpointed since the last `take_changed`, while `observing`."""
        self.observing = False
        """A caller that sets it takes the changes."""
        self.granted = 0
        self.revoked = 0
        """Since start, the expired ones too."""
        self.expired = 0

    def __contains__(self, lease_id: int) -> bool:
        return lease_id in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self) -> list[int]:
        """In the order of their grants, as far as this process saw them."""
        return list(self._rows)

    def find(self, lease_id: int) -> Lease | None:
        row = self._rows.get(lease_id)
        return None if row is None else Lease(lease_id, *_ROW.unpack(row))

    def keys_of(self, lease_id: int) -> list[bytes]:
        """Sorted; empty for an unknown lease."""
        keys = self._keys.get(lease_id)
        if keys is None:
            return []
        return [keys] if isinstance(keys, bytes) else sorted(keys)

    def grant(self, lease_id: int, ttl_seconds: int, index: int) -> None:
        """Raises LeaseNotFound for the id that stands for no lease, LeaseExists."""
        if not lease_id:
            raise LeaseNotFound
        if lease_id in self._rows:
            raise LeaseExists
        self._set(lease_id, _ROW.pack(index, ttl_seconds, 0))
        self.granted += 1

    def end(self, lease_id: int) -> list[bytes]:
        """Forget a lease; the keys to delete, sorted. Raises LeaseNotFound."""
        if lease_id not in self._rows:
            raise LeaseNotFound
        keys = self.keys_of(lease_id)
        del self._rows[lease_id]
        self._keys.pop(lease_id, None)
        self._touch(lease_id)
        self.revoked += 1
        return keys

    def is_from(self, lease_id: int, granted_at: int) -> bool:
        """Whether the lease exists and is that of the grant at this log index."""
        row = self._rows.get(lease_id)
        return row is not None and bool(_ROW.unpack(row)[0] == granted_at)

    def checkpoint(self, lease_id: int, remaining_seconds: int) -> None:
        """A new leader starts the lease with this; 0: with its full time. The lease must exist."""
        granted_at, ttl_seconds, _ = _ROW.unpack(self._rows[lease_id])
        self._set(lease_id, _ROW.pack(granted_at, ttl_seconds, remaining_seconds))

    def moved(self, key: bytes, before: int, after: int) -> None:
        """The record of a key names another lease than the one before; 0 is none."""
        if before:
            keys = self._keys.get(before)
            if isinstance(keys, dict):
                del keys[key]
                if len(keys) == 1:
                    self._keys[before] = next(iter(keys))
            elif keys is not None:  # else the lease itself is ending
                assert keys == key, "a key was not among those of its lease"
                del self._keys[before]
        if after:
            keys = self._keys.get(after)
            if keys is None:
                self._keys[after] = key
            elif isinstance(keys, dict):
                keys[key] = None
            else:
                self._keys[after] = {keys: None, key: None}

    def take_changed(self) -> list[int]:
        """Ids of the leases that changed since the last call, each once."""
        if not self._changed:
            return []
        changed = list(self._changed)
        self._changed.clear()
        return changed

    def checksum(self) -> int:
        """CRC-32 over all leases and their keys; equal on all members at one log index. Visits each."""
        checksum = 0
        for lease_id in sorted(self._rows):
            checksum = crc32(_ROW_KEY.pack(LEASE_PREFIX, lease_id) + self._rows[lease_id], checksum)
            for key in self.keys_of(lease_id):
                checksum = crc32(key, checksum)
        return checksum

    def _set(self, lease_id: int, row: bytes) -> None:
        self._rows[lease_id] = row
        self._touch(lease_id)

    def _touch(self, lease_id: int) -> None:
        self._unsaved[lease_id] = None
        if self.observing:
            self._changed[lease_id] = None

    # -- the backend -------------------------------------------------------------------------------

    @property
    def pending_change_bytes(self) -> int:
        return len(self._unsaved) * (_ROW_KEY.size + _ROW.size)

    def drain_rows(self) -> list[tuple[bytes, bytes | None]]:
        """Rows changed since the last call; None for those of leases that are gone."""
        if not self._unsaved:
            return []
        rows = [(_ROW_KEY.pack(LEASE_PREFIX, each), self._rows.get(each)) for each in self._unsaved]
        self._unsaved.clear()
        return rows

    def load_row(self, row: bytes, value: bytes) -> None:
        self._rows[_ROW_KEY.unpack(row)[1]] = value

    def load_keys(self, records: Iterable[tuple[bytes, int]]) -> None:
        """Current keys that name a lease, with it, in key order."""
        for key, lease_id in records:
            self.moved(key, 0, lease_id)

"""A shell around the engine that treats requests as the server does: check, encode, apply."""

from __future__ import annotations

import pytest

from kvstore.engine import (
    Compact,
    DeleteRange,
    Engine,
    Put,
    Range,
    Txn,
    check_delete,
    check_put,
    check_range,
    check_txn,
    encode,
    is_read_only,
)
from kvstore.errors import KVError

CHECKS = {Put: check_put, DeleteRange: check_delete, Txn: check_txn, Range: check_range}


class Shell:
    """Refusals are raised here, so that tests can expect them."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.backend: dict[bytes, bytes] = {}
        """What a backend would hold: fed by `drain`."""

    def run(self, request):
        """One request, on its own; returns its result or raises its KVError."""
        check = CHECKS.get(type(request))
        if check is not None:
            check(request)
        if isinstance(request, Range):
            return self.engine.range(request)
        if isinstance(request, Txn) and is_read_only(request):
            return self.engine.read_txn(request)
        (outcome,) = self.engine.apply(1, 1, [encode(request)], True)
        if isinstance(outcome, KVError):
            raise outcome
        return outcome

    def put(self, key, value=b"", **options):
        return self.run(Put(key, value, **options))

    def delete(self, key, range_end=b"", **options):
        return self.run(DeleteRange(key, range_end, **options))

    def range(self, key, range_end=b"", **options):
        return self.run(Range(key, range_end, **options))

    def txn(self, compares=(), success=(), failure=()):
        return self.run(Txn(tuple(compares), tuple(success), tuple(failure)))

    def compact(self, revision, physical=False):
        return self.run(Compact(revision, physical))

    def keys(self, **options):
        """All keys, by a range with these options."""
        return [kv.key for kv in self.range(b"\0", b"\0", **options).kvs]

    def drain(self) -> None:
        for row, value in self.engine.drain_changes():
            if value is None:
                self.backend.pop(row, None)
            else:
                self.backend[row] = value

    def reload(self) -> None:
        """Throw the engine away and rebuild it from the backend."""
        self.drain()
        self.engine = Engine()
        rows = sorted(self.backend.items())
        for start in range(0, len(rows), 7):
            self.engine.load(rows[start : start + 7])
        self.engine.load_done()


@pytest.fixture
def shell() -> Shell:
    return Shell()

"""The revision witness for transactions over several keys: reads first, then writes, in one step.

An operation `txn` is invoked with [[r k nil] .. [w k v] ..] and completes with
{"revision": r, "mops": [[r k value mod] .. [w k v] ..]}. Values are distinct among all writes and no key is
ever deleted, so a write that no read shows changes no answer: nothing has to be guessed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from kvstore.verify.operation_history import Operation, Outcome, Verdict
from kvstore.verify.revision_witness import Placed, duplicate_revisions, gaps, real_time
from kvstore.verify.set_checker import conclude


def check_transactions(operations: Sequence[Operation], *, begins_at: int | None = None) -> Verdict:
    """Judge a history of transactions. Raises ValueError for an operation of another form.

    `begins_at` is the store's revision before the history, where that is known (1 for an empty store).
    """
    sure = [
        Placed(op.completed["revision"], not _writes(op), op.call, op)
        for op in operations
        if op.outcome is Outcome.OK
    ]
    unknown = [op for op in operations if op.outcome is Outcome.INFO and _writes(op)]
    order = [*sure, *_shown(sure, unknown)]
    order.sort(key=lambda placed: placed[:3])
    return conclude(operations, _findings(order, unknown, begins_at))


def as_multi_register(operations: Sequence[Operation]) -> list[Operation]:
    """The same history in the words of the `multi-register` model, for the search."""
    return [
        replace(op, completed=[mop[:3] for mop in op.completed["mops"]]) if op.outcome is Outcome.OK else op
        for op in operations
    ]


def _findings(order: Sequence[Placed], unknown: Sequence[Operation], begins_at: int | None) -> Iterator[str]:
    yield from duplicate_revisions(order)
    yield from gaps(order, unknown, begins_at)
    yield from real_time(order)
    held: dict[str, tuple[Any, int]] = {}
    for placed in order:
        operation = placed.operation
        if operation.outcome is Outcome.OK:
            for f, key, value, mod in (mop for mop in operation.completed["mops"] if mop[0] == "r"):
                del f
                if held.get(key, (None, 0)) != (value, mod):
                    yield f"expected {key!r} to hold {held.get(key, (None, 0))!r}: {operation.describe()}"
        for key, value in _writes(operation):
            held[key] = (value, placed.revision)


def _writes(operation: Operation) -> list[tuple[str, Any]]:
    try:
        return [(key, value) for f, key, value in operation.invoked if f == "w"]
    except (TypeError, ValueError):
        raise ValueError(f"a transaction is a list of [f k v] (line {operation.line})") from None


def _shown(sure: Sequence[Placed], unknown: Sequence[Operation]) -> Iterator[Placed]:
    """Unknown transactions of which some read shows a value, at the revision that read gives it."""
    seen = {
        (mop[1], mop[2]): mop[3]
        for placed in sure
        for mop in placed.operation.completed["mops"]
        if mop[0] == "r" and mop[2] is not None
    }
    for operation in unknown:
        revision = next((seen[write] for write in _writes(operation) if write in seen), None)
        if revision is not None:
            yield Placed(revision, False, operation.call, operation)

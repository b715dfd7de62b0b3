"""The revision witness: the store's own revisions, taken as the proposed order and then checked.

A store that numbers its writes gives every history a proposed order to check, instead of an order to find.
Order writes by their revision and every read after the write whose revision it reports; replay
that order against a plain map; compare every reply; and demand that the order respects real time.
If all that holds, the order *is* a linearization. O(n log n).

What an operation's value holds (keys and values are strings, values distinct among writes):

=========  ===================================  ===============================================
f          invoked                              completed
=========  ===================================  ===============================================
`put`      [key, value]                         {"revision": r}
`delete`   [key]                                {"revision": r, "deleted": n}
`get`      [key], or [key, "serializable"]      {"revision": r, "value": v or nil, "mod": m or 0}
`cas`      [key, from or nil, to]               {"revision": r, "succeeded": bool}
=========  ===================================  ===============================================

`revision` is the store's revision after the operation, as the reply's header gives it. A write of
unknown outcome is placed where a read shows its value; one that no read shows either did not happen
or fills an unclaimed revision. Where its position had to be guessed, a later mismatch makes the verdict
unknown: the search of `linearizability` then decides.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from kvstore.verify.operation_history import (
    NOTHING_JUDGED,
    Operation,
    Outcome,
    Verdict,
    VerdictKind,
    shows_nothing,
)

FINDINGS_SHOWN_MAX = 8
"""Violations spelled out in a verdict; one refutes, a few show the pattern."""

GUESS = "undecided: the position of a write of unknown outcome had to be guessed before this reply"


class Placed(NamedTuple):
    """An operation at its position in the proposed order; the fields sort in that order."""

    revision: int
    is_read: bool
    call: int
    operation: Operation


def check_revisions(operations: Sequence[Operation], *, begins_at: int | None = None) -> Verdict:
    """Judge a history of revisioned operations. Raises ValueError for an unknown kind of operation.

    `begins_at` is the store's revision before the history, where that is known (1 for an empty store).
    """
    findings: list[str] = []
    sure = [_placed(operation) for operation in operations if operation.outcome is Outcome.OK]
    unknown = list(_possible(operations))
    stale_allowed = [placed for placed in sure if _is_serializable(placed.operation)]
    order = [placed for placed in sure if not _is_serializable(placed.operation)]
    order += _with_shown_revision(sure, unknown)
    order.sort(key=lambda placed: placed[:3])
    findings += duplicate_revisions(order)
    findings += gaps(order, unknown, begins_at)
    findings += real_time(order)
    replay = _Replay(order, unknown, begins_at)
    for finding in _replies(order, stale_allowed, replay):
        if replay.guessed and not findings:
            return Verdict(VerdictKind.UNKNOWN, len(operations), (GUESS, finding))
        findings.append(finding)
    if findings:
        return Verdict(VerdictKind.INVALID, len(operations), findings[:FINDINGS_SHOWN_MAX])
    if shows_nothing(operations):
        return Verdict(VerdictKind.UNKNOWN, len(operations), (NOTHING_JUDGED,))
    return Verdict(VerdictKind.VALID, len(operations))


def _possible(operations: Sequence[Operation]) -> Iterator[Operation]:
    """Writes of unknown outcome that could have changed something: there was ever what they expect."""
    written = {
        (op.invoked[0], _written(op))
        for op in operations
        if op.f in ("put", "cas") and op.outcome is not Outcome.FAIL
    }
    keys = {key for key, _ in written}
    for operation in operations:
        if operation.outcome is not Outcome.INFO or operation.f == "get":
            continue
        key = operation.invoked[0]
        expected = operation.invoked[1] if operation.f == "cas" else None
        if (key, expected) in written if expected is not None else operation.f != "delete" or key in keys:
            yield operation


def _is_serializable(operation: Operation) -> bool:
    return operation.f == "get" and len(operation.invoked) > 1


def _changed(operation: Operation) -> bool:
    f, completed = operation.f, operation.completed
    if f == "put":
        return True
    if f == "delete":
        return bool(completed["deleted"])
    if f == "cas":
        return bool(completed["succeeded"])
    if f == "get":
        return False
    raise ValueError(f"the revision witness knows no {f!r} (line {operation.line})")


def _placed(operation: Operation) -> Placed:
    completed = operation.completed
    if not isinstance(completed, dict) or "revision" not in completed:
        raise ValueError(f"a reply without a revision (line {operation.line})")
    return Placed(completed["revision"], not _changed(operation), operation.call, operation)


def _written(operation: Operation) -> Any:
    """The value an operation leaves behind, None for a deletion."""
    return operation.invoked[-1] if operation.f in {"put", "cas"} else None


def _with_shown_revision(sure: Sequence[Placed], unknown: Sequence[Operation]) -> Iterator[Placed]:
    """Unknown writes whose value some read shows, at the revision that read gives them."""
    shown: dict[tuple[str, Any], int] = {}
    for placed in sure:
        operation = placed.operation
        if operation.f == "get" and operation.completed["value"] is not None:
            shown[operation.invoked[0], operation.completed["value"]] = operation.completed["mod"]
    for operation in unknown:
        revision = shown.get((operation.invoked[0], _written(operation)))
        if revision is not None:
            yield Placed(revision, False, operation.call, operation)


def duplicate_revisions(order: Sequence[Placed]) -> Iterator[str]:
    taken: dict[int, Operation] = {}
    for revision, is_read, _, operation in order:
        if is_read:
            continue
        rival = taken.setdefault(revision, operation)
        if rival is not operation:
            yield f"two writes claim revision {revision}: {rival.describe()} and {operation.describe()}"


def gaps(
    order: Sequence[Placed], unknown: Sequence[Operation], begins_at: int | None = None
) -> Iterator[str]:
    """Every revision between the first and the last write belongs to a write.

    An unclaimed revision needs an unknown write of its own, called before any reply showed a
    revision at or above it.
    """
    free = sorted(operation.call for operation in _unplaced(order, unknown))
    first_shown: list[tuple[int, int]] = sorted(
        (placed.operation.ret, placed.revision) for placed in order if placed.operation.ret is not None
    )
    position = latest = 0
    for revision in _unclaimed(order, begins_at):
        while position < len(first_shown) and latest < revision:
            latest = max(latest, first_shown[position][1])
            position += 1
        bound = first_shown[position - 1][0] if position and latest >= revision else None
        if not free or (bound is not None and free[0] > bound):
            yield f"no write has revision {revision}"
        else:
            free.pop(0)


def _unclaimed(order: Sequence[Placed], begins_at: int | None) -> list[int]:
    """Revisions after the first write, or after the known beginning, that no placed write has."""
    claimed = {placed.revision for placed in order if not placed.is_read}
    if begins_at is not None:
        claimed.add(begins_at)
    if not claimed or not order:
        return []
    last = max(placed.revision for placed in order)
    return [revision for revision in range(min(claimed), last + 1) if revision not in claimed]


def _unplaced(order: Sequence[Placed], unknown: Sequence[Operation]) -> list[Operation]:
    placed_calls = {placed.call for placed in order if not placed.is_read}
    return [operation for operation in unknown if operation.call not in placed_calls]


class _Replay:
    """The proposed order on a plain map, with unknown writes placed only where a reply needs one."""

    def __init__(self, order: Sequence[Placed], unknown: Sequence[Operation], begins_at: int | None) -> None:
        self._held: dict[str, tuple[Any, int]] = {}
        idle = _unplaced(order, unknown)
        self._idle: dict[str, list[Operation]] = {}
        """Unknown writes without a position, by key."""
        for operation in idle:
            self._idle.setdefault(operation.invoked[0], []).append(operation)
        first = min((placed.revision for placed in order if not placed.is_read), default=len(idle))
        earlier = range(first - len(idle), first) if begins_at is None else ()
        self._free = [*earlier, *_unclaimed(order, begins_at)]
        """Revisions that an unknown write may still take, ascending; the first ones come before
        every write that was answered."""
        self.guessed = False
        """Whether an unknown write was given a revision that no reply shows: a later mismatch may then
        be due to the guess, so it refutes nothing."""

    def write(self, revision: int, operation: Operation) -> None:
        self._held[operation.invoked[0]] = (_written(operation), 0 if operation.f == "delete" else revision)

    def value(self, key: str) -> Any:
        return self._held.get(key, (None, 0))[0]

    def holds(self, key: str, revision: int, fits: Callable[[Any], bool]) -> bool:
        value, since = self._held.get(key, (None, -len(self._free)))
        if fits(value):
            return True
        for operation in self._idle.get(key, ()):
            if not fits(_written(operation)):
                continue
            position = bisect_right(self._free, since)
            if position < len(self._free) and self._free[position] <= revision:
                self.write(self._free.pop(position), operation)
                self._idle[key].remove(operation)
                self.guessed = True
                return True
        return False

    def compare_read(self, revision: int, operation: Operation) -> Iterator[str]:
        key, shown, mod = operation.invoked[0], operation.completed["value"], operation.completed["mod"]
        fits = self.holds(key, revision, lambda value: bool(value == shown))
        held = self._held.get(key, (None, 0))
        if not fits or held[1] != mod:
            yield f"expected value and revision {held!r}: {operation.describe()}"


def _replies(order: Sequence[Placed], stale_allowed: Sequence[Placed], replay: _Replay) -> Iterator[str]:
    """Replay the order and compare what was answered."""
    waiting = sorted(stale_allowed, key=lambda placed: placed.revision)
    position = 0
    for revision, is_read, _, operation in order:
        while position < len(waiting) and waiting[position].revision < revision:
            yield from replay.compare_read(waiting[position].revision, waiting[position].operation)
            position += 1
        if operation.f == "get":
            yield from replay.compare_read(revision, operation)
            continue
        fits = _precondition(operation, is_read)
        if not replay.holds(operation.invoked[0], revision, fits):
            held = replay.value(operation.invoked[0])
            yield f"at revision {revision} the key holds {held!r}: {operation.describe()}"
        if not is_read:
            replay.write(revision, operation)
    for placed in waiting[position:]:
        yield from replay.compare_read(placed.revision, placed.operation)


def _precondition(operation: Operation, is_read: bool) -> Callable[[Any], bool]:
    """What the key must have held for this reply; `is_read` when the operation changed nothing."""
    if operation.f == "cas":
        expected = operation.invoked[1]
        return lambda value: (value == expected) is not is_read
    if operation.f == "delete":
        return lambda value: (value is not None) is not is_read
    return lambda value: True


def real_time(order: Sequence[Placed]) -> Iterator[str]:
    """No operation comes before one that had already returned when it was called."""
    earliest: Operation | None = None
    for placed in reversed(order):
        operation = placed.operation
        if earliest is not None and earliest.ret is not None and earliest.ret < operation.call:
            yield f"{earliest.describe()} had ended before, yet comes after {operation.describe()}"
        if operation.ret is not None and (
            earliest is None or earliest.ret is None or operation.ret < earliest.ret
        ):
            earliest = operation

"""When operations took effect, as narrowly as their times and the store's revisions tell.

An operation takes effect between its call and its answer. Where answers carry the revision of the store at
that moment, the order of revisions is the order of effects: none comes later than one with a higher revision,
nor earlier than one with a lower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from kvstore.verify.operation_history import Operation, Outcome

NEVER_NS = math.inf


@dataclass(slots=True, frozen=True)
class Moment:
    """One operation, and when it took effect if it did."""

    operation: Operation
    earliest_ns: float
    latest_ns: float
    """NEVER_NS where the outcome is unknown: it may take effect at any later time."""
    revision: int | None = None
    makes_revision: bool = False
    """Whether it made that revision, rather than found it."""

    @property
    def done(self) -> bool:
        return self.operation.outcome is Outcome.OK


def moments(
    operations: Sequence[Operation], revision_of: Callable[[Operation], tuple[int, bool] | None]
) -> list[Moment]:
    """The moments of all operations that are not known to have failed, in the order given.

    `revision_of` an ok operation: the revision its answer carries and whether it made that revision itself.
    Where `earliest_ns` exceeds `latest_ns`, the revisions went back: see `contradictions`. Raises ValueError
    for a history without times.
    """
    wide = [_wide(operation) for operation in operations if operation.outcome is not Outcome.FAIL]
    told: list[tuple[int, bool, int]] = []
    for position, moment in enumerate(wide):
        answer = revision_of(moment.operation) if moment.done else None
        if answer is not None:
            revision, makes = answer
            wide[position] = replace(moment, revision=revision, makes_revision=makes)
            told.append((revision, not makes, position))
    _narrow(wide, _groups(sorted(told)))
    return wide


def contradictions(known: Sequence[Moment]) -> Iterator[str]:
    """Operations that no moment suits, and revisions that were made twice."""
    made: dict[int, Operation] = {}
    for moment in known:
        if moment.earliest_ns > moment.latest_ns:
            yield f"revisions went back: {moment.operation.describe()}"
        if moment.makes_revision and moment.revision is not None:
            rival = made.setdefault(moment.revision, moment.operation)
            if rival is not moment.operation:
                yield f"one revision twice: {rival.describe()} and {moment.operation.describe()}"


def _wide(operation: Operation) -> Moment:
    if operation.called_ns is None:
        raise ValueError(f"a history without times (line {operation.line})")
    ended = operation.outcome is Outcome.OK and operation.returned_ns is not None
    return Moment(operation, operation.called_ns, operation.returned_ns or 0 if ended else NEVER_NS)


def _groups(told: Sequence[tuple[int, bool, int]]) -> list[list[int]]:
    """Positions in groups, by ascending revision; within a group, all found the same revision, in any
    order."""
    groups: list[list[int]] = []
    latest: tuple[int, bool] | None = None
    for revision, found, position in told:
        if latest != (revision, found) or not found:
            groups.append([])
        latest = (revision, found)
        groups[-1].append(position)
    return groups


def _narrow(known: list[Moment], groups: Sequence[Sequence[int]]) -> None:
    """Nothing earlier than what any lower group must wait for, nor later than what a higher one allows."""
    lower_bound: float = 0
    for group in groups:
        above = max(lower_bound, *(known[position].earliest_ns for position in group))
        for position in group:
            known[position] = replace(
                known[position], earliest_ns=max(lower_bound, known[position].earliest_ns)
            )
        lower_bound = above
    ceiling: float = NEVER_NS
    for group in reversed(groups):
        below = min(ceiling, *(known[position].latest_ns for position in group))
        for position in group:
            known[position] = replace(known[position], latest_ns=min(ceiling, known[position].latest_ns))
        ceiling = below

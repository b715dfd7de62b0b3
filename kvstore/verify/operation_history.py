"""The history: events as recorded, operations as paired, and what a checker says of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, NamedTuple

NOTHING_JUDGED = "nothing to judge: the history holds no operation that may have happened"
"""Why a check of an empty history is `unknown`: it is no evidence of anything."""


class HistoryError(ValueError):
    """The history cannot be read; the message names the line."""

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line


class Outcome(Enum):
    """How an operation ended, in Jepsen's words."""

    OK = "ok"
    FAIL = "fail"
    INFO = "info"


class Event(NamedTuple):
    """One line of a history: an invocation or a completion."""

    line: int
    """Line of the file it stands on, from 1."""
    process: Any
    """Client process number; anything that is no int is the nemesis and is left out of checking."""
    type: str
    """`invoke`, or the value of an Outcome."""
    f: str
    value: Any
    key: Any = None
    """For histories that carry the key beside the value."""
    time: int | None = None
    """Nanoseconds of a monotonic clock, where the history has them."""


@dataclass(slots=True, frozen=True)
class Operation:
    """An invocation with its completion."""

    process: Any
    f: str
    key: Any
    invoked: Any
    """The value as invoked."""
    completed: Any
    """The value as completed; meaningful when `outcome` is OK."""
    outcome: Outcome
    call: int
    """Position of the invocation among all events; positions are the history's clock."""
    ret: int | None
    """Position of the completion, or None when it never came or was indeterminate."""
    line: int
    """Line of the invocation."""
    called_ns: int | None = None
    """When it was invoked, where the history has times."""
    returned_ns: int | None = None
    """When it completed, however it did."""

    def describe(self) -> str:
        shown = self.completed if self.outcome is Outcome.OK else self.invoked
        at = "" if self.key is None else f" key {self.key!r}"
        return f"line {self.line}: process {self.process} {self.f}{at} {shown!r} ({self.outcome.value})"


class VerdictKind(IntEnum):
    """The numbers are the command's exit codes."""

    VALID = 0
    INVALID = 1
    UNKNOWN = 2


@dataclass(slots=True, frozen=True)
class Verdict:
    """What a checker found, and why."""

    kind: VerdictKind
    operations: int
    """How many operations took part in the judgement."""
    explanation: Sequence[str] = field(default=())
    """Lines for a person: the operation that cannot be placed, the cycle, or what ran out."""
    prefix: Sequence[int] = field(default=())
    """For a refuted history: lines of the operations of the longest legal order found, in that order."""
    stuck: int | None = None
    """For a refuted history: line of the operation that cannot be placed."""


def shows_nothing(operations: Iterable[Operation]) -> bool:
    """Whether the history is empty but for operations that certainly failed."""
    return all(operation.outcome is Outcome.FAIL for operation in operations)


def pair_events(events: Iterable[Event]) -> list[Operation]:
    """Pair invocations with completions, process by process.

    An invocation that never completes is indeterminate. Raises HistoryError when a process
    completes what it never invoked, or invokes while an operation of it is open.
    """
    opened: dict[Any, tuple[int, Event]] = {}
    operations: list[Operation] = []
    for position, event in enumerate(events):
        if isinstance(event.process, bool) or not isinstance(event.process, int):
            continue
        if event.type == "invoke":
            if event.process in opened:
                raise HistoryError(f"process {event.process} invokes while an operation is open", event.line)
            opened[event.process] = (position, event)
            continue
        begun = opened.pop(event.process, None)
        if begun is None:
            raise HistoryError(f"process {event.process} completes what it never invoked", event.line)
        operations.append(_close(begun, position, event))
    operations.extend(_close(begun, None, None) for begun in opened.values())
    operations.sort(key=lambda operation: operation.call)
    return operations


def _close(begun: tuple[int, Event], position: int | None, end: Event | None) -> Operation:
    call, event = begun
    outcome = Outcome.INFO if end is None else Outcome(end.type)
    if end is not None and end.f != event.f:
        raise HistoryError(f"process {event.process} invoked {event.f} but completes {end.f}", end.line)
    return Operation(
        process=event.process,
        f=event.f,
        key=event.key,
        invoked=event.value,
        completed=None if end is None else end.value,
        outcome=outcome,
        call=call,
        ret=None if outcome is Outcome.INFO else position,
        line=event.line,
        called_ns=event.time,
        returned_ns=None if end is None else end.time,
    )

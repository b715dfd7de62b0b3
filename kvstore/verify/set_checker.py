"""Sets and counters: everything acknowledged is there, nothing that certainly failed is.

Set histories: `add` of an element (a string, added once), and `read` of a prefix, which returns every
element that begins with it. Counter histories: `add` [key, amount > 0], and `read` [key, nil], which
returns [key, n]; between two values there is no order, only bounds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

from kvstore.verify.operation_history import (
    NOTHING_JUDGED,
    Operation,
    Outcome,
    Verdict,
    VerdictKind,
    shows_nothing,
)

FINDINGS_SHOWN_MAX = 8


def conclude(operations: Sequence[Operation], findings: Iterable[str]) -> Verdict:
    """A verdict from findings: one refutes, and the first few are kept; without any, an empty history is
    unknown."""
    shown = list(islice(findings, FINDINGS_SHOWN_MAX))
    if shown:
        return Verdict(VerdictKind.INVALID, len(operations), shown)
    if shows_nothing(operations):
        return Verdict(VerdictKind.UNKNOWN, len(operations), (NOTHING_JUDGED,))
    return Verdict(VerdictKind.VALID, len(operations))


def check_set(operations: Sequence[Operation], finals: Mapping[str, Collection[str]]) -> Verdict:
    """Judge a set. `finals` is what each member holds at the end, by its name.

    Every read shows what was acknowledged, or shown by an earlier read, before it began; nothing shows
    that was never added or certainly failed; and at the end every member holds all of that.
    """
    return conclude(operations, _set_findings(operations, finals))


def _set_findings(operations: Sequence[Operation], finals: Mapping[str, Collection[str]]) -> Iterator[str]:
    adds = {operation.invoked: operation for operation in operations if operation.f == "add"}
    sure: dict[str, tuple[int, str]] = {}
    """Element -> since when it must be there, and why."""
    for element, operation in adds.items():
        if operation.outcome is Outcome.OK and operation.ret is not None:
            sure[element] = (operation.ret, operation.describe())
    reads = [op for op in operations if op.f == "read" and op.outcome is Outcome.OK and op.ret is not None]
    for read in reads:
        for element in read.completed:
            yield from _impossible(element, adds.get(element), read.describe(), read.ret)
            known = sure.get(element)
            if read.ret is not None and (known is None or read.ret < known[0]):
                sure[element] = (read.ret, read.describe())
    by_time = sorted((since, element) for element, (since, _) in sure.items())
    for read in reads:
        held = frozenset(read.completed)
        for _, element in by_time[: bisect_left(by_time, (read.call, ""))]:
            if element.startswith(read.invoked) and element not in held:
                yield f"{element!r} is lost: {sure[element][1]}, but not in {read.describe()[:120]}"
        yield from _hidden(read, held, adds, sure)
    yield from _incomparable(reads)
    for name, elements in finals.items():
        held = frozenset(elements)
        for _, element in by_time:
            if element not in held:
                yield f"{element!r} is lost at the end on {name}: {sure[element][1]}"
        for element in held:
            yield from _impossible(element, adds.get(element), f"the end on {name}", None)


def _hidden(
    read: Operation, held: Collection[str], adds: Mapping[str, Operation], sure: Mapping[str, tuple[int, str]]
) -> Iterator[str]:
    """A read that shows an element shows everything that was there before that one was asked for."""
    latest = max((adds[element].call for element in held if element in adds), default=-1)
    for element, (since, why) in sure.items():
        if since < latest and since > read.call and element.startswith(read.invoked) and element not in held:
            yield f"{element!r} is missing beside later ones: {why}, but not in {read.describe()[:120]}"


def _incomparable(reads: Sequence[Operation]) -> Iterator[str]:
    """Of two reads of one prefix, one shows all that the other does."""
    by_prefix: dict[str, list[Operation]] = {}
    for read in reads:
        by_prefix.setdefault(read.invoked, []).append(read)
    for mine in by_prefix.values():
        mine.sort(key=lambda read: len(read.completed))
        for smaller, larger in pairwise(mine):
            if not frozenset(smaller.completed) <= frozenset(larger.completed):
                one, other = smaller.describe()[:150], larger.describe()[:150]
                yield f"neither shows all of the other: {one} and {other}"


def _impossible(element: str, add: Operation | None, where: str, ret: int | None) -> Iterator[str]:
    if add is None:
        yield f"{element!r} was never added, but shows in {where[:120]}"
    elif add.outcome is Outcome.FAIL:
        yield f"{element!r} shows in {where[:120]}, but {add.describe()}"
    elif ret is not None and ret < add.call:
        yield f"{element!r} shows in {where[:120]} before it was added"


def check_counter(operations: Sequence[Operation], finals: Mapping[str, Mapping[str, int]]) -> Verdict:
    """Judge counters. `finals` is what each member holds at the end, by its name.

    Each read lies between the sum of what was acknowledged, or seen, before it began and the sum of all
    that was attempted before it ended.
    """
    by_key: dict[Any, list[Operation]] = {}
    for operation in operations:
        by_key.setdefault(operation.invoked[0], []).append(operation)
    findings = (line for key, mine in by_key.items() for line in _counter_findings(key, mine, finals))
    return conclude(operations, findings)


def _counter_findings(
    key: Any, operations: Sequence[Operation], finals: Mapping[str, Mapping[str, int]]
) -> Iterator[str]:
    adds = [op for op in operations if op.f == "add" and op.outcome is not Outcome.FAIL]
    reads = [op for op in operations if op.f == "read" and op.outcome is Outcome.OK and op.ret is not None]
    reads.sort(key=lambda read: read.ret or 0)
    for position, read in enumerate(reads):
        low, high = _bounds(adds, reads[:position], read.call, read.ret)
        if not low <= read.completed[1] <= high:
            yield f"between {low} and {high} expected: {read.describe()}"
    low, high = _bounds(adds, reads, None, None)
    for name, counts in finals.items():
        if not low <= counts.get(key, 0) <= high:
            yield f"at the end {name} counts {counts.get(key, 0)} of {key!r}, not {low} to {high}"


def _bounds(
    adds: Sequence[Operation], reads: Sequence[Operation], call: int | None, ret: int | None
) -> tuple[int, int]:
    """Least and most that may be counted between two moments (None: after everything), given the reads that
    had ended before: each is a count of its own from which to go on."""
    low, high = _totals(adds, None, None, call, ret)
    for read in reads:
        if call is None or (read.ret or 0) < call:
            least, most = _totals(adds, read.call, read.ret, call, ret)
            low, high = max(low, read.completed[1] + least), min(high, read.completed[1] + most)
    return low, high


def _totals(
    adds: Sequence[Operation],
    since_call: int | None,
    since_ret: int | None,
    call: int | None,
    ret: int | None,
) -> tuple[int, int]:
    """What was certainly, and what was possibly, added after one read and before another."""
    least = most = 0
    for add in adds:
        amount = add.invoked[1]
        ended_before = add.ret is not None and (call is None or add.ret < call)
        if ended_before and (since_ret is None or add.call > since_ret):
            least += amount
        begun_before = ret is None or add.call < ret
        if begun_before and (since_call is None or add.ret is None or add.ret > since_call):
            most += amount
    return least, most

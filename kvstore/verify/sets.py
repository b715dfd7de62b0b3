"""Sets and counters: everything acknowledged is there, nothing that certainly failed is.

Set histories: `add` of an element (a string, added once), and `read` of a prefix, which returns every
element that begins with it. Counter histories: `add` [key, amount > 0], and `read` [key, nil], which
returns [key, n]; between two values there is no order, only bounds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from kvstore.verify.history import Operation, Outcome, Verdict, VerdictKind

FINDINGS_SHOWN_MAX = 8


def conclude(operations: int, findings: Iterable[str]) -> Verdict:
    """A verdict from findings: one refutes; the first few are kept."""
    shown = []
    for finding in findings:
        shown.append(finding)
        if len(shown) == FINDINGS_SHOWN_MAX:
            break
    return Verdict(VerdictKind.INVALID if shown else VerdictKind.VALID, operations, shown)


def check_set(operations: Sequence[Operation], finals: Mapping[str, Collection[str]]) -> Verdict:
    """Judge a set. `finals` is what each member holds at the end, by its name.

    Every read shows what was acknowledged, or shown by an earlier read, before it began; nothing shows
    that was never added or certainly failed; and at the end every member holds all of that.
    """
    return conclude(len(operations), _set_findings(operations, finals))


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
    for name, elements in finals.items():
        held = frozenset(elements)
        for _, element in by_time:
            if element not in held:
                yield f"{element!r} is lost at the end on {name}: {sure[element][1]}"
        for element in held:
            yield from _impossible(element, adds.get(element), f"the end on {name}", None)


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
    return conclude(len(operations), findings)


def _counter_findings(
    key: Any, operations: Sequence[Operation], finals: Mapping[str, Mapping[str, int]]
) -> Iterator[str]:
    low = high = seen = 0
    edges: list[tuple[int, int, Operation]] = []
    for operation in operations:
        edges.append((operation.call, 0, operation))
        if operation.ret is not None:
            edges.append((operation.ret, 1, operation))
    floors: dict[int, int] = {}
    """Floor of each read in progress, by its call."""
    for _, is_return, operation in sorted(edges, key=lambda edge: edge[:2]):
        amount = operation.invoked[1]
        if operation.f == "add":
            if operation.outcome is Outcome.FAIL:
                continue
            low += amount if is_return else 0
            high += 0 if is_return else amount
        elif not is_return:
            floors[operation.call] = max(low, seen)
        elif operation.outcome is Outcome.OK:
            count = operation.completed[1]
            floor = floors.pop(operation.call)
            if not floor <= count <= high:
                yield f"between {floor} and {high} expected: {operation.describe()}"
            seen = max(seen, count)
    for name, counts in finals.items():
        if not max(low, seen) <= counts.get(key, 0) <= high:
            yield f"at the end {name} counts {counts.get(key, 0)} of {key!r}, not {max(low, seen)} to {high}"

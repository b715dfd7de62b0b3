"""How the service looked from outside: longest gap and time to recover, fault by fault."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from kvstore.verify.operation_history import Operation, Outcome
from kvstore.verify.run.nemesis_runner import Fault

AFTER_S = 5.0
"""Gaps that begin within this after a fault was taken back still count as its own."""

STEADY_OPERATIONS = 20
"""So many successes within STEADY_S mean that the service is back."""

STEADY_S = 0.5


def availability(operations: Sequence[Operation], faults: Sequence[Fault]) -> list[dict[str, Any]]:
    """Per fault: the longest time without any success, and how long after its end the service was back."""
    moments = sorted(
        op.returned_ns for op in operations if op.outcome is Outcome.OK and op.returned_ns is not None
    )
    table = []
    for position, fault in enumerate(faults):
        following = faults[position + 1].begin_ns if position + 1 < len(faults) else fault.end_ns + int(60e9)
        until = min(fault.end_ns + int(AFTER_S * 1e9), following, max(moments, default=0))
        table.append(
            {
                "nemesis": fault.nemesis,
                "target": fault.target,
                "begin_ns": fault.begin_ns,
                "end_ns": fault.end_ns,
                "longest_gap_s": round(_longest_gap(moments, fault.begin_ns, until), 3),
                "recovered_s": _recovery(moments, fault.end_ns, following),
            }
        )
    return table


def _longest_gap(moments: Sequence[int], begin: int, end: int) -> float:
    inside = moments[bisect_left(moments, begin) : bisect_right(moments, end)]
    edges = [begin, *inside, end]
    return max((later - earlier for earlier, later in pairwise(edges)), default=0) / 1e9


def _recovery(moments: Sequence[int], end: int, following: int) -> float | None:
    """Seconds from the end of a fault to the first steady half second; None if the next came sooner."""
    position = bisect_left(moments, end)
    while position + STEADY_OPERATIONS < len(moments) and moments[position] < following:
        if moments[position + STEADY_OPERATIONS] - moments[position] <= STEADY_S * 1e9:
            return round((moments[position] - end) / 1e9, 3)
        position += 1
    return None

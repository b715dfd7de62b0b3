"""How much of a run's time counts: a simulated hour without requests and faults shows nothing."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

CALLS_PER_S_MIN = 20
"""Client calls per virtual second below which a stretch of time is idle."""

INTERVAL_S = 5
"""Calls are counted in intervals of this length: calls come at random, and a second is short."""

HEALED_S = 30
"""A fault has effects for so long after its end: elections, catching up, retries."""


def busy_s(calls_s: Sequence[float], faults_s: Iterable[tuple[float, float]], end_s: float) -> float:
    """Virtual seconds up to `end_s` with enough calls and a fault active or ended shortly before.

    `calls_s` are the times of client calls in order, `faults_s` pairs of beginning and end.
    """
    spans = sorted((begin, end + HEALED_S) for begin, end in faults_s)
    busy = 0.0
    affected_until = -1.0
    number = 0
    begin = 0.0
    while begin < end_s:
        end = min(begin + INTERVAL_S, end_s)
        while number < len(spans) and spans[number][0] < end:
            affected_until = max(affected_until, spans[number][1])
            number += 1
        calls = bisect_right(calls_s, end) - bisect_right(calls_s, begin)
        if affected_until > begin and calls >= CALLS_PER_S_MIN * (end - begin):
            busy += end - begin
        begin = end
    return busy

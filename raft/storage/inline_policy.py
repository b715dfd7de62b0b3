"""When the event loop may sync inline instead of waking the writer thread.

A round trip to the thread costs more than a fast sync, but a slow sync on the loop stalls everything. So
inline syncs need evidence that this disk is fast, and each violation suspends them for longer.
"""

from __future__ import annotations

from collections import deque

OPERATIONS_MAX = 4
"""A larger batch means load, and under load the thread overlaps the sync with other work."""

SAMPLES = 32
"""Syncs remembered for the median."""

MEDIAN_MAX_S = 0.0006
"""About two wake-ups' worth: above it the thread is the cheaper way."""

SPIKE_S = 0.010
"""A sync this long would have stalled the loop for clients to see."""

PENALTY_S = 30.0
PENALTY_MAX_S = 600.0
"""Inline is off for 30 s after a violation, doubling up to 10 minutes."""


class InlinePolicy:
    """Watches every sync, wherever it ran. Times are monotonic seconds given by the caller."""

    def __init__(self) -> None:
        self._fast: deque[bool] = deque(maxlen=SAMPLES)
        """For each of the last syncs: was it below the median bound?"""
        self._fast_count = 0
        """How many of `_fast` are true."""
        self._off_until = 0.0
        """Inline is off before this time."""
        self._penalty_s = PENALTY_S
        """Length of the next penalty."""

    def observe(self, now: float, duration_s: float) -> None:
        fast = duration_s < MEDIAN_MAX_S
        samples = self._fast
        if len(samples) == SAMPLES:
            self._fast_count -= samples[0]
        samples.append(fast)
        self._fast_count += fast
        if duration_s > SPIKE_S:
            self._violation(now)

    def allows(self, now: float, operations: int) -> bool:
        """Whether a batch of `operations` may be synced on the loop now."""
        if operations > OPERATIONS_MAX or now < self._off_until or len(self._fast) < SAMPLES:
            return False
        if self._fast_count <= SAMPLES // 2:  # the median is not below the bound
            self._violation(now)
            return False
        return True

    def _violation(self, now: float) -> None:
        if now < self._off_until:
            # Already off: 30 s without a spike must pass, but only a violation while inline is on doubles.
            self._off_until = max(self._off_until, now + PENALTY_S)
            return
        if now >= self._off_until + PENALTY_MAX_S:
            self._penalty_s = PENALTY_S  # a long good time since the last penalty ended
        self._off_until = now + self._penalty_s
        self._penalty_s = min(self._penalty_s * 2, PENALTY_MAX_S)

"""Lag of the event loop: the one number that distinguishes a stalled process from a slow network.

A timer is due every SAMPLE_S; its delay is the lag, during which no heartbeat left and no request was
answered. A stall of length s shows as a lag between s - SAMPLE_S and s.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left

SAMPLE_S = 0.02
"""Short beside the stalls that matter (a quarter of a second and more); 50 wake-ups a second cost about a
thousandth of a core."""

LAG_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper ends of the buckets; 0.25 s is a quarter of the default election timeout."""


class LoopLag:
    """Samples from `start` to `stop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.counts = [0] * (len(LAG_BOUNDS_S) + 1)
        """Samples per bucket; the last is everything longer."""
        self.sum_s = 0.0
        self.longest_s = 0.0
        """The longest lag since `start`."""
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._plan()

    def stop(self) -> None:
        """Harmless before `start` and twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _plan(self) -> None:
        self._due_s = self._loop.time() + SAMPLE_S
        self._timer = self._loop.call_at(self._due_s, self._sample)

    def _sample(self) -> None:
        lag_s = max(0.0, self._loop.time() - self._due_s)
        self.counts[bisect_left(LAG_BOUNDS_S, lag_s)] += 1
        self.sum_s += lag_s
        self.longest_s = max(self.longest_s, lag_s)
        self._plan()

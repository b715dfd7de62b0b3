"""A stall of the loop is seen as such, and a quiet loop as quiet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from kvstore.server.loop_lag import LAG_BOUNDS_S, SAMPLE_S, LoopLag


class Handle:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class StallingLoop(asyncio.SelectorEventLoop):
    """A loop that is never run: time passes when the test says so, and timers are called then."""

    now_s = 100.0

    def time(self) -> float:
        return self.now_s

    def call_at(self, when: float, callback: Callable[[], object], *args: object, **rest: object) -> Handle:  # type: ignore[override]  # only what the meter uses
        self.due = (when, callback, Handle())
        return self.due[2]

    def run_late(self, lag_s: float) -> None:
        when, callback, handle = self.due
        assert not handle.cancelled
        self.now_s = when + lag_s
        callback()


@pytest.fixture
def loop() -> StallingLoop:
    made = StallingLoop()
    made.close()
    return made


def test_lags_are_counted_by_length(loop: StallingLoop) -> None:
    meter = LoopLag(loop)
    meter.start()
    for lag_s in (0.0, 0.001, 0.3, 0.02, 60.0):
        loop.run_late(lag_s)
    assert meter.counts == [2, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert len(meter.counts) == len(LAG_BOUNDS_S) + 1
    assert meter.longest_s == pytest.approx(60)
    assert meter.sum_s == pytest.approx(60.321)
    assert loop.due[0] == pytest.approx(loop.now_s + SAMPLE_S)


def test_nothing_is_sampled_after_the_end(loop: StallingLoop) -> None:
    meter = LoopLag(loop)
    meter.stop()
    meter.start()
    meter.stop()
    meter.stop()
    assert loop.due[2].cancelled

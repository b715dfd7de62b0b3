"""Deadlines on a loop whose clock the test moves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from kvstore.http2.timer_wheel import TimerWheel


class Handle:
    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when, self.callback, self.cancelled = when, callback, False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """As much of a loop as a wheel needs."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.handles: list[Handle] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Handle:
        handle = Handle(when, callback)
        self.handles.append(handle)
        return handle

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            self.handles = [handle for handle in self.handles if not handle.cancelled]
            due = min(self.handles, key=lambda handle: handle.when, default=None)
            if due is None or due.when > end:
                break
            self.now = max(self.now, due.when)
            self.handles.remove(due)
            due.callback()
        self.now = end

    @property
    def timers(self) -> int:
        return sum(not handle.cancelled for handle in self.handles)


class Item:
    def __init__(self, clock: Clock, wanted: float) -> None:
        self.wheel_slot = 0
        self.wanted = clock.now + wanted
        self.clock = clock
        self.fired: float | None = None

    def on_time(self) -> None:
        assert self.fired is None
        self.fired = self.clock.now


def make(clock: Clock) -> TimerWheel:
    return TimerWheel(clock)  # type: ignore[arg-type]  # as much of a loop as is needed


def test_each_fires_once_never_early_and_hardly_late() -> None:
    clock, rng = Clock(), random.Random(5)
    wheel = make(clock)
    items = []
    for _ in range(2000):
        delay = rng.choice((rng.uniform(0, 2), rng.uniform(0, 300), rng.uniform(0, 80_000)))
        item = Item(clock, delay)
        wheel.add(item, delay, clock.now)
        items.append((item, delay))
        clock.advance(rng.uniform(0, 0.05))
        assert clock.timers <= 1
    clock.advance(90_000)
    for item, delay in items:
        slack = 0.02 if delay <= 60 else 1.02 if delay <= 3600 else 60.02
        assert item.fired is not None
        assert 0 <= item.fired - item.wanted <= slack
    assert clock.timers == 0


def test_what_is_removed_does_not_fire_and_leaves_nothing() -> None:
    clock = Clock()
    wheel = make(clock)
    for number in range(100_000):
        item = Item(clock, number % 1000)
        wheel.add(item, float(number % 1000), clock.now)
        wheel.remove(item)
        wheel.remove(item)  # harmless
        assert item.wheel_slot == 0
    assert len(wheel._slots) < 10_000
    clock.advance(2000)
    assert not wheel._slots
    assert not wheel._order
    assert clock.timers == 0


def test_slots_are_bounded_whatever_times_are_asked_for() -> None:
    clock, rng = Clock(), random.Random(6)
    wheel = make(clock)
    for _ in range(100_000):
        delay = rng.uniform(0, 100_000)
        wheel.add(Item(clock, delay), delay, clock.now)
    assert len(wheel._slots) < 12_000
    far = Item(clock, 1e9)
    wheel.add(far, 1e9, clock.now)
    assert far.wheel_slot == 0  # no timer at all


def test_one_that_removes_another_of_its_slot_and_one_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    wheel = make(clock)
    first, second, third = (Item(clock, 1) for _ in range(3))

    def fail() -> None:
        wheel.remove(second)
        raise RuntimeError("a fault")

    first.on_time = fail  # type: ignore[method-assign]  # one that does more
    for item in (first, second, third):
        wheel.add(item, 1.0, clock.now)
    clock.advance(2)
    assert third.fired is not None
    assert "a timer failed" in caplog.text


def test_an_earlier_one_takes_the_timer() -> None:
    clock = Clock()
    wheel = make(clock)
    late, early = Item(clock, 10), Item(clock, 1)
    wheel.add(late, 10.0, clock.now)
    wheel.add(early, 1.0, clock.now)
    assert clock.timers == 1
    clock.advance(2)
    assert (early.fired is not None, late.fired) == (True, None)
    wheel.close()
    clock.advance(20)
    assert late.fired is None


@pytest.mark.asyncio
async def test_on_a_real_loop() -> None:
    loop = asyncio.get_running_loop()
    wheel = TimerWheel(loop)
    fired = asyncio.Event()
    item = Item(Clock(), 0)
    item.on_time = fired.set  # type: ignore[method-assign]  # which the test awaits
    wheel.add(item, 0.01, loop.time())
    async with asyncio.timeout(20):
        await fired.wait()

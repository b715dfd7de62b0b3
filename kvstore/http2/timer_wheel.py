"""Deadlines of many calls with one timer of the event loop.

A time falls into a slot; a slot is one dict. Adding and removing cost one dict operation each, and no object.
Times far away share coarser slots, so the number of slots is bounded whatever times peers ask for.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from typing import Protocol

logger = logging.getLogger("kvstore.http2")

TICKS_PER_SECOND = 100
"""A slot's width is 10 ms: no deadline fires early, and none more than this late on an idle loop."""

MINUTE_TICKS = 60 * TICKS_PER_SECOND
HOUR_TICKS = 60 * MINUTE_TICKS
DAY_TICKS = 24 * HOUR_TICKS
"""Beyond a minute slots are a second wide, beyond an hour a minute. What is due after more than a day has no
timer at all: a call that lasts so long ends in other ways. So there are at most about 11,000 slots."""


class Timed(Protocol):
    """What a wheel holds."""

    wheel_slot: int
    """Kept by the wheel; 0 outside of one. Start with 0."""

    def on_time(self) -> None:
        """The time has come; the wheel no longer holds this."""


class TimerWheel:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, dict[Timed, None]] = {}
        self._order: list[int] = []
        """The keys of `_slots`, as a heap."""
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0
        """The slot that the timer waits for; meaningless without a timer."""

    def add(self, item: Timed, delay_s: float, now: float) -> None:
        """Call `item.on_time` after the delay; `now` is the loop's time. Each item is held at most once."""
        assert item.wheel_slot == 0
        slot = int((now + delay_s) * TICKS_PER_SECOND) + 1
        ticks = delay_s * TICKS_PER_SECOND
        if ticks > MINUTE_TICKS:
            if ticks > DAY_TICKS:
                return
            width = TICKS_PER_SECOND if ticks <= HOUR_TICKS else MINUTE_TICKS
            slot += -slot % width
        held = self._slots.get(slot)
        if held is None:
            held = self._slots[slot] = {}
            heapq.heappush(self._order, slot)
            if self._timer is None or slot < self._due:
                self._arm(slot)
        held[item] = None
        item.wheel_slot = slot

    def remove(self, item: Timed) -> None:
        """Forget an item. Harmless when it is not held."""
        slot = item.wheel_slot
        if slot:
            item.wheel_slot = 0
            del self._slots[slot][item]

    def close(self) -> None:
        """Nothing fires from now on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, slot: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = slot
        self._timer = self._loop.call_at(slot / TICKS_PER_SECOND, self._fire)

    def _fire(self) -> None:
        now_tick = max(int(self._loop.time() * TICKS_PER_SECOND), self._due)
        self._timer = None
        due: list[Timed] = []
        order = self._order
        while order and (order[0] <= now_tick or not self._slots[order[0]]):  # and what has become empty
            due += self._slots.pop(heapq.heappop(order))
        for item in due:
            item.wheel_slot = 0
        if order:
            self._arm(order[0])
        for item in due:
            try:
                item.on_time()
            except Exception:
                logger.exception("a timer failed")

"""A hanging disk is noticed from outside the loop, and the node is silenced in steps."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from raft.storage import Watchdog

DEADLINE_S = 10.0


class Watched:
    """A stall of any age, and what the watchdog did about it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.age_s = 0.0
        self.stalls = 0
        self.stalled = asyncio.Event()
        self.severed = threading.Event()
        self.fatal: list[str] = []
        self.ended = threading.Event()
        self.dog = Watchdog(
            stalled_seconds=self.ask,
            loop=loop,
            election_timeout_ms=40,
            on_stall=self.on_stall,
            sever=self.severed.set,
            fatal=self.on_fatal,
        )
        self.asked = 0

    def ask(self) -> float:
        self.asked += 1
        return self.age_s

    def on_stall(self) -> None:
        self.stalls += 1
        self.stalled.set()

    def on_fatal(self, message: str) -> None:
        self.fatal.append(message)
        self.ended.set()

    async def polls(self, count: int) -> None:
        goal = self.asked + count
        async with asyncio.timeout(DEADLINE_S):
            while self.asked < goal:  # noqa: ASYNC110  # the watchdog's thread raises no event
                await asyncio.sleep(0.001)


@pytest.fixture
def make() -> Any:
    return Watched


@pytest.mark.asyncio
async def test_a_live_loop_is_told_once_per_stall_at_half_the_election_timeout(make: Any) -> None:
    watched = make(asyncio.get_running_loop())
    watched.dog.start()
    watched.age_s = 0.019
    await watched.polls(4)
    assert watched.stalls == 0
    watched.age_s = 0.021
    await asyncio.wait_for(watched.stalled.wait(), DEADLINE_S)
    await watched.polls(4)
    assert watched.stalls == 1
    assert not watched.severed.is_set()
    watched.age_s = 0.0
    await watched.polls(3)
    watched.stalled.clear()
    watched.age_s = 0.5
    await asyncio.wait_for(watched.stalled.wait(), DEADLINE_S)
    assert watched.stalls == 2
    watched.dog.stop()
    assert watched.fatal == []


@pytest.mark.asyncio
async def test_a_stuck_loop_gets_its_sockets_closed(make: Any) -> None:
    watched = make(asyncio.get_running_loop())
    watched.dog.start()
    watched.age_s = 0.1
    assert watched.severed.wait(DEADLINE_S)  # the loop stands still here, as in a hanging inline sync
    watched.dog.stop()
    assert watched.fatal == []


@pytest.mark.asyncio
async def test_ten_seconds_end_the_process(make: Any) -> None:
    watched = make(asyncio.get_running_loop())
    watched.age_s = 9.9
    watched.dog.start()
    await watched.polls(3)
    assert watched.fatal == []
    watched.age_s = 10.1
    assert watched.ended.wait(DEADLINE_S)
    assert "has not answered for 10.1 s" in watched.fatal[0]
    watched.dog.stop()


@pytest.mark.asyncio
async def test_stopping_before_starting_is_allowed(make: Any) -> None:
    watched = make(asyncio.get_running_loop())
    watched.dog.stop()
    assert watched.asked == 0

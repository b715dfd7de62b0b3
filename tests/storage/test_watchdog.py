"""The watchdog detects a stalled disk from outside the loop, and silences the node in steps."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from raft.storage import Watchdog, watchdog
from raft.storage.watchdog import UNACKNOWLEDGED_POLLS

DEADLINE_S = 10.0


class Watched:
    """A stall of any age, and what the watchdog did about it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.age_s = 0.0
        self.stalls = 0
        self.stalled = asyncio.Event()
        self.connections_reset = threading.Event()
        self.fatal: list[str] = []
        self.ended = threading.Event()
        self.dog = Watchdog(
            stalled_seconds=self.ask,
            loop=loop,
            election_timeout_ms=40,
            on_stall=self.on_stall,
            reset_connections=self.connections_reset.set,
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


class Steps:
    """Lets the watchdog poll only when the test allows it."""

    def __init__(self) -> None:
        self._waiting = threading.Semaphore(0)
        self._allowed = threading.Semaphore(0)
        self._ended = False

    def wait(self, timeout: float) -> bool:
        self._waiting.release()
        self._allowed.acquire()
        return self._ended

    def set(self) -> None:
        self._ended = True
        self._allowed.release()

    def poll(self) -> None:
        """One poll, to its end."""
        assert self._waiting.acquire(timeout=DEADLINE_S)
        self._allowed.release()
        assert self._waiting.acquire(timeout=DEADLINE_S)
        self._waiting.release()

    def poll_last(self) -> None:
        """One poll, with which the watchdog ends."""
        assert self._waiting.acquire(timeout=DEADLINE_S)
        self._allowed.release()


@pytest.fixture
def make() -> Any:
    return Watched


@pytest.mark.asyncio
async def test_a_live_loop_gets_one_report_per_stall_at_half_the_election_timeout(make: Any) -> None:
    watched = make(asyncio.get_running_loop())
    watched.dog.start()
    watched.age_s = 0.019
    await watched.polls(4)
    assert watched.stalls == 0
    watched.age_s = 0.021
    await asyncio.wait_for(watched.stalled.wait(), DEADLINE_S)
    await watched.polls(4)
    assert watched.stalls == 1
    assert not watched.connections_reset.is_set()
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
    assert watched.connections_reset.wait(DEADLINE_S)  # blocks the loop, as a hanging inline sync does
    watched.dog.stop()
    assert watched.fatal == []


@pytest.mark.asyncio
async def test_a_loop_that_is_only_late_keeps_its_sockets(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watched, steps = make(asyncio.get_running_loop()), Steps()
    monkeypatch.setattr(watched.dog, "_stop", steps)
    watched.dog.start()
    for late in (UNACKNOWLEDGED_POLLS - 1, UNACKNOWLEDGED_POLLS):
        watched.age_s = 0.1
        for _ in range(1 + late):  # this loop is blocked meanwhile
            steps.poll()
        assert watched.connections_reset.is_set() == (late == UNACKNOWLEDGED_POLLS)
        await asyncio.wait_for(watched.stalled.wait(), DEADLINE_S)
        steps.poll()
        watched.age_s = 0.0
        steps.poll()
        watched.stalled.clear()
    watched.dog.stop()
    assert watched.stalls == 2


@pytest.mark.asyncio
async def test_a_paused_process_is_not_ended_for_it(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paused in the middle of a sync for longer than GIVE_UP_S, and resumed: the disk is well."""
    watched, steps = make(asyncio.get_running_loop()), Steps()
    monkeypatch.setattr(watched.dog, "_stop", steps)
    clock_s = 0.0
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: clock_s))
    watched.dog.start()
    steps.poll()
    clock_s += 60.0
    watched.age_s = 60.5
    steps.poll()
    assert watched.fatal == []
    watched.age_s = 70.5
    steps.poll_last()
    assert watched.ended.wait(DEADLINE_S), "it has hung for ten seconds that were seen"
    watched.dog.stop()


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

"""Watches the log's disk from outside the event loop.

A leader whose disk hangs must not look alive: at half the election timeout the loop is told, and
stops its heartbeats; if the loop itself is stuck (an inline sync), the watchdog closes the sockets
in its place, so that the others fail over at once; a disk that hangs for 10 s ends the process.
It never sends anything on behalf of a stuck node.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

GIVE_UP_S = 10.0
"""A disk this slow is not coming back in time for anyone; a restart may find it healthy."""

POLLS_PER_DEADLINE = 8
"""How finely half the election timeout is measured: late by an eighth at most."""

UNHEARD_POLLS = 2
"""Polls for which the loop may leave what it was told unheard before it counts as stuck. On a busy machine
a healthy loop is late for one; cutting its sockets would end every stream and call for nothing."""


class Watchdog:
    """One thread, from `start` to `stop`."""

    def __init__(
        self,
        *,
        stalled_seconds: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        election_timeout_ms: int,
        on_stall: Callable[[], None],
        reset_connections: Callable[[], None],
        fatal: Callable[[str], None],
    ) -> None:
        """`stalled_seconds` is the log writer's. `on_stall` runs on the loop, once per stall.

        `reset_connections` and `fatal` run on the watchdog's thread, because the loop may be stuck: `reset_connections`
        shuts the peer and client sockets down, `fatal(message)` ends the process.
        """
        self._stalled_seconds = stalled_seconds
        self._loop = loop
        self._deadline_s = election_timeout_ms / 2000
        self._on_stall = on_stall
        self._reset_connections = reset_connections
        self._fatal = fatal
        self._stop = threading.Event()
        self._heard = threading.Event()
        """The loop has run `on_stall` for the stall in progress."""
        self._thread = threading.Thread(target=self._run, name="raft-disk-watchdog", daemon=True)

    def start(self) -> None:
        """Begin watching."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; returns within one poll."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _tell(self) -> None:
        self._heard.set()
        self._on_stall()

    def _run(self) -> None:
        poll_s = self._deadline_s / POLLS_PER_DEADLINE
        told = False
        """The loop was told of the stall in progress."""
        unheard = 0
        """Polls since then at which it had not heard of it yet."""
        away_s = 0.0
        """How much of the stall in progress this thread slept through: then the whole process stood still,
        and the disk had nobody to answer."""
        polled_s = time.monotonic()
        while not self._stop.wait(poll_s):
            before_s, polled_s = polled_s, time.monotonic()
            late_s = polled_s - before_s - poll_s
            if late_s > self._deadline_s:
                away_s += late_s
            stalled = self._stalled_seconds()
            if stalled < self._deadline_s:
                told, unheard, away_s = False, 0, 0.0
                continue
            if stalled - away_s >= GIVE_UP_S:
                self._fatal(f"the log's disk has not answered for {stalled:.1f} s")
                return
            if not told:
                told = True
                self._heard.clear()
                try:
                    self._loop.call_soon_threadsafe(self._tell)
                except RuntimeError:
                    return  # the loop is closed: the node has stopped
            elif not self._heard.is_set():
                unheard += 1
                if unheard == UNHEARD_POLLS:  # once per stall
                    self._reset_connections()

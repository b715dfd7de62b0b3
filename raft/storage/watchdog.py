"""Watches the log's disk from a thread outside the event loop.

A leader whose disk stalls must not look alive. At half the election timeout the watchdog reports the stall to
the loop, which stops its heartbeats. If the loop itself is stuck (in an inline sync), the watchdog resets the
connections, so that the other members elect a leader at once. A stall of 10 s ends the process. The watchdog
never sends anything on behalf of a stuck node.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

GIVE_UP_S = 10.0
"""A disk this slow will not recover in time; a restart may find it healthy."""

POLLS_PER_DEADLINE = 8
"""Resolution of the deadline, half the election timeout: a report is late by an eighth of it at most."""

UNACKNOWLEDGED_POLLS = 2
"""Polls without a reaction of the loop to a reported stall after which it counts as stuck. On a busy machine
a healthy loop misses one; a reset would end every stream and call for nothing."""


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

        `reset_connections` and `fatal` run on the watchdog's thread, because the loop may be stuck:
        `reset_connections` shuts the peer and client sockets down, `fatal(message)` ends the process.
        """
        self._stalled_seconds = stalled_seconds
        self._loop = loop
        self._deadline_s = election_timeout_ms / 2000
        self._on_stall = on_stall
        self._reset_connections = reset_connections
        self._fatal = fatal
        self._stop = threading.Event()
        self._acknowledged = threading.Event()
        """The loop has run `on_stall` for the stall in progress."""
        self._thread = threading.Thread(target=self._run, name="raft-disk-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; returns within one poll."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _acknowledge(self) -> None:
        self._acknowledged.set()
        self._on_stall()

    def _run(self) -> None:
        poll_s = self._deadline_s / POLLS_PER_DEADLINE
        reported = False
        """The stall in progress was reported to the loop."""
        unacknowledged = 0
        """Polls since then without a reaction of the loop."""
        away_s = 0.0
        """How much of the stall in progress this thread was late for: the whole process was paused then, and
        the time is no evidence about the disk."""
        polled_s = time.monotonic()
        while not self._stop.wait(poll_s):
            before_s, polled_s = polled_s, time.monotonic()
            late_s = polled_s - before_s - poll_s
            if late_s > self._deadline_s:
                away_s += late_s
            stalled = self._stalled_seconds()
            if stalled < self._deadline_s:
                reported, unacknowledged, away_s = False, 0, 0.0
                continue
            if stalled - away_s >= GIVE_UP_S:
                self._fatal(f"the log's disk has not answered for {stalled:.1f} s")
                return
            if not reported:
                reported = True
                self._acknowledged.clear()
                try:
                    self._loop.call_soon_threadsafe(self._acknowledge)
                except RuntimeError:
                    return  # the loop is closed: the node has stopped
            elif not self._acknowledged.is_set():
                unacknowledged += 1
                if unacknowledged == UNACKNOWLEDGED_POLLS:  # once per stall
                    self._reset_connections()

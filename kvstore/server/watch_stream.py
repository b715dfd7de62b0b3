"""The watchers of one caller, and the order in which it is told (etcd's `api/v3rpc/watch.go`).

One caller reads everything through one connection. Answers to its requests go first and in order, so
that `created` stands before a watcher's first event; then what waits for its watchers, each in turn;
a progress answer behind all of it. Nothing is handed over while the caller's connection has no room,
so what waits is bounded by the hub's bounds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from kvstore.errors import Compacted
from kvstore.server.watch_hub import Watcher, WatchEvent, WatchHub

NO_WATCHER = -1
"""The id in answers that concern no watcher: refused creations and progress of the whole stream."""

EMPTY_RANGE = "mvcc: watcher range is empty"
DUPLICATE_ID = "mvcc: duplicate watch ID provided on the WatchStream"

ANSWERS_WAITING_MAX = 1000
"""Answers that wait for a caller that asks but does not read; beyond it no request is taken."""

RESPONSE_BYTES_MAX = 512 * 1024
"""Memory of events that go into one response, if they are more than one revision."""

RESPONSE_REVISIONS_MAX = 1000
"""Revisions in one response, as in etcd."""


class Sink(Protocol):
    """The caller's connection: turns answers into messages."""

    @property
    def has_room(self) -> bool: ...

    def created(self, watch_id: int, revision: int, refusal: str) -> None:
        """A watcher stands, or (with an id of NO_WATCHER) was refused."""

    def canceled(self, watch_id: int, revision: int) -> None: ...

    def compacted(self, watch_id: int, compact_revision: int) -> None: ...

    def progress(self, watch_id: int, revision: int) -> None: ...

    def events(self, watcher: StreamWatcher, revision: int, events: list[WatchEvent]) -> None: ...


class StreamWatcher(Watcher):
    """A watcher with what its caller asked for."""

    __slots__ = ("fragment", "progress_due", "progress_notify", "start_revision", "with_prev")

    start_revision: int
    """As the caller gave it."""
    with_prev: bool
    fragment: bool
    """Large responses may be split."""
    progress_notify: bool
    progress_due: bool
    """Nothing was sent since the last tick."""


class WatchStream:
    """All watchers of one call. Implements Owner."""

    def __init__(self, hub: WatchHub, sink: Sink) -> None:
        self.pending_bytes = 0
        self._hub = hub
        self._sink = sink
        self._watchers: dict[int, StreamWatcher] = {}
        """By id, those whose history was compacted included until they are cancelled."""
        self._next_id = 0
        """Where the search for an unused id begins."""
        self._answers: deque[Callable[[], None]] = deque()
        self._ready: deque[Watcher] = deque()
        """Flagged watchers, in turn."""
        self._progress_wanted = False
        self._planned = False
        self._closed = False
        hub.streams += 1

    @property
    def busy(self) -> bool:
        """Too many answers wait: take no more requests until they are read."""
        return len(self._answers) >= ANSWERS_WAITING_MAX

    # -- requests --------------------------------------------------------------------------------

    def create(
        self,
        key: bytes,
        range_end: bytes,
        *,
        start_revision: int,
        watch_id: int,
        no_put: bool,
        no_delete: bool,
        with_prev: bool,
        fragment: bool,
        progress_notify: bool,
    ) -> None:
        """A watcher of [key, range_end), from `start_revision` on (0: the next); id 0: choose one."""
        key = key or b"\0"
        hub = self._hub
        hub.applied()
        refusal = ""
        if start_revision < 0:
            refusal = Compacted.text
        elif range_end and range_end != b"\0" and range_end <= key:
            refusal = EMPTY_RANGE
        elif watch_id and watch_id in self._watchers:
            refusal = DUPLICATE_ID
        if refusal:
            self._answer(partial(self._sink.created, NO_WATCHER, self._revision(), refusal))
            return
        if not watch_id:
            while self._next_id in self._watchers:
                self._next_id += 1
            watch_id = self._next_id
            self._next_id += 1
        watcher = StreamWatcher(
            key, range_end, start_revision, self, no_put=no_put, no_delete=no_delete, tag=watch_id
        )
        watcher.start_revision = start_revision
        watcher.with_prev = with_prev
        watcher.fragment = fragment
        watcher.progress_notify = progress_notify
        watcher.progress_due = True
        self._watchers[watch_id] = watcher
        self._answer(partial(self._sink.created, watch_id, self._revision(), ""))
        hub.add(watcher)
        self.ready(watcher)

    def cancel(self, watch_id: int) -> None:
        """Tell this watcher nothing more; an id unknown is not answered."""
        watcher = self._watchers.pop(watch_id, None)
        if watcher is not None:
            self._hub.remove(watcher)
            self._answer(partial(self._sink.canceled, watch_id, self._revision()))

    def request_progress(self) -> None:
        """Tell how far the caller has been told, once everybody of it is synced."""
        self._progress_wanted = True
        self._plan()

    def tick(self) -> None:
        """An interval has passed: tell the progress of those who want it and were told nothing."""
        self._hub.applied()
        for watch_id, watcher in self._watchers.items():
            if not watcher.progress_notify or watcher.closed:
                continue
            if watcher.progress_due and self._caught_up(watcher):
                self._answer(partial(self._sink.progress, watch_id, self._hub.revision))
            watcher.progress_due = True

    def close(self) -> None:
        """The caller is gone. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._hub.streams -= 1
        for watcher in self._watchers.values():
            self._hub.remove(watcher)
        self._watchers.clear()
        self._answers.clear()
        self._ready.clear()

    # -- said by the hub -------------------------------------------------------------------------

    def ready(self, watcher: Watcher) -> None:
        if not watcher.flagged:
            watcher.flagged = True
            self._ready.append(watcher)
        self._plan()

    def lost(self, watcher: Watcher, compact_revision: int) -> None:
        self._answer(partial(self._sink.compacted, watcher.tag, compact_revision))

    # -- telling ---------------------------------------------------------------------------------

    def pump(self) -> None:
        """Hand over what the connection has room for."""
        self._planned = False
        sink = self._sink
        while not self._closed and sink.has_room:
            if self._answers:
                self._answers.popleft()()
            elif self._ready:
                self._send(self._ready.popleft())
            elif self._progress_wanted and self._all_told():
                self._progress_wanted = False
                if self._watchers and all(map(self._started, self._watchers.values())):
                    sink.progress(NO_WATCHER, self._hub.revision)
            else:
                return

    def _send(self, watcher: Watcher) -> None:
        assert isinstance(watcher, StreamWatcher)
        watcher.flagged = False
        if watcher.closed:
            return
        events: list[WatchEvent] = []
        revision = revisions = nbytes = 0
        while watcher.pending:
            nbytes += watcher.pending[0].nbytes
            if events and (nbytes > RESPONSE_BYTES_MAX or revisions >= RESPONSE_REVISIONS_MAX):
                break
            entry = watcher.take()
            revisions += 1
            events.extend(entry.events)
            revision = max(revision, entry.header_revision or self._hub.revision)
        if watcher.pending:
            self.ready(watcher)
        else:
            self._hub.seek(watcher)
        if events:
            watcher.progress_due = False
            self._sink.events(watcher, revision, events)

    def _all_told(self) -> bool:
        return all(watcher.synced or watcher.closed for watcher in self._watchers.values())

    def _started(self, watcher: StreamWatcher) -> bool:
        return watcher.start_revision <= self._hub.revision

    def _caught_up(self, watcher: StreamWatcher) -> bool:
        return watcher.synced and not watcher.pending and self._started(watcher)

    def _revision(self) -> int:
        return self._hub.current_revision

    def _answer(self, answer: Callable[[], None]) -> None:
        self._answers.append(answer)
        self._plan()

    def _plan(self) -> None:
        if not self._planned:
            self._planned = True
            self._hub.soon(self.pump)

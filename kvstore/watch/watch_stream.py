"""The watchers of one Watch call, and the order of its responses (etcd's `api/v3rpc/watch.go`).

One caller reads everything through one connection. Responses to its requests go first and in order, so that
`created` precedes a watcher's first event; then the queues of its watchers, round robin; then a progress
response. The stream sends nothing while the connection has no space, so the hub's bounds hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from kvstore.errors import Compacted
from kvstore.watch.watch_hub import Watcher, WatchEvent, WatchHub

NO_WATCHER = -1
"""The id in responses that concern no watcher: refused creations and progress of the whole stream."""

EMPTY_RANGE = "mvcc: watcher range is empty"
DUPLICATE_ID = "mvcc: duplicate watch ID provided on the WatchStream"

ANSWERS_WAITING_MAX = 1000
"""Responses queued for a caller that sends requests but does not read; beyond it no request is taken."""

RESPONSE_BYTES_MAX = 512 * 1024
"""Memory of events that go into one response, if they are more than one revision."""

RESPONSE_REVISIONS_MAX = 1000
"""Revisions in one response, as in etcd."""


class Sink(Protocol):
    """The caller's connection: encodes responses as messages."""

    @property
    def has_room(self) -> bool: ...

    def created(self, watch_id: int, revision: int, refusal: str) -> None:
        """A watcher exists, or (with an id of NO_WATCHER) was refused."""

    def canceled(self, watch_id: int, revision: int) -> None: ...

    def compacted(self, watch_id: int, compact_revision: int) -> None: ...

    def progress(self, watch_id: int, revision: int) -> None: ...

    def events(self, watcher: StreamWatcher, revision: int, events: list[WatchEvent]) -> None: ...


class StreamWatcher(Watcher):
    """A watcher with the options of its create request."""

    __slots__ = ("fragment", "progress_due", "progress_notify", "start_revision", "with_prev")

    start_revision: int
    """As the caller gave it."""
    with_prev: bool
    fragment: bool
    """Whether large responses may be split."""
    progress_notify: bool
    progress_due: bool
    """Nothing was sent since the last tick."""


class WatchStream:
    """All watchers of one call. Implements Consumer."""

    def __init__(self, hub: WatchHub, sink: Sink) -> None:
        self.pending_bytes = 0
        self._hub = hub
        self._sink = sink
        self._watchers: dict[int, StreamWatcher] = {}
        """By id, including until cancelled those whose next revision is compacted."""
        self._next_id = 0
        """Where the search for an unused id begins."""
        self._answers: deque[Callable[[], None]] = deque()
        self._ready: deque[Watcher] = deque()
        """Flagged watchers, first in first out."""
        self._progress_wanted = False
        self._planned = False
        self._closed = False
        hub.streams += 1

    @property
    def busy(self) -> bool:
        """Too many responses are queued: take no more requests until the caller reads."""
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
        """Watch [key, range_end) from `start_revision` (0: the next); `watch_id` 0 chooses one."""
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
        """Cancel this watcher; an unknown id gets no response."""
        watcher = self._watchers.pop(watch_id, None)
        if watcher is not None:
            self._hub.remove(watcher)
            self._answer(partial(self._sink.canceled, watch_id, self._revision()))

    def request_progress(self) -> None:
        """Respond with the stream's progress once all its watchers are synced."""
        self._progress_wanted = True
        self._plan()

    def tick(self) -> None:
        """An interval has passed: notify idle watchers that requested it of their progress."""
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

    # -- called by the hub -----------------------------------------------------------------------

    def ready(self, watcher: Watcher) -> None:
        if not watcher.flagged:
            watcher.flagged = True
            self._ready.append(watcher)
        self._plan()

    def lost(self, watcher: Watcher, compact_revision: int) -> None:
        self._answer(partial(self._sink.compacted, watcher.tag, compact_revision))

    # -- sending ---------------------------------------------------------------------------------

    def pump(self) -> None:
        """Send what the connection has space for."""
        self._planned = False
        sink = self._sink
        while not self._closed and sink.has_room:
            if self._answers:
                self._answers.popleft()()
            elif self._ready:
                self._send(self._ready.popleft())
            elif self._progress_wanted and self._all_synced():
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

    def _all_synced(self) -> bool:
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

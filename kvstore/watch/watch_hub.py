"""The watch hub: applied changes on their way to watchers.

After each batch of applied entries, the hub takes the changes from the engine and finds the watchers of their
keys in its index; it touches no other watcher. The changes go into the queue of each *synced* watcher, and
its consumer (a stream, or code of this process) takes them when it can. The queue is bounded: a watcher that
exceeds the bound leaves the index, loses its queue and is *unsynced*. An unsynced watcher reads the engine's
history from its next revision, one slice whenever its consumer has space, until it has caught up; then it is
synced again. A watcher that starts in the past begins unsynced. So every watcher gets each whole revision
once and in order, and one that never reads costs no more than its bound.

Watchers count in revisions, and revisions come from the log: a watcher that resumes on another member
continues where the first one stopped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from kvstore.engine import Change, Engine, Event, change_bytes, is_deletion, to_event
from kvstore.errors import Compacted
from kvstore.watch.paced_callbacks import PacedCallbacks
from kvstore.watch.watch_index import WatchIndex

WATCHER_PENDING_BYTES_MAX = 1 << 20
"""In the queue of one watcher, encoded forms included: about a thousand events of 256 bytes. A single larger
revision is queued whole."""

CONSUMER_PENDING_BYTES_MAX = 8 << 20
"""In all queues of one stream, which share one connection. Beyond it none of its watchers reads history, and
each that has more than one revision queued becomes unsynced."""

EVENT_OVERHEAD_BYTES = 300
"""Of a queued event beside its keys and values: the objects that hold it."""

CATCH_UP_VISITS_MAX = 1000
"""Visits to history in one loop iteration, for all watchers together: about 2 ms."""

CATCH_UP_WATCHER_VISITS = 50
"""The least number of visits that a slice of history counts for."""


class WatchEvent:
    """A change on its way to watchers: encoded once in each of its two forms, and shared."""

    __slots__ = ("_bare", "_full", "change", "is_delete", "nbytes")

    def __init__(self, change: Change) -> None:
        self.change = change
        self.is_delete = is_deletion(change)
        # The encoded forms, built on sending, repeat its bytes.
        self.nbytes = 2 * change_bytes(change) + EVENT_OVERHEAD_BYTES
        self._bare: bytes | None = None
        self._full: bytes | None = None

    def encoded(self, encode: Callable[[Event], bytes], *, with_prev: bool) -> bytes:
        """`encode` of the event, cached, with or without the previous pair."""
        if with_prev:
            if self._full is None:
                self._full = encode(to_event(self.change))
            return self._full
        if self._bare is None:
            self._bare = encode(to_event(self.change)._replace(prev=None))
        return self._bare


class Consumer(Protocol):
    """Takes the queued events of its watchers. Called from the hub; must not call back at once."""

    pending_bytes: int
    """Of all its watchers; maintained by the hub."""

    def ready(self, watcher: Watcher) -> None:
        """The watcher has something to take, or (nothing pending) has become synced, or must seek once its
        queue is empty."""

    def lost(self, watcher: Watcher, compact_revision: int) -> None:
        """The watcher's next revision is compacted: it gets nothing more."""


class Pending:
    """One queued revision of a watcher: header revision (0: the newest when sent) and events."""

    __slots__ = ("events", "header_revision", "nbytes", "revision")

    def __init__(
        self, revision: int, header_revision: int, events: Sequence[WatchEvent], nbytes: int
    ) -> None:
        self.revision = revision
        self.header_revision = header_revision
        self.events = events
        self.nbytes = nbytes


class Watcher:
    """One watch of one interval."""

    __slots__ = (
        "closed",
        "consumer",
        "flagged",
        "key",
        "next_revision",
        "no_delete",
        "no_put",
        "pending",
        "pending_bytes",
        "range_end",
        "seeking",
        "synced",
        "tag",
    )

    def __init__(
        self,
        key: bytes,
        range_end: bytes,
        start_revision: int,
        consumer: Consumer,
        *,
        no_put: bool = False,
        no_delete: bool = False,
        tag: int = 0,
    ) -> None:
        self.key = key
        self.range_end = range_end
        self.no_put = no_put
        self.no_delete = no_delete
        self.consumer = consumer
        self.tag = tag
        """The consumer's own id for it."""
        self.next_revision = start_revision
        """Changes of lower revisions are not for this watcher, or are queued already. Only an unsynced
        watcher advances it."""
        self.synced = False
        """In the index: gets changes as they are applied."""
        self.seeking = False
        """Queued in the hub for a slice of history. Only while unsynced."""
        self.closed = False
        self.pending: deque[Pending] = deque()
        """In order; all of lower revisions than those still to be queued."""
        self.pending_bytes = 0
        self.flagged = False
        """For the consumer: it knows already that there is something to take."""

    def take(self) -> Pending:
        entry = self.pending.popleft()
        self.pending_bytes -= entry.nbytes
        self.consumer.pending_bytes -= entry.nbytes
        return entry

    def drop(self) -> None:
        self.consumer.pending_bytes -= self.pending_bytes
        self.pending_bytes = 0
        self.pending.clear()


def _call_soon(callback: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(callback)


class WatchHub:
    """All watchers of one member."""

    def __init__(self, engine: Engine, call_soon: Callable[[Callable[[], None]], None] = _call_soon) -> None:
        """`call_soon` runs a callback in the next loop iteration."""
        self._engine = engine
        self.call_soon = call_soon
        self._paced = PacedCallbacks(lambda callback: self.call_soon(callback))
        self.revision = engine.revision
        """Synced watchers have every revision up to here in their queues."""
        self._index: WatchIndex[Watcher] = WatchIndex()
        self._watchers: dict[Watcher, None] = {}
        self._seeking: deque[Watcher] = deque()
        """Unsynced watchers whose consumer has space, first in first out."""
        self._planned = False
        self.streams = 0
        """Consumers that are streams, which count themselves here."""
        self.unsynced = 0
        self.touched = 0
        """Deliveries of a live revision to a watcher, since start: unrelated watchers never count."""
        self.events = 0
        """Events queued for watchers, since start."""

    # -- watchers --------------------------------------------------------------------------------

    @property
    def watcher_count(self) -> int:
        return len(self._watchers)

    @property
    def current_revision(self) -> int:
        """The applied revision, which watchers may not have yet."""
        return self._engine.revision

    @property
    def pending_bytes(self) -> int:
        """Of all watchers; for metrics, visits each."""
        return sum(watcher.pending_bytes for watcher in self._watchers)

    @property
    def pending_events(self) -> int:
        """Of all watchers; for metrics, visits each."""
        return sum(len(entry.events) for watcher in self._watchers for entry in watcher.pending)

    def add(self, watcher: Watcher) -> None:
        """Register a watcher. A start of 0 is the next revision; for the past the consumer calls `seek`."""
        if not self._watchers:
            self._engine.observing = True
            self.revision = self._engine.revision
        else:
            self.applied()
        self._watchers[watcher] = None
        if watcher.next_revision == 0 or watcher.next_revision > self.revision:
            watcher.next_revision = max(watcher.next_revision, self.revision + 1)
            self._sync(watcher)
        else:
            self.unsynced += 1

    def remove(self, watcher: Watcher) -> None:
        if watcher.closed:
            return
        watcher.closed = True
        watcher.drop()
        del self._watchers[watcher]
        if watcher.synced:
            self._index.remove(watcher.key, watcher.range_end, watcher)
        else:
            self.unsynced -= 1
        if not self._watchers:
            self._engine.observing = False

    def soon(self, callback: Callable[[], None]) -> None:
        """For consumers: run a callback soon, paced over loop iterations."""
        self._paced.soon(callback)

    def seek(self, watcher: Watcher) -> None:
        """An unsynced watcher has an empty queue and a consumer with space: read on in history."""
        if watcher.synced or watcher.seeking or watcher.closed:
            return
        watcher.seeking = True
        self._seeking.append(watcher)
        self._plan()

    def subscribe(
        self,
        key: bytes,
        range_end: bytes,
        start_revision: int,
        on_events: Callable[[int, list[Event]], None],
        on_lost: Callable[[int], None],
    ) -> Subscription:
        """Watch from within this process: `on_events(revision, events)` for each whole revision.

        A start of 0 is the next revision. `on_lost(compact_revision)` ends it. Neither is called
        before this returns, nor after `cancel`.
        """
        return Subscription(self, key, range_end, start_revision, on_events, on_lost)

    # -- applied changes -------------------------------------------------------------------------

    def applied(self) -> None:
        """Entries were applied, or a snapshot replaced the state: notify the synced watchers."""
        if not self._watchers:
            return
        changes = self._engine.take_changes()
        if self.revision + len(changes) != self._engine.revision:
            self._superseded()
            return
        for revision, made in changes:
            self._notify(revision, made)
        self.revision = self._engine.revision

    def _superseded(self) -> None:
        """A snapshot replaced the state: synced watchers read the gap from its history."""
        notified, self.revision = self.revision, self._engine.revision
        for watcher in self._watchers:
            if watcher.synced and watcher.next_revision <= self.revision:
                self._unsync(watcher, max(watcher.next_revision, notified + 1))
                watcher.consumer.ready(watcher)

    def _notify(self, revision: int, changes: Sequence[Change]) -> None:
        index = self._index
        if len(changes) == 1:
            groups = index.find(changes[0][0])
            if groups:
                events = [WatchEvent(changes[0])]
                watchers = [watcher for group in groups for watcher in group]
                for watcher in watchers:
                    self._offer(watcher, revision, events)
            return
        matched: dict[Watcher, list[WatchEvent]] = {}
        for change in changes:
            groups = index.find(change[0])
            if groups:
                event = WatchEvent(change)
                for group in groups:
                    for watcher in group:
                        matched.setdefault(watcher, []).append(event)
        for watcher, events in matched.items():
            self._offer(watcher, revision, events)

    def _offer(self, watcher: Watcher, revision: int, events: Sequence[WatchEvent]) -> None:
        self.touched += 1
        if revision < watcher.next_revision or not self._push(watcher, revision, revision, events):
            return
        consumer = watcher.consumer
        if (
            watcher.pending_bytes > WATCHER_PENDING_BYTES_MAX
            or consumer.pending_bytes > CONSUMER_PENDING_BYTES_MAX
        ) and len(watcher.pending) > 1:
            self._unsync(watcher, watcher.pending[0].revision)
            watcher.drop()
        if not watcher.flagged:
            consumer.ready(watcher)

    def _push(
        self, watcher: Watcher, revision: int, header_revision: int, events: Sequence[WatchEvent]
    ) -> bool:
        """Queue a revision for the watcher, unless its filters leave nothing of it."""
        if watcher.no_put or watcher.no_delete:
            events = [
                event for event in events if not (watcher.no_delete if event.is_delete else watcher.no_put)
            ]
            if not events:
                return False
        nbytes = sum(event.nbytes for event in events)
        watcher.pending.append(Pending(revision, header_revision, events, nbytes))
        watcher.pending_bytes += nbytes
        watcher.consumer.pending_bytes += nbytes
        self.events += len(events)
        return True

    # -- synced and unsynced ---------------------------------------------------------------------

    def _sync(self, watcher: Watcher) -> None:
        watcher.synced = True
        self._index.add(watcher.key, watcher.range_end, watcher)

    def _unsync(self, watcher: Watcher, next_revision: int) -> None:
        watcher.synced = False
        watcher.next_revision = next_revision
        self._index.remove(watcher.key, watcher.range_end, watcher)
        self.unsynced += 1

    def _plan(self) -> None:
        if not self._planned:
            self._planned = True
            self.soon(self._read_history)

    def _read_history(self) -> None:
        self._planned = False
        self.applied()
        visits = 0
        while self._seeking and visits < CATCH_UP_VISITS_MAX:
            watcher = self._seeking.popleft()
            watcher.seeking = False
            if not watcher.closed:
                visits += max(CATCH_UP_WATCHER_VISITS, self._read_slice(watcher))
        if self._seeking:
            self._plan()

    def _read_slice(self, watcher: Watcher) -> int:
        """Read on for one unsynced watcher; returns the visits that this took."""
        if watcher.consumer.pending_bytes > CONSUMER_PENDING_BYTES_MAX:
            if not watcher.flagged:
                watcher.consumer.ready(watcher)  # it seeks again once its queue is empty
            return 0
        try:
            part = self._engine.history(watcher.key, watcher.range_end, watcher.next_revision)
        except Compacted:
            self.remove(watcher)
            watcher.consumer.lost(watcher, self._engine.compact_revision)
            return 0
        for revision, changes in part.revisions:
            self._push(watcher, revision, 0, [WatchEvent(change) for change in changes])
        watcher.next_revision = part.next_revision
        if part.next_revision > self.revision:
            self.unsynced -= 1
            self._sync(watcher)
        if watcher.pending or watcher.synced:
            if not watcher.flagged:
                watcher.consumer.ready(watcher)
        else:
            self.seek(watcher)
        return part.visits


class Subscription:
    """A watch from within this process. Implements Consumer."""

    def __init__(
        self,
        hub: WatchHub,
        key: bytes,
        range_end: bytes,
        start_revision: int,
        on_events: Callable[[int, list[Event]], None],
        on_lost: Callable[[int], None],
    ) -> None:
        self.pending_bytes = 0
        self._hub = hub
        self._on_events = on_events
        self._on_lost = on_lost
        self._watcher = Watcher(key, range_end, start_revision, self)
        hub.add(self._watcher)
        hub.seek(self._watcher)

    def cancel(self) -> None:
        """Stop the events. Idempotent."""
        self._hub.remove(self._watcher)

    def ready(self, watcher: Watcher) -> None:
        watcher.flagged = True
        self._hub.soon(self._deliver)

    def lost(self, watcher: Watcher, compact_revision: int) -> None:
        self._on_lost(compact_revision)

    def _deliver(self) -> None:
        watcher = self._watcher
        watcher.flagged = False
        while watcher.pending:
            entry = watcher.take()
            self._on_events(entry.revision, [to_event(event.change) for event in entry.events])
        self._hub.seek(watcher)

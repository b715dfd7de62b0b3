"""What is applied, told to those who watch it.

Theory of operation. After each turn of applying, the hub takes the changes from the engine and looks
up in its index who watches their keys; nobody else is touched. A watcher that is *synced* gets them
into its queue, from which its owner (a stream, or code of this process) takes them when it can. A
queue is bounded: a watcher that outgrows it is taken out of the index, its queue is dropped, and it
is *unsynced* from then on: it reads the engine's history from where it stood, a slice whenever its
owner has room, until there is nothing left to read; then it is synced again. A watcher that starts in
the past begins that way. So every watcher is told each whole revision once and in order, whatever
happens between, and one that never reads costs no more than its bound.

A watcher asks for revisions; a revision comes from the log; so what a member tells after a restart or
a change of leader continues what another told before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from kvstore.engine import Change, Engine, Event, change_bytes, is_deletion, to_event
from kvstore.errors import Compacted
from kvstore.server.loop_iterations import LoopIterations
from kvstore.server.watch_index import WatchIndex

WATCHER_PENDING_BYTES_MAX = 1 << 20
"""What may wait for one watcher, encoded forms included: about a thousand events of 256 bytes. A
single larger revision waits whole."""

OWNER_PENDING_BYTES_MAX = 8 << 20
"""What may wait for all watchers of one stream, whose caller reads them through one connection. Beyond
it nobody reads on in history, and whoever is told of more than one revision falls behind."""

EVENT_OVERHEAD_BYTES = 300
"""What a waiting event costs beside its keys and values: the objects that hold it."""

CATCH_UP_VISITS_MAX = 1000
"""History looked at in one turn of the loop, for all watchers together: about 2 ms."""

CATCH_UP_WATCHER_VISITS = 50
"""What a slice of history counts for at the least, however little was found in it."""


class WatchEvent:
    """A change on its way to watchers: encoded once in each of its two forms, and shared."""

    __slots__ = ("_bare", "_full", "change", "is_delete", "nbytes")

    def __init__(self, change: Change) -> None:
        self.change = change
        self.is_delete = is_deletion(change)
        # The encoded forms, made when it is sent, repeat its bytes.
        self.nbytes = 2 * change_bytes(change) + EVENT_OVERHEAD_BYTES
        self._bare: bytes | None = None
        self._full: bytes | None = None

    def encoded(self, encode: Callable[[Event], bytes], *, with_prev: bool) -> bytes:
        """Its bytes by `encode`, with or without the pair before it."""
        if with_prev:
            if self._full is None:
                self._full = encode(to_event(self.change))
            return self._full
        if self._bare is None:
            self._bare = encode(to_event(self.change)._replace(prev=None))
        return self._bare


class Owner(Protocol):
    """Who takes what waits for its watchers. Called from the hub; must not call back at once."""

    pending_bytes: int
    """Of all its watchers; counted by the hub."""

    def ready(self, watcher: Watcher) -> None:
        """The watcher has something to take, or (nothing pending) has become synced, or is to seek
        once all that waits before was taken."""

    def lost(self, watcher: Watcher, compact_revision: int) -> None:
        """The watcher's next revision is compacted: it is told nothing more."""


class Pending:
    """Whole revisions waiting for a watcher: header revision (0: the newest when sent) and events."""

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
        "flagged",
        "key",
        "next_revision",
        "no_delete",
        "no_put",
        "owner",
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
        owner: Owner,
        *,
        no_put: bool = False,
        no_delete: bool = False,
        tag: int = 0,
    ) -> None:
        self.key = key
        self.range_end = range_end
        self.no_put = no_put
        self.no_delete = no_delete
        self.owner = owner
        self.tag = tag
        """The owner's own name for it."""
        self.next_revision = start_revision
        """Changes of lower revisions are not for this watcher, or were given to `pending` before. While
        synced it is moved only when that ends."""
        self.synced = False
        """In the index: told of changes as they are applied."""
        self.seeking = False
        """In the hub's queue for a slice of history. Only while unsynced."""
        self.closed = False
        self.pending: deque[Pending] = deque()
        """In order. Invariant: of revisions below those still to be read or told."""
        self.pending_bytes = 0
        self.flagged = False
        """For the owner: it knows already that there is something to take."""

    def take(self) -> Pending:
        """The oldest that waits."""
        entry = self.pending.popleft()
        self.pending_bytes -= entry.nbytes
        self.owner.pending_bytes -= entry.nbytes
        return entry

    def drop(self) -> None:
        """Forget all that waits."""
        self.owner.pending_bytes -= self.pending_bytes
        self.pending_bytes = 0
        self.pending.clear()


def _call_soon(callback: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(callback)


class WatchHub:
    """All watchers of one member."""

    def __init__(self, engine: Engine, call_soon: Callable[[Callable[[], None]], None] = _call_soon) -> None:
        """`call_soon` has something done in the next turn of the loop."""
        self._engine = engine
        self.call_soon = call_soon
        self._iterations = LoopIterations(lambda callback: self.call_soon(callback))
        self.revision = engine.revision
        """Synced watchers have been told of every revision up to here."""
        self._index: WatchIndex[Watcher] = WatchIndex()
        self._watchers: dict[Watcher, None] = {}
        self._seeking: deque[Watcher] = deque()
        """Unsynced watchers whose owner has room, in turn."""
        self._planned = False
        self.streams = 0
        """Owners that are streams; counted by them."""
        self.unsynced = 0
        """Watchers that are not synced."""
        self.touched = 0
        """Times a watcher was given a live revision, since start: unrelated watchers never count."""
        self.events = 0
        """Events given to watchers, since start."""

    # -- watchers --------------------------------------------------------------------------------

    @property
    def watcher_count(self) -> int:
        return len(self._watchers)

    @property
    def current_revision(self) -> int:
        """What is applied, whether or not anybody was told."""
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
        """Begin to tell a watcher. A start of 0 is the next revision; the owner asks for the past."""
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
        """Tell a watcher nothing more, of what waits neither. Idempotent."""
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
        """For owners: have something done soon, without keeping others waiting for all of it."""
        self._iterations.soon(callback)

    def seek(self, watcher: Watcher) -> None:
        """The owner of an unsynced watcher has room and nothing waits: read on in history."""
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

    # -- what is applied -------------------------------------------------------------------------

    def applied(self) -> None:
        """Something was applied, or the whole state was replaced: tell the synced watchers."""
        if not self._watchers:
            return
        changes = self._engine.take_changes()
        if self.revision + len(changes) != self._engine.revision:
            self._superseded()
            return
        for revision, made in changes:
            self._tell(revision, made)
        self.revision = self._engine.revision

    def _superseded(self) -> None:
        """The state was replaced by a newer one: what lies between is read from its history."""
        told, self.revision = self.revision, self._engine.revision
        for watcher in self._watchers:
            if watcher.synced and watcher.next_revision <= self.revision:
                self._unsync(watcher, max(watcher.next_revision, told + 1))
                watcher.owner.ready(watcher)

    def _tell(self, revision: int, changes: Sequence[Change]) -> None:
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
        owner = watcher.owner
        if (
            watcher.pending_bytes > WATCHER_PENDING_BYTES_MAX or owner.pending_bytes > OWNER_PENDING_BYTES_MAX
        ) and len(watcher.pending) > 1:
            self._unsync(watcher, watcher.pending[0].revision)
            watcher.drop()
        if not watcher.flagged:
            owner.ready(watcher)

    def _push(
        self, watcher: Watcher, revision: int, header_revision: int, events: Sequence[WatchEvent]
    ) -> bool:
        """Have a revision wait for the watcher, unless its filters leave nothing of it."""
        if watcher.no_put or watcher.no_delete:
            events = [
                event for event in events if not (watcher.no_delete if event.is_delete else watcher.no_put)
            ]
            if not events:
                return False
        nbytes = sum(event.nbytes for event in events)
        watcher.pending.append(Pending(revision, header_revision, events, nbytes))
        watcher.pending_bytes += nbytes
        watcher.owner.pending_bytes += nbytes
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
        """Give those who seek a slice each, as far as one turn of the loop allows."""
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
        """Read on for one unsynced watcher; the visits it took."""
        if watcher.owner.pending_bytes > OWNER_PENDING_BYTES_MAX:
            if not watcher.flagged:
                watcher.owner.ready(watcher)  # it seeks again once its owner has taken what waits
            return 0
        try:
            part = self._engine.history(watcher.key, watcher.range_end, watcher.next_revision)
        except Compacted:
            self.remove(watcher)
            watcher.owner.lost(watcher, self._engine.compact_revision)
            return 0
        for revision, changes in part.revisions:
            self._push(watcher, revision, 0, [WatchEvent(change) for change in changes])
        watcher.next_revision = part.next_revision
        if part.next_revision > self.revision:
            self.unsynced -= 1
            self._sync(watcher)
        if watcher.pending or watcher.synced:
            if not watcher.flagged:
                watcher.owner.ready(watcher)
        else:
            self.seek(watcher)
        return part.visits


class Subscription:
    """A watch from within this process. Implements Owner."""

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
        """Be told nothing more. Idempotent."""
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

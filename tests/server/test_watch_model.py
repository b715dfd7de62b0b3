"""The hub against a model too simple to be wrong: a watcher gets a slice of all events.

Streams stop and go on reading, watchers come, go and fall behind, history is compacted, and the whole
state is replaced by a newer one, with bounds so small that every edge is met.
"""

from __future__ import annotations

from collections import deque
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from kvstore.engine import (
    OPEN_END,
    Compact,
    DeleteRange,
    Engine,
    Event,
    Put,
    Txn,
    encode,
    revision_history,
    to_event,
)
from kvstore.watch import watch_hub, watch_stream
from kvstore.watch.watch_hub import WatchHub
from kvstore.watch.watch_stream import NO_WATCHER, StreamWatcher, WatchStream

KEYS = st.sampled_from([b"a", b"ab", b"b", b"c"])
INTERVALS = st.sampled_from(
    [(b"a", b""), (b"ab", b""), (b"b", b""), (b"a", b"b"), (b"a", b"c"), (b"b", OPEN_END), (b"\0", OPEN_END)]
)
COMMANDS = st.one_of(
    st.builds(lambda key, value: Put(key, value), KEYS, st.binary(max_size=3)),
    st.builds(lambda key, value: Put(key, value), KEYS, st.binary(max_size=3)),
    st.builds(lambda key, end: DeleteRange(key, end), KEYS, st.sampled_from([b"", b"c", OPEN_END])),
    st.builds(lambda a, b: Txn((), (Put(a), DeleteRange(b))), st.just(b"a"), st.just(b"b")),
)


class Told:
    """The responses of one watcher."""

    def __init__(self, start: int) -> None:
        self.start = start
        """The first revision it must get."""
        self.created = False
        self.events: list[Event] = []
        self.header = 0
        self.compacted = 0


class Reader:
    """A stream and what came out of it. Implements Sink."""

    def __init__(self, hub: WatchHub) -> None:
        self.reading = True
        self.hub = hub
        self.told: dict[int, Told] = {}
        self.asked: dict[int, tuple] = {}
        self.stream = WatchStream(hub, self)

    @property
    def has_room(self) -> bool:
        return self.reading

    def created(self, watch_id: int, revision: int, refusal: str) -> None:
        assert not refusal
        told = self.told.get(watch_id)
        if told is not None:  # else it is cancelled before its creation was read
            assert not told.events
            told.created = True

    def canceled(self, watch_id: int, revision: int) -> None:
        """The model forgot it already."""

    def compacted(self, watch_id: int, compact_revision: int) -> None:
        told = self.told.get(watch_id)
        if told is not None:
            assert told.created
            told.compacted = compact_revision

    def progress(self, watch_id: int, revision: int) -> None:
        for each, told in self.told.items():
            if watch_id in (NO_WATCHER, each):
                told.header = max(told.header, revision)

    def events(self, watcher: StreamWatcher, revision: int, events: list) -> None:
        told = self.told[watcher.tag]
        assert told.created, "events before the creation was answered"
        assert not told.compacted
        shown = [to_event(event.change) for event in events]
        assert all(event.kv.mod_revision > told.header for event in shown[:1]), "behind its progress"
        assert revision >= shown[-1].kv.mod_revision
        told.events += shown


class HubMachine(RuleBasedStateMachine):
    @initialize(small=st.booleans(), visits=st.sampled_from([1, 3, 2000]))
    def begin(self, small: bool, visits: int) -> None:
        bound = 1000 if small else 1 << 20
        self.patches = [
            mock.patch.object(watch_hub, "WATCHER_PENDING_BYTES_MAX", bound),
            mock.patch.object(watch_hub, "CONSUMER_PENDING_BYTES_MAX", 2 * bound),
            mock.patch.object(watch_hub, "CATCH_UP_VISITS_MAX", visits),
            mock.patch.object(watch_stream, "RESPONSE_BYTES_MAX", 1000),
            mock.patch.object(revision_history, "SLICE_VISITS_MAX", visits),
            mock.patch.object(revision_history, "FEW_KEYS", 2),
        ]
        for patch in self.patches:
            patch.start()
        self.bound = bound
        self.ahead = Engine()
        """A member that is never behind."""
        self.ahead.observing = True
        self.backend: dict[bytes, bytes] = {}
        """The rows of its backend."""
        self.engine = Engine()
        """The member that serves the watchers."""
        self.away = False
        """It is not told what the other applies."""
        self.queue: deque = deque()
        self.hub = WatchHub(self.engine, self.queue.append)
        self.log: list[Event] = []
        """Everything that happened."""
        self.readers = [Reader(self.hub) for _ in range(2)]

    def iteration(self, count: int = 10_000) -> None:
        for _ in range(min(count, len(self.queue))):
            self.queue.popleft()()

    def quiesce(self) -> None:
        while self.queue:
            self.iteration()

    def apply(self, commands) -> None:
        data = [encode(command) for command in commands]
        self.ahead.apply(1, 1, data, False)
        for made in self.ahead.take_changes():
            self.log += [to_event(change) for change in made.changes]
        if not self.away:
            self.engine.apply(1, 1, data, False)
            self.hub.applied()

    @rule(commands=st.lists(COMMANDS, min_size=1, max_size=5), iterations=st.integers(0, 4))
    def happen(self, commands, iterations: int) -> None:
        self.apply(commands)
        self.iteration(iterations)

    @rule(back=st.integers(0, 12))
    def compact(self, back: int) -> None:
        revision = self.ahead.revision - back
        if revision > self.ahead.compact_revision:
            self.apply([Compact(revision)])

    @precondition(lambda self: not self.away)
    @rule()
    def leave(self) -> None:
        self.away = True

    @precondition(lambda self: self.away)
    @rule(iterations=st.integers(0, 4))
    def return_by_a_snapshot(self, iterations: int) -> None:
        for row, value in self.ahead.drain_changes():
            if value is None:
                self.backend.pop(row, None)
            else:
                self.backend[row] = value
        backend = Engine()
        backend.load(sorted(self.backend.items()))
        backend.load_done()
        self.engine.replace(backend)
        self.away = False
        self.hub.applied()
        self.iteration(iterations)

    @rule(
        reader=st.integers(0, 1),
        interval=INTERVALS,
        back=st.integers(-3, 15),
        now=st.booleans(),
        filters=st.sampled_from([(False, False), (True, False), (False, True)]),
    )
    def watch(self, reader: int, interval, back: int, now: bool, filters) -> None:
        chosen = self.readers[reader]
        start = 0 if now else max(1, self.engine.revision - back)
        watch_id = chosen.stream._next_id
        chosen.told[watch_id] = Told(start or self.engine.revision + 1)
        chosen.asked[watch_id] = (*interval, *filters)
        chosen.stream.create(
            *interval,
            start_revision=start,
            watch_id=0,
            no_put=filters[0],
            no_delete=filters[1],
            with_prev=True,
            fragment=False,
            progress_notify=True,
        )

    @rule(reader=st.integers(0, 1), which=st.integers(0, 9))
    def cancel(self, reader: int, which: int) -> None:
        chosen = self.readers[reader]
        if which in chosen.told:
            self.check(chosen, which, whole=False)
            chosen.stream.cancel(which)
            del chosen.told[which]

    @rule(reader=st.integers(0, 1))
    def stop_or_go_on_reading(self, reader: int) -> None:
        chosen = self.readers[reader]
        chosen.reading = not chosen.reading
        if chosen.reading:
            chosen.stream.pump()

    @rule(reader=st.integers(0, 1), tick=st.booleans())
    def progress(self, reader: int, tick: bool) -> None:
        chosen = self.readers[reader]
        if tick:
            chosen.stream.tick()
        else:
            chosen.stream.request_progress()

    @rule(iterations=st.integers(1, 5))
    def let_the_loop_iterate(self, iterations: int) -> None:
        self.iteration(iterations)

    def check(self, reader: Reader, watch_id: int, *, whole: bool) -> None:
        """The responses are a prefix of the expected events, or (`whole`) all of them."""
        told = reader.told[watch_id]
        low, end, no_put, no_delete = reader.asked[watch_id]
        expected = [
            event
            for event in self.log
            if event.kv.mod_revision >= told.start
            and (event.kv.key == low if not end else low <= event.kv.key)
            and (not end or end == OPEN_END or event.kv.key < end)
            and not (no_delete if event.is_delete else no_put)
        ]
        if not whole or told.compacted:
            expected = expected[: len(told.events)]
        assert [(e.is_delete, e.kv) for e in told.events] == [(e.is_delete, e.kv) for e in expected]
        for event, wanted in zip(told.events, expected, strict=True):
            if event.prev != wanted.prev:  # compacted when it was read from history
                assert event.prev is None
                assert event.kv.mod_revision - 1 < self.ahead.compact_revision

    def teardown(self) -> None:
        if not hasattr(self, "readers"):
            return
        try:
            if self.away:
                self.return_by_a_snapshot(1)
            for reader in self.readers:
                reader.reading = True
                reader.stream.pump()
            self.quiesce()
            for reader in self.readers:
                for watch_id, told in reader.told.items():
                    assert told.created
                    self.check(reader, watch_id, whole=True)
                    if told.compacted:
                        assert told.start <= told.compacted
                reader.stream.close()
            assert self.hub.watcher_count == self.hub.unsynced == self.hub.streams == 0
            assert not self.engine.observing
        finally:
            for patch in self.patches:
                patch.stop()


TestHubMachine = HubMachine.TestCase
TestHubMachine.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)

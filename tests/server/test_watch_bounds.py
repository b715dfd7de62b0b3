"""What the watchers of one caller may cost together, when it does not read."""

from __future__ import annotations

from collections import deque

from kvstore.engine import Engine, Put, encode
from kvstore.engine.revision_history import SLICE_BYTES_MAX
from kvstore.watch.watch_hub import CONSUMER_PENDING_BYTES_MAX, Watcher, WatchHub

WATCHERS, REVISIONS = 100, 40
VALUE = bytes(16 * 1024)


class Consumer:
    """Takes what waits for its watchers only when told to."""

    def __init__(self, hub: WatchHub) -> None:
        self.pending_bytes = 0
        self.hub = hub
        self.flagged: deque[Watcher] = deque()
        self.told: dict[int, list[int]] = {}

    def ready(self, watcher: Watcher) -> None:
        watcher.flagged = True
        self.flagged.append(watcher)

    def lost(self, watcher: Watcher, compact_revision: int) -> None:
        raise AssertionError

    def take_one(self) -> None:
        watcher = self.flagged.popleft()
        watcher.flagged = False
        while watcher.pending:
            self.told.setdefault(watcher.tag, []).append(watcher.take().revision)
        self.hub.seek(watcher)


def test_many_watchers_of_one_caller_read_history_only_as_far_as_it_has_room() -> None:
    engine, soon = Engine(), deque()
    for index in range(1, REVISIONS + 1):
        engine.apply(index, 1, [encode(Put(b"k", VALUE))], False)
    hub = WatchHub(engine, soon.append)
    consumer = Consumer(hub)
    highest = 0

    def run() -> None:
        nonlocal highest
        while soon:
            soon.popleft()()
            highest = max(highest, consumer.pending_bytes)

    for tag in range(WATCHERS):
        watcher = Watcher(b"k", b"", 1, consumer, tag=tag)
        hub.add(watcher)
        hub.seek(watcher)
    run()
    assert len(consumer.flagged) == WATCHERS, "one of them would never go on"
    while consumer.flagged:
        consumer.take_one()
        run()
    # A slice ends behind the revision that passes its bound, and counts with the two encoded forms.
    assert CONSUMER_PENDING_BYTES_MAX < highest <= CONSUMER_PENDING_BYTES_MAX + 8 * SLICE_BYTES_MAX
    assert consumer.told == {tag: list(range(2, REVISIONS + 2)) for tag in range(WATCHERS)}
    assert hub.unsynced == 0

"""Mutants of watches, `kvstore.watch`."""

from __future__ import annotations

from kvstore.engine import RevisionChanges
from kvstore.engine.engine import Engine
from kvstore.watch.watch_hub import Watcher, WatchHub
from kvstore.watch.watch_stream import WatchStream
from tests.simulation.mutants.mutant import Mutant
from tests.simulation.mutants.patches import Patches


def _begins_after_the_first_of_a_revision(p: Patches) -> None:
    """A watcher that starts in the past loses all changes of a revision but the first."""
    history = Engine.history

    def short(self: Engine, key: bytes, range_end: bytes, start: int) -> object:
        part = history(self, key, range_end, start)
        if range_end == b"\0" or not part.revisions:
            return part
        first = part.revisions[0]
        shortened = [RevisionChanges(first.revision, first.changes[:1]), *part.revisions[1:]]
        return part._replace(revisions=shortened)

    p.attribute(Engine, "history", short)


def _compaction_is_passed_over(p: Patches) -> None:
    """A watcher whose next revision is compacted skips to the compaction, without an error."""
    read_slice = WatchHub._read_slice

    def read(self: WatchHub, watcher: Watcher) -> int:
        watcher.next_revision = max(watcher.next_revision, self._engine.compact_revision)
        return read_slice(self, watcher)

    p.attribute(WatchHub, "_read_slice", read)


def _progress_before_events(p: Patches) -> None:
    p.attribute(WatchStream, "_all_synced", lambda self: True)


MUTANTS = (
    Mutant(
        53,
        "watch restarted at revision+1 loses same-revision events",
        _begins_after_the_first_of_a_revision,
        level="node",
        features=("watch",),
        classes=("crash", "partition", "pause"),
    ),
    Mutant(
        54,
        "compaction drops a version still due to a synced watcher",
        _compaction_is_passed_over,
        level="node",
        features=("watch",),
        classes=("crash", "partition", "pause"),
    ),
    Mutant(
        55,
        "progress notification ahead of events",
        _progress_before_events,
        level="node",
        features=("watch",),
        classes=("crash", "partition"),
    ),
)

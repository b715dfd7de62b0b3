"""Watches, judged by the nine properties that etcd promises of them.

* ordered: revisions never go back; unique: no event twice; atomic: a revision is never split;
* reliable: between two events delivered, none is missing; resumable: from its start on, none is missing;
* bookmarkable: a progress notice at a revision comes after every event up to it;
* prev-value and is-create: what an event says of the past is true; filter: nothing but what was asked for.

And all watchers see the same. Operations:

=========  ===========================================  =====================================================
f          invoked                                      completed
=========  ===========================================  =====================================================
`write`    [[key value] ..], put in one step            {"revision": r}
`delete`   [key]                                        {"revision": r, "deleted": n}
`watch`    {"prefix", "start", "prev", "no_put",        {"created": revision, "batches": [[event ..] ..],
           "no_delete"}                                 "progress": [[revision, batches before] ..],
                                                        "compacted": revision or 0, "end": text}
=========  ===========================================  =====================================================

An event is [mod type key value create version prev], `prev` being [value mod] or nil where not told.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from kvstore.verify.history import Operation, Outcome, Verdict
from kvstore.verify.sets import conclude


class WatchEvent(NamedTuple):
    """One event as delivered."""

    mod: int
    type: str
    key: str
    value: Any
    create: int
    version: int
    prev: Any


class _Log:
    """Everything that is known to have happened, by (revision, key)."""

    def __init__(self) -> None:
        self.entries: dict[tuple[int, str], tuple[str, Any]] = {}
        """(revision, key) -> (type, value)."""
        self.order: list[tuple[int, str]] = []
        """The same keys, sorted."""
        self.of_key: dict[str, list[int]] = {}
        """Revisions at which each key is known to have changed, ascending."""

    def add(self, revision: int, key: str, kind: str, value: Any) -> bool:
        """False when something else is known to have happened there."""
        return self.entries.setdefault((revision, key), (kind, value)) == (kind, value)

    def settle(self) -> None:
        self.order = sorted(self.entries)
        for revision, key in self.order:
            self.of_key.setdefault(key, []).append(revision)


def check_watches(operations: Sequence[Operation]) -> Verdict:
    """Judge a history of writes and watches."""
    return conclude(len(operations), _findings(operations))


def _findings(operations: Sequence[Operation]) -> Iterator[str]:
    log = _Log()
    watches: list[tuple[Operation, list[list[WatchEvent]]]] = []
    for operation in operations:
        if operation.outcome is not Outcome.OK:
            continue
        if operation.f == "watch":
            batches = [[WatchEvent(*event) for event in batch] for batch in operation.completed["batches"]]
            watches.append((operation, batches))
        else:
            yield from _take_write(log, operation)
    for operation, batches in watches:
        for event in (event for batch in batches for event in batch):
            if not log.add(event.mod, event.key, event.type, event.value):
                known = log.entries[event.mod, event.key]
                yield f"disagreement at revision {event.mod}: {known!r} or {event!r} in {_name(operation)}"
    log.settle()
    for operation, batches in watches:
        yield from _one_watch(operation, batches, log)
    yield from _unknown_effects(operations, log)


def _take_write(log: _Log, operation: Operation) -> Iterator[str]:
    revision = operation.completed["revision"]
    if operation.f == "delete":
        if operation.completed["deleted"]:
            log.add(revision, operation.invoked[0], "delete", None)
        return
    for key, value in operation.invoked:
        if not log.add(revision, key, "put", value):
            yield f"two writes at revision {revision}: {operation.describe()}"


def _one_watch(operation: Operation, batches: list[list[WatchEvent]], log: _Log) -> Iterator[str]:
    name, asked = _name(operation), operation.invoked
    events = [event for batch in batches for event in batch]
    seen = {(event.mod, event.key) for event in events}
    if len(seen) < len(events):
        yield f"unique: an event was delivered twice in {name}"
    for one, other in pairwise(events):
        if other.mod < one.mod:
            yield f"ordered: {other!r} after {one!r} in {name}"
    for earlier, later in pairwise(batches):
        if earlier and later and earlier[-1].mod == later[0].mod:
            yield f"atomic: revision {later[0].mod} was split in {name}"
    for event in events:
        yield from _event(event, asked, log, name)
    first = asked["start"] or operation.completed["created"] + 1
    if operation.completed["compacted"]:
        if events:
            yield f"reliable: events before the refusal of a compacted start in {name}"
        return
    last = max([event.mod for event in events], default=0)
    yield from _missing(first, last, "reliable", asked, seen, log, name)
    for revision, before in operation.completed["progress"]:
        told = {(event.mod, event.key) for batch in batches[:before] for event in batch}
        yield from _missing(first, revision, "bookmarkable", asked, told, log, name)
        if any(event.mod <= revision for batch in batches[before:] for event in batch):
            yield f"bookmarkable: an event at or before {revision} came after that notice in {name}"


def _missing(
    first: int,
    last: int,
    which: str,
    asked: dict[str, Any],
    seen: set[tuple[int, str]],
    log: _Log,
    name: str,
) -> Iterator[str]:
    """Known events between two revisions that the watch asked for and did not see."""
    for revision, key in log.order[
        bisect_left(log.order, (first, "")) : bisect_left(log.order, (last + 1, ""))
    ]:
        if key.startswith(asked["prefix"]) and (revision, key) not in seen:
            kind = log.entries[revision, key][0]
            if not asked["no_put" if kind == "put" else "no_delete"]:
                yield f"{which}: {kind} of {key!r} at revision {revision} is missing in {name}"


def _event(event: WatchEvent, asked: dict[str, Any], log: _Log, name: str) -> Iterator[str]:
    if not event.key.startswith(asked["prefix"]) or asked["no_put" if event.type == "put" else "no_delete"]:
        yield f"filter: {event!r} was not asked for in {name}"
    if asked["start"] and event.mod < asked["start"]:
        yield f"filter: {event!r} lies before the start of {name}"
    if event.type == "put" and (event.create == event.mod) != (event.version == 1):
        yield f"is-create: {event!r} in {name}"
    if event.type == "put" and event.version > 1:
        creation = log.entries.get((event.create, event.key))
        if creation is not None and creation[0] != "put":
            yield f"is-create: {event!r} names a creation that was a {creation[0]} in {name}"
    if event.prev is None:
        return
    value, mod = event.prev
    if not asked["prev"]:
        yield f"filter: {event!r} tells a previous value nobody asked for in {name}"
    if log.entries.get((mod, event.key), ("put", value)) != ("put", value):
        yield f"prev-value: {event!r}, but then was {log.entries[mod, event.key]!r} in {name}"
    changes = log.of_key.get(event.key, ())
    if bisect_left(changes, event.mod) > bisect_right(changes, mod):
        yield f"prev-value: {event!r} skips a change in {name}"


def _unknown_effects(operations: Sequence[Operation], log: _Log) -> Iterator[str]:
    """What certainly failed shows nowhere."""
    values = {
        (key, value): revision for (revision, key), (_, value) in log.entries.items() if value is not None
    }
    for operation in operations:
        if operation.f == "write" and operation.outcome is Outcome.FAIL:
            for key, value in operation.invoked:
                if (key, value) in values:
                    yield f"seen at revision {values[key, value]}: {operation.describe()}"


def _name(operation: Operation) -> str:
    return f"the watch on line {operation.line} (start {operation.invoked['start']})"

"""Watches, checked against the nine guarantees that etcd documents.

* ordered: revisions never go back; unique: no event twice; atomic: a revision is never split;
* reliable: between two events delivered, none is missing; resumable: from its start on, none is missing;
* bookmarkable: a progress notification at a revision comes after every event up to it;
* prev-value and is-create: what an event shows of the past is true, and a requested previous value is present
  unless compaction may have removed it; filter: nothing but what was requested.

And all watchers see the same: what an operation of the history wrote, once, at the time of its effect.
Operations (values are distinct, and only these write to watched keys):

=========  ===========================================  =====================================================
f          invoked                                      completed
=========  ===========================================  =====================================================
`write`    [[key value] ..], put in one step            {"revision": r}
`delete`   [key]                                        {"revision": r, "deleted": n}
`watch`    {"prefix", "start", "prev", "no_put",        {"created": revision, "batches": [[event ..] ..],
           "no_delete"}                                 "progress": [[revision, batches before] ..],
                                                        "compacted": revision or 0, "end": text}
=========  ===========================================  =====================================================

An event is [mod type key value create version prev], `prev` being [value mod] or nil where absent.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

from kvstore.verify.effect_times import contradictions, moments
from kvstore.verify.operation_history import Operation, Outcome, Verdict
from kvstore.verify.set_checker import conclude
from kvstore.verify.watch_log import Log


class WatchEvent(NamedTuple):
    mod: int
    type: str
    key: str
    value: Any
    create: int
    version: int
    prev: Any


Watch = tuple[Operation, list[list[WatchEvent]]]
"""A watch with its batches."""


def check_watches(operations: Sequence[Operation], *, compacted_through: int | None = None) -> Verdict:
    """Judge a history of writes and watches.

    `compacted_through`: nothing above that revision was compacted meanwhile; None when that is not known.
    Raises ValueError for a history without times.
    """
    through = math.inf if compacted_through is None else compacted_through
    return conclude(operations, _findings(operations, through))


def _findings(operations: Sequence[Operation], compacted_through: float) -> Iterator[str]:
    log = Log()
    watches: list[Watch] = []
    for operation in operations:
        if operation.f != "watch":
            yield from log.take(operation)
        elif operation.outcome is Outcome.OK:
            batches = [[WatchEvent(*event) for event in batch] for batch in operation.completed["batches"]]
            watches.append((operation, batches))
    for operation, batches in watches:
        for event in (event for batch in batches for event in batch):
            where = f"{event!r} in {_name(operation)}"
            yield from log.witness(event.mod, event.key, event.type, event.value, where)
            if event.prev is not None:
                yield from log.witness(
                    event.prev[1], event.key, "put", event.prev[0], f"the prev-value of {where}"
                )
    yield from log.complete()
    for operation, batches in watches:
        yield from _one_watch(operation, batches, log, compacted_through)
    yield from _order(log, watches)


def _order(log: Log, watches: Sequence[Watch]) -> Iterator[str]:
    """Revisions respect the times of writes, and no watch shows one that was yet to come."""
    shown = []
    for operation, batches in watches:
        shown_revisions = [
            operation.completed["created"],
            *(progress[0] for progress in operation.completed["progress"]),
        ]
        shown_revisions += [event.mod for batch in batches for event in batch]
        reply = {"revision": max(shown_revisions), "watched": True}
        shown.append(replace(operation, completed=reply, called_ns=0))  # it may show the past
    yield from contradictions(moments([*log.with_revisions(), *shown], _revision))


def _revision(operation: Operation) -> tuple[int, bool]:
    reply = operation.completed
    return reply["revision"], not reply.get("watched") and bool(reply.get("deleted", True))


def _one_watch(
    operation: Operation, batches: list[list[WatchEvent]], log: Log, compacted_through: float
) -> Iterator[str]:
    name, asked, reply = _name(operation), operation.invoked, operation.completed
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
    first = asked["start"] or reply["created"] + 1
    for event in events:
        if event.mod < first:
            yield f"filter: {event!r} lies before the start of {name}"
        yield from _event(event, asked, log, name, compacted_through)
    last = max([event.mod for event in events], default=0)
    yield from _missing(first, last, "reliable", asked, seen, log, name)
    for revision, before in reply["progress"]:
        delivered = {(event.mod, event.key) for batch in batches[:before] for event in batch}
        yield from _missing(first, revision, "bookmarkable", asked, delivered, log, name)
        if any(event.mod <= revision for batch in batches[before:] for event in batch):
            yield f"bookmarkable: an event at or before {revision} came after that notification in {name}"
    following = max([first, last + 1, *(revision + 1 for revision, _ in reply["progress"])])
    if reply["compacted"] and not following < reply["compacted"] <= compacted_through:
        yield f"resumable: refused at {following}, compacted through {reply['compacted']}, in {name}"


def _missing(
    first: int, last: int, which: str, asked: dict[str, Any], seen: set[tuple[int, str]], log: Log, name: str
) -> Iterator[str]:
    """Known events between two revisions that the watch asked for and did not see."""
    for revision, key in log.order[
        bisect_left(log.order, (first, "")) : bisect_left(log.order, (last + 1, ""))
    ]:
        if key.startswith(asked["prefix"]) and (revision, key) not in seen:
            kind = log.entries[revision, key][0]
            if not asked["no_put" if kind == "put" else "no_delete"]:
                yield f"{which}: {kind} of {key!r} at revision {revision} is missing in {name}"


def _event(
    event: WatchEvent, asked: dict[str, Any], log: Log, name: str, compacted_through: float
) -> Iterator[str]:
    if not event.key.startswith(asked["prefix"]) or asked["no_put" if event.type == "put" else "no_delete"]:
        yield f"filter: {event!r} was not asked for in {name}"
    if event.type == "put" and (event.create == event.mod) != (event.version == 1):
        yield f"is-create: {event!r} in {name}"
    if event.type == "put":
        for why in log.doubt_of_life(event.key, event.mod, event.create, event.version):
            yield f"is-create: {event!r} {why} in {name}"
    elif (event.create, event.version) != (0, 0):
        yield f"is-create: {event!r} is a deletion in {name}"
    had_one = event.type == "delete" or event.version > 1
    if event.prev is None:
        if asked["prev"] and had_one and event.mod > compacted_through:
            yield f"prev-value: {event!r} has none in {name}"
        return
    mod = event.prev[1]
    if not asked["prev"]:
        yield f"filter: {event!r} has a previous value that was not requested in {name}"
    if not had_one or mod >= event.mod or (event.type == "put" and mod < event.create):
        yield f"prev-value: {event!r} had none such in {name}"
    changes = log.of_key.get(event.key, ())
    if bisect_left(changes, event.mod) > bisect_right(changes, mod):
        yield f"prev-value: {event!r} skips a change in {name}"


def _name(operation: Operation) -> str:
    return f"the watch on line {operation.line} (start {operation.invoked['start']})"

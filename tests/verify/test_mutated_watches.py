"""Watches: no false alarm in valid histories; edits that no history of events explains are flagged."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from kvstore.verify import Event, Operation, Outcome, VerdictKind
from kvstore.verify.watch_checker import check_watches
from tests.verify.effects import (
    EDITS,
    OPERATIONS,
    VALID_HISTORIES,
    Tally,
    Tape,
    begun,
    dropped,
    ended,
    moved,
    paired,
    repeated,
)

CLIENTS = 4
KEYS = ["w/a", "w/b", "w/bc", "v"]
FIELDS = ["mod", "type", "key", "value", "create", "version", "prev"]


class NaiveStore:
    """A map, and the list of all events that ever were."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self.held: dict[str, tuple[str, int, int, int]] = {}
        """Key -> value, mod, create, version."""
        self.log: list[dict[str, Any]] = []

    def _note(self, key: str, value: str | None, create: int, version: int) -> None:
        before = self.held.get(key)
        prev = list(before[:2]) if before else None
        kind = "delete" if value is None else "put"
        fields = (self.revision, kind, key, value, create, version, prev)
        self.log.append(dict(zip(FIELDS, fields, strict=True)))

    def write(self, pairs: Sequence[Sequence[str]]) -> dict[str, Any]:
        self.revision += 1
        for key, value in pairs:
            _, _, create, version = self.held.get(key, ("", 0, self.revision, 0))
            self._note(key, value, create, version + 1)
            self.held[key] = (value, self.revision, create, version + 1)
        return {"revision": self.revision}

    def delete(self, keys: Sequence[str]) -> dict[str, Any]:
        there = keys[0] in self.held
        self.revision += there
        if there:
            self._note(keys[0], None, 0, 0)
            del self.held[keys[0]]
        return {"revision": self.revision, "deleted": int(there)}


def projected(log: Sequence[dict[str, Any]], asked: dict[str, Any], first: int) -> list[dict[str, Any]]:
    """All events that a watch must ever receive: the definition."""
    return [
        event if asked["prev"] else {**event, "prev": None}
        for event in log
        if event["mod"] >= first
        and event["key"].startswith(asked["prefix"])
        and not asked["no_put" if event["type"] == "put" else "no_delete"]
    ]


def watch_reply(rng: random.Random, store: NaiveStore, asked: dict[str, Any], created: int) -> dict[str, Any]:
    """What a watch created at `created` may have received by now."""
    first = asked["start"] or created + 1
    reply = {"created": created, "batches": [], "progress": [], "compacted": 0, "end": "stopped"}
    if first < store.compacted and rng.random() < 0.7:
        return {**reply, "compacted": store.compacted, "end": "canceled"}
    through = rng.choice([store.revision, store.revision, rng.randint(created, store.revision)])
    batches: list[list[list[Any]]] = []
    told = 0
    progress = []
    for mod, group in itertools.groupby(projected(store.log, asked, first), key=lambda event: event["mod"]):
        if mod > through:
            break
        events = [list(event.values()) for event in group]
        for event in events:
            if mod <= store.compacted and rng.random() < 0.3:
                event[-1] = None
        if mod - 1 > told and rng.random() < 0.2:
            progress.append([rng.randint(told + 1, mod - 1), len(batches)])
        elif batches and rng.random() < 0.3:
            batches[-1].extend(events)
            told = mod
            continue
        batches.append(events)
        told = mod
    if rng.random() < 0.5:
        progress.append([through, len(batches)])
    return {**reply, "batches": batches, "progress": progress}


def ask(rng: random.Random, number: int, store: NaiveStore) -> tuple[str, Any]:
    draw = rng.random()
    if draw < 0.3:
        start = rng.choice([0, rng.randint(1, store.revision), store.revision + rng.randint(0, 3)])
        prefix = rng.choice(["w/", "w/", "w/b", "w/bc", ""])
        filters = {"no_put": rng.random() < 0.1, "no_delete": rng.random() < 0.1}
        return "watch", {"prefix": prefix, "start": start, "prev": rng.random() < 0.6, **filters}
    keys = rng.sample(KEYS[:2] if rng.random() < 0.7 else KEYS, 2)
    if draw < 0.45:
        return "delete", keys[:1]
    return "write", [[key, f"{number}"] for key in keys[: 1 if draw < 0.8 else 2]]


def record_watches(rng: random.Random, count: int) -> tuple[list[Event], int]:
    """Writers and watchers; also through where the history was compacted in the end."""
    tape, store = Tape(rng), NaiveStore()
    compacts = rng.random() < 0.3
    process_of = list(range(CLIENTS))
    open_now: dict[int, tuple[str, Any, Any]] = {}
    started = 0
    while started < count or open_now:
        slot = rng.randrange(CLIENTS)
        if compacts and rng.random() < 0.05:
            store.compacted = rng.randint(store.compacted, store.revision)
        if slot not in open_now:
            if started < count:
                started += 1
                f, asked = ask(rng, started, store)
                tape.add(process_of[slot], "invoke", f, asked)
                open_now[slot] = (f, asked, None)
            continue
        f, asked, reply = open_now[slot]
        if reply is None:
            draw = rng.random() if f != "watch" else 1.0
            if f == "watch":
                reply = max(1, store.revision - rng.choice([0, 0, 1]))
            elif draw > 0.1:
                reply = store.write(asked) if f == "write" else store.delete(asked)
            open_now[slot] = (f, asked, "fail" if draw < 0.04 else "info" if draw < 0.16 else reply)
            continue
        if f == "watch":
            if rng.random() < 0.6:
                continue
            reply = watch_reply(rng, store, asked, reply)
        kind = reply if isinstance(reply, str) else "ok"
        tape.add(process_of[slot], kind, f, reply if kind == "ok" else None)
        del open_now[slot]
        if kind == "info":
            process_of[slot] += CLIENTS
    return tape.events, store.compacted


def edit_watches(rng: random.Random, events: list[Event]) -> list[Event]:
    """One lie of a watch, of a writer, or about times and whole operations."""
    edited, done, choice = list(events), ended(events), rng.randrange(12)
    watches = [n for n in ended(events, f="watch") if events[n].value["batches"] or choice == 5]
    if choice < 7 and watches:
        n = rng.choice(watches)
        value = {**events[n].value, "batches": [list(map(list, b)) for b in events[n].value["batches"]]}
        value["progress"] = [list(progress) for progress in value["progress"]]
        _lie(rng, value, choice)
        edited[n] = events[n]._replace(value=value)
        return edited
    if not done:
        return edited
    n = rng.choice(done)
    if choice == 7:
        return dropped(events, n)
    if choice == 8 and events[n].f == "watch":
        return repeated(rng, events, n)
    if choice == 9:
        return moved(rng, events)
    if choice == 10 and (writes := [m for m in done if events[m].f != "watch"]):
        m = rng.choice(writes)
        revision = max(2, events[m].value["revision"] + rng.choice([-1, 1]))
        edited[m] = events[m]._replace(value={**events[m].value, "revision": revision})
    elif choice == 11 and (writes := [m for m in done if events[m].f != "watch"]):
        m = rng.choice(writes)
        kind = rng.choice(["fail", "info"]) if events[m].f == "write" else "info"
        edited[m] = events[m]._replace(type=kind, value=None)
    elif asked := ended(events, f="watch"):
        m = begun(events, rng.choice(asked))
        field = rng.choice(["prefix", "start", "prev", "no_put", "no_delete"])
        lies = {"prefix": rng.choice(KEYS), "start": max(0, events[m].value["start"] + rng.choice([-1, 1]))}
        lie = lies.get(field, not events[m].value[field])
        edited[m] = events[m]._replace(value={**events[m].value, field: lie})
    return edited


def _lie(rng: random.Random, value: dict[str, Any], choice: int) -> None:
    """About what was delivered: drop, repeat, exchange, split, change, progress, refusals."""
    batches = value["batches"]
    if choice == 5 or not batches:
        if value["progress"] and rng.random() < 0.5:
            progress = rng.choice(value["progress"])
            progress[rng.randrange(2)] += rng.choice([-1, 1])
        elif rng.random() < 0.5:
            value["created"] = max(1, value["created"] + rng.choice([-1, 1, 5]))
        else:
            value["compacted"] = rng.choice([0, rng.randint(1, 6)])
        return
    position = rng.randrange(len(batches))
    batch, other = batches[position], rng.choice(batches)
    k, m = rng.randrange(len(batch)), rng.randrange(len(other))
    if choice == 0:
        batch.pop(k)
    elif choice == 1:
        other.insert(m, list(batch[k]))
    elif choice == 2:
        batch[k], other[m] = other[m], batch[k]
    elif choice == 3:
        batches[position : position + 1] = [batch[:k], batch[k:]]
    else:
        field = rng.randrange(7)
        lies = [
            max(1, batch[k][0] + rng.choice([-1, 1])),
            "put" if batch[k][1] == "delete" else "delete",
            rng.choice(KEYS),
            rng.choice([other[m][3], "9", None]),
            max(0, batch[k][4] + rng.choice([-1, 1])),
            max(0, batch[k][5] + rng.choice([-1, 1])),
            rng.choice([None, other[m][6], ["9", 2]]),
        ]
        batch[k][field] = lies[field]
    value["batches"] = [one for one in batches if one]


# --- the judge: by definition, against every history of events that there can have been ---


class Done(NamedTuple):
    """A change that is taken to have happened."""

    revision: int
    operation: Operation


def histories(operations: Sequence[Operation]) -> Iterator[list[Done]]:
    """Every choice of revisions for what was not answered, beside what was."""
    changes = [op for op in operations if op.f != "watch"]
    sure = [Done(op.completed["revision"], op) for op in changes if op.outcome is Outcome.OK]
    unknown = [op for op in changes if op.outcome is Outcome.INFO]
    made = [one.revision for one in sure if one.operation.completed.get("deleted", 1)]
    if len(set(made)) < len(made):
        return
    shown = [
        event[0]
        for op in operations
        if op.f == "watch" and op.outcome is Outcome.OK
        for batch in op.completed["batches"]
        for event in batch
    ]
    last = max([*shown, *(one.revision for one in sure), 1]) + len(unknown)
    free = [revision for revision in range(2, last + 1) if revision not in made]
    for positions in itertools.product([None, *free], repeat=len(unknown)):
        taken = [position for position in positions if position is not None]
        if len(set(taken)) == len(taken):
            guesses = [Done(at, op) for at, op in zip(positions, unknown, strict=True) if at is not None]
            yield sorted([*sure, *guesses], key=lambda one: (one.revision, _is_silent(one.operation)))


def _is_silent(operation: Operation) -> bool:
    return operation.outcome is Outcome.OK and operation.completed.get("deleted", 1) == 0


def in_time(history: Sequence[Done], watches: Sequence[Operation]) -> bool:
    """Whether the changes can have come in that order, each in its time, none after a watch that shows it."""
    limits = []
    for watch in watches:
        reply = watch.completed
        top = max(
            [
                reply["created"],
                *(r for r, _ in reply["progress"]),
                *(e[0] for b in reply["batches"] for e in b),
            ]
        )
        limits.append((top, watch.returned_ns or 0))
    now = 0
    for revision, operation in history:
        assert operation.called_ns is not None
        now = max(now, operation.called_ns)
        ends = [operation.returned_ns or 0] if operation.outcome is Outcome.OK else []
        ends += [end for top, end in limits if top >= revision and not _is_silent(operation)]
        ends += [end for top, end in limits if top > revision]
        if any(now > end for end in ends):
            return False
    return True


def replayed(history: Sequence[Done]) -> list[dict[str, Any]] | None:
    """All events of a history, or None where a deletion found what was not there, or not what was."""
    store = NaiveStore()
    for revision, operation in history:
        if _is_silent(operation):
            if operation.invoked[0] in store.held:
                return None
            continue
        store.revision = revision - 1
        if operation.f == "write":
            store.write(operation.invoked)
        elif not store.delete(operation.invoked)["deleted"]:
            return None
    return store.log


def as_defined(watch: Operation, log: Sequence[dict[str, Any]], compacted: int) -> bool:
    """Whether a watch told a whole number of revisions of what it was to tell, and nothing else."""
    asked, reply = watch.invoked, watch.completed
    first = asked["start"] or reply["created"] + 1
    due = [
        (mod, [list(event.values()) for event in group])
        for mod, group in itertools.groupby(projected(log, asked, first), key=lambda event: event["mod"])
    ]
    batches, next_due = reply["batches"], 0
    told = [first - 1]
    for batch in batches:
        left = list(batch)
        while left:
            if next_due == len(due):
                return False
            mod, events = due[next_due]
            shown, left = left[: len(events)], left[len(events) :]
            if not _same(shown, events, mod <= compacted):
                return False
            next_due += 1
        told.append(due[next_due - 1][0])
    for revision, before in reply["progress"]:
        seen = {event[0] for batch in batches[:before] for event in batch}
        after = {event[0] for batch in batches[before:] for event in batch}
        if any(mod <= revision and mod not in seen for mod, _ in due) or any(
            mod <= revision for mod in after
        ):
            return False
        told.append(revision)
    refused = reply["compacted"]
    return not refused or max(told) + 1 < refused <= compacted


def _same(shown: list[Any], events: list[Any], may_lack_prev: bool) -> bool:
    def key(event: list[Any]) -> str:
        return str(event[2])

    pairs = list(zip(sorted(shown, key=key), sorted(events, key=key), strict=False))
    return len(shown) == len(events) and all(
        one == other or (may_lack_prev and one[6] is None and one[:6] == other[:6]) for one, other in pairs
    )


def watches_explained(operations: Sequence[Operation], compacted: int) -> bool:
    watches = [op for op in operations if op.f == "watch" and op.outcome is Outcome.OK]
    for history in histories(operations):
        log = replayed(history)
        if log is None or not in_time(history, watches):
            continue
        if all(as_defined(watch, log, compacted) for watch in watches):
            return True
    return False


def test_valid_watches() -> None:
    for seed in range(VALID_HISTORIES):
        events, compacted = record_watches(random.Random(seed), 20)
        verdict = check_watches(paired(events), compacted_through=compacted)
        assert verdict.kind is VerdictKind.VALID, f"seed {seed}: {verdict.explanation}"


def test_edited_watches() -> None:
    tally = Tally("watches")
    for seed in range(EDITS):
        rng = random.Random(seed)
        events, compacted = record_watches(rng, OPERATIONS)
        operations = paired(edit_watches(rng, events))
        verdict = check_watches(operations, compacted_through=compacted)
        tally.note(seed, explained=watches_explained(operations, compacted), verdict=verdict)
    tally.judge()

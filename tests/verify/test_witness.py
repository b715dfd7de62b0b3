"""The revision witness: silent on correct stores, loud on each kind of lie."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from kvstore.verify import Event, VerdictKind, check_revisions, pair_events

CLIENTS = 5
KEYS = ["a", "b", "c"]


class _Store:
    """A plain revisioned map."""

    def __init__(self) -> None:
        self.revision = 1
        self.held: dict[str, tuple[str, int]] = {}

    def do(self, f: str, asked: list[Any]) -> dict[str, Any]:
        key = asked[0]
        value, mod = self.held.get(key, (None, 0))
        if f == "get":
            return {"revision": self.revision, "value": value, "mod": mod}
        if f == "delete":
            if value is None:
                return {"revision": self.revision, "deleted": 0}
            self.revision += 1
            del self.held[key]
            return {"revision": self.revision, "deleted": 1}
        if f == "cas" and value != asked[1]:
            return {"revision": self.revision, "succeeded": False}
        self.revision += 1
        self.held[key] = (asked[-1], self.revision)
        return {"revision": self.revision} | ({"succeeded": True} if f == "cas" else {})


def _record(rng: random.Random, count: int, loss: float = 0.05) -> list[Event]:
    store = _Store()
    open_now: dict[int, tuple[str, list[Any], dict[str, Any] | None]] = {}
    process_of = list(range(CLIENTS))
    started = 0
    events: list[Event] = []
    while started < count or open_now:
        slot = rng.randrange(CLIENTS)
        line, process = len(events) + 1, process_of[slot]
        if slot not in open_now:
            if started == count:
                continue
            started += 1
            f = rng.choice(["put", "get", "get", "delete", "cas"])
            key = rng.choice(KEYS)
            seen = store.held.get(key, (None, 0))[0]
            fresh = f"v{started}"
            asked: list[Any] = (
                [key] if f in {"get", "delete"} else [key, fresh] if f == "put" else [key, seen, fresh]
            )
            events.append(Event(line, process, "invoke", f, asked))
            open_now[slot] = (f, asked, None)
            continue
        f, asked, reply = open_now[slot]
        if reply is None:
            happened = f == "get" or rng.random() >= loss
            open_now[slot] = (f, asked, store.do(f, asked) if happened else {})
            continue
        lost = not reply or (f != "get" and rng.random() < loss)
        events.append(Event(line, process, "info" if lost else "ok", f, None if lost else reply))
        del open_now[slot]
        if lost:
            process_of[slot] += CLIENTS
    return events


def test_correct_histories_are_valid() -> None:
    for seed in range(300):
        verdict = check_revisions(pair_events(_record(random.Random(seed), 80, loss=0.0)))
        assert verdict.kind is VerdictKind.VALID, f"seed {seed}: {verdict.explanation}"


def test_unknown_outcomes_never_raise_a_false_alarm() -> None:
    verdicts = [check_revisions(pair_events(_record(random.Random(seed), 80))).kind for seed in range(500)]
    assert VerdictKind.INVALID not in verdicts
    assert verdicts.count(VerdictKind.VALID) > 400


def _stale_read(events: list[Event], rng: random.Random) -> None:
    """A read is answered from an earlier read's state of the same key, revision and all."""
    reads = [n for n, e in enumerate(events) if e.type == "ok" and e.f == "get"]
    late = reads[-1]
    early = next(n for n in reads if events[n].value["revision"] + 3 < events[late].value["revision"])
    del rng
    events[late] = events[late]._replace(value=events[early].value)


def _lost_write(events: list[Event], rng: random.Random) -> None:
    """A read after an acknowledged put of its key still shows nothing."""
    n = rng.choice([n for n, e in enumerate(events) if e.type == "ok" and e.f == "get" and e.value["value"]])
    events[n] = events[n]._replace(value={**events[n].value, "value": None, "mod": 0})


def _same_revision(events: list[Event], rng: random.Random) -> None:
    a, b = rng.sample([n for n, e in enumerate(events) if e.type == "ok" and e.f == "put"], 2)
    events[a] = events[a]._replace(value=events[b].value)


def _false_success(events: list[Event], rng: random.Random) -> None:
    n = rng.choice(
        [n for n, e in enumerate(events) if e.type == "ok" and e.f == "cas" and e.value["succeeded"]]
    )
    events[n] = events[n]._replace(value={**events[n].value, "succeeded": False})


@pytest.mark.parametrize("lie", [_stale_read, _lost_write, _same_revision, _false_success])
def test_lies_are_found(lie: Callable[[list[Event], random.Random], None]) -> None:
    for seed in range(50):
        rng = random.Random(seed)
        events = _record(rng, 120, loss=0.0)
        lie(events, rng)
        verdict = check_revisions(pair_events(events))
        assert verdict.kind is VerdictKind.INVALID, f"seed {seed}"
        assert verdict.explanation


def test_serializable_reads_may_be_old_but_not_invented() -> None:
    def history(value: str | None, mod: int) -> list[Event]:
        return [
            Event(1, 0, "invoke", "put", ["a", "x"]),
            Event(2, 0, "ok", "put", {"revision": 2}),
            Event(3, 0, "invoke", "put", ["a", "y"]),
            Event(4, 0, "ok", "put", {"revision": 3}),
            Event(5, 1, "invoke", "get", ["a", "serializable"]),
            Event(6, 1, "ok", "get", {"revision": 2, "value": value, "mod": mod}),
        ]

    assert check_revisions(pair_events(history("x", 2))).kind is VerdictKind.VALID
    assert check_revisions(pair_events(history("y", 3))).kind is VerdictKind.INVALID


def test_an_unclaimed_revision_needs_an_unknown_write() -> None:
    events = [
        Event(1, 0, "invoke", "put", ["a", "x"]),
        Event(2, 0, "ok", "put", {"revision": 2}),
        Event(3, 0, "invoke", "put", ["a", "y"]),
        Event(4, 0, "ok", "put", {"revision": 4}),
    ]
    assert check_revisions(pair_events(events)).explanation == ["no write has revision 3"]
    unknown = [Event(0, 9, "invoke", "put", ["b", "z"]), Event(0, 9, "info", "put", None)]
    assert check_revisions(pair_events(unknown + events)).kind is VerdictKind.VALID


def test_an_unknown_kind_is_refused() -> None:
    events = [Event(1, 0, "invoke", "jump", ["a"]), Event(2, 0, "ok", "jump", {"revision": 1})]
    with pytest.raises(ValueError, match="line 1"):
        check_revisions(pair_events(events))

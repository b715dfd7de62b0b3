"""Every checker of a stateful object against an exhaustive search over all orders of up to eight operations.

Histories come from a correct object whose operations take effect at a random instant while open. They are
valid, and no checker may say otherwise. Then they are edited; where the exhaustive search says that no order
explains what is left, the checker must say so too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest

from kvstore.verify import (
    MODELS,
    Event,
    Operation,
    Outcome,
    Semantics,
    Verdict,
    VerdictKind,
    check_linearizability,
    check_list_append,
    check_revisions,
    pair_events,
)
from kvstore.verify.run.workload_checks import as_register
from kvstore.verify.set_checker import check_counter, check_set
from kvstore.verify.transaction_checker import as_multi_register, check_transactions

CLIENTS = 4
OPERATIONS = 8
VALID_HISTORIES = 1_000
EDITS = 700
FLAGGED_MIN = 0.99

State = Any
Step = Callable[[State, str, Any], tuple[State, Any]]


def register_step(state: State, f: str, asked: Any) -> tuple[State, Any]:
    revision, held = state
    key = asked[0]
    value, mod = held.get(key, (None, 0))
    if f == "get":
        return state, {"revision": revision, "value": value, "mod": mod}
    if f == "cas" and value != asked[1]:
        return state, {"revision": revision, "succeeded": False}
    if f == "delete" and value is None:
        return state, {"revision": revision, "deleted": 0}
    revision += 1
    if f == "delete":
        rest = {name: now for name, now in held.items() if name != key}
        return (revision, rest), {"revision": revision, "deleted": 1}
    after = (revision, {**held, key: (asked[-1], revision)})
    return after, {"revision": revision} | ({"succeeded": True} if f == "cas" else {})


def txn_step(state: State, f: str, asked: Any) -> tuple[State, Any]:
    del f
    revision, held = state
    writes = {key: value for kind, key, value in asked if kind == "w"}
    revision += bool(writes)
    mops = [[*mop[:2], *held.get(mop[1], (None, 0))] if mop[0] == "r" else mop for mop in asked]
    after = {**held, **{key: (value, revision) for key, value in writes.items()}}
    return (revision, after), {"revision": revision, "mops": mops}


def append_step(state: State, f: str, asked: Any) -> tuple[State, Any]:
    del f
    held, done = dict(state), []
    for kind, key, value in asked:
        if kind == "append":
            held[key] = [*held.get(key, []), value]
        done.append([kind, key, value if kind == "append" else held.get(key, [])])
    return held, done


def set_step(state: State, f: str, asked: Any) -> tuple[State, Any]:
    if f == "add":
        return (*state, asked), asked
    return state, sorted(state)


def counter_step(state: State, f: str, asked: Any) -> tuple[State, Any]:
    if f == "add":
        return state + 1, asked
    return state, [asked[0], state]


def register_ask(rng: random.Random, number: int) -> tuple[str, Any]:
    f, key = rng.choice(["put", "get", "get", "cas", "delete"]), rng.choice("ab")
    if f in ("get", "delete"):
        return f, [key]
    expected = rng.choice([None, *(str(one) for one in range(number))])
    return f, [key, str(number)] if f == "put" else [key, expected, str(number)]


def txn_ask(rng: random.Random, number: int) -> tuple[str, Any]:
    mops = [["r", key, None] for key in "ab" if rng.random() < 0.6] or [["r", "a", None]]
    return "txn", [*mops, *(["w", key, f"{key}{number}"] for key in "ab" if rng.random() < 0.4)]


def append_ask(rng: random.Random, number: int) -> tuple[str, Any]:
    kinds = [rng.choice(["append", "r"]) for _ in range(rng.randint(1, 3))]
    return "txn", [
        [kind, rng.choice("ab"), 10 * number + n if kind == "append" else None]
        for n, kind in enumerate(kinds)
    ]


def set_ask(rng: random.Random, number: int) -> tuple[str, Any]:
    return ("add", f"s/{number}") if rng.random() < 0.5 else ("read", "s/")


def counter_ask(rng: random.Random, number: int) -> tuple[str, Any]:
    del number
    return ("add", ["c", 1]) if rng.random() < 0.5 else ("read", ["c", None])


def register_judge(operations: Sequence[Operation]) -> Verdict:
    """As a run judges: where the witness had to guess, the search has the last word."""
    verdict = check_revisions(operations, begins_at=1)
    model = MODELS["cas-register"](Semantics.PORCUPINE, None)
    search = check_linearizability(as_register(operations), model)
    assert (verdict.kind, search.kind) != (VerdictKind.VALID, VerdictKind.INVALID), "two checkers disagree"
    return search if verdict.kind is VerdictKind.UNKNOWN else verdict


def txn_judge(operations: Sequence[Operation]) -> Verdict:
    verdict = check_transactions(operations, begins_at=1)
    model = MODELS["multi-register"](Semantics.PORCUPINE, None)
    search = check_linearizability(as_multi_register(operations), model)
    assert (verdict.kind, search.kind) != (VerdictKind.VALID, VerdictKind.INVALID), "two checkers disagree"
    return verdict


class Kind(NamedTuple):
    """An object: where it begins, what it does, what is asked of it, and who judges."""

    initial: State
    step: Step
    ask: Callable[[random.Random, int], tuple[str, Any]]
    judge: Callable[[Sequence[Operation]], Verdict]


KINDS = {
    "register": Kind((1, {}), register_step, register_ask, register_judge),
    "txn": Kind((1, {}), txn_step, txn_ask, txn_judge),
    "append": Kind({}, append_step, append_ask, check_list_append),
    "set": Kind((), set_step, set_ask, lambda operations: check_set(operations, {})),
    "counter": Kind(0, counter_step, counter_ask, lambda operations: check_counter(operations, {})),
}


def record(kind: Kind, rng: random.Random, count: int) -> list[Event]:
    """Events of a correct object; one completion in ten is lost, and of those half took effect."""
    state = kind.initial
    events: list[Event] = []
    open_now: dict[int, tuple[str, Any, Any]] = {}
    process_of = list(range(CLIENTS))
    started = 0
    while started < count or open_now:
        slot = rng.randrange(CLIENTS)
        line, process = len(events) + 1, process_of[slot]
        if slot not in open_now:
            if started < count:
                started += 1
                f, asked = kind.ask(rng, started)
                events.append(Event(line, process, "invoke", f, asked))
                open_now[slot] = (f, asked, None)
            continue
        f, asked, reply = open_now[slot]
        if reply is None:
            after, answer = kind.step(state, f, asked)
            lost = rng.random() < 0.1
            if not lost or rng.random() < 0.5:
                state = after
            open_now[slot] = (f, asked, "lost" if lost else answer)
            continue
        events.append(
            Event(line, process, "info" if reply == "lost" else "ok", f, None if reply == "lost" else reply)
        )
        del open_now[slot]
        if reply == "lost":
            process_of[slot] += CLIENTS
    return events


def explained(kind: Kind, operations: Sequence[Operation]) -> bool:
    """Whether some order, of all that completed and any of the unknown, gives every answer."""
    possible = [operation for operation in operations if operation.outcome is not Outcome.FAIL]

    def search(state: State, left: list[Operation]) -> bool:
        must = [operation for operation in left if operation.outcome is Outcome.OK]
        if not must:
            return True
        first_return = min(operation.ret or 0 for operation in must)
        for operation in left:
            if operation.call > first_return:
                continue
            after, reply = kind.step(state, operation.f, operation.invoked)
            if operation.outcome is Outcome.OK and reply != operation.completed:
                continue
            if search(after, [other for other in left if other is not operation]):
                return True
        return False

    return search(kind.initial, possible)


def _shape(events: Sequence[Event], position: int) -> Any:
    """What is alike among operations whose answers can be exchanged without looking absurd."""
    end = events[position]
    begun = max(m for m in range(position) if events[m].process == end.process)
    invoked = events[begun].value
    return end.f, invoked[0] if end.f in ("get", "put", "delete", "cas") else invoked


def edit(rng: random.Random, events: list[Event]) -> list[Event]:
    """One lie: answers swapped or copied, a write denied or dropped, an unknown turned into a success, a
    return moved before a call."""
    edited = list(events)
    done = [n for n, event in enumerate(events) if event.type == "ok"]
    unknown = [n for n, event in enumerate(events) if event.type == "info"]
    choice, n = rng.randrange(6), rng.choice(done)
    alike = [m for m in done if m != n and _shape(events, m) == _shape(events, n)]
    if choice == 0 and alike:
        m = rng.choice(alike)
        edited[n], edited[m] = (
            events[n]._replace(value=events[m].value),
            events[m]._replace(value=events[n].value),
        )
    elif choice == 1 and alike:
        edited[n] = events[n]._replace(value=events[rng.choice(alike)].value)
    elif choice == 2:
        edited[n] = events[n]._replace(type="fail")
    elif choice == 3:
        begun = max(m for m in range(n) if events[m].process == events[n].process)
        edited = [event for m, event in enumerate(events) if m not in (n, begun)]
    elif choice == 4 and unknown:
        n = rng.choice(unknown)
        alike = [m for m in done if _shape(events, m) == _shape(events, n)]
        if alike:
            edited[n] = events[n]._replace(type="ok", value=events[rng.choice(alike)].value)
    else:
        begun = max(m for m in range(n) if events[m].process == events[n].process)
        edited.insert(rng.randint(begun + 1, n), edited.pop(n))
    return edited


@pytest.mark.parametrize("name", KINDS)
def test_no_false_alarm(name: str) -> None:
    kind = KINDS[name]
    for seed in range(VALID_HISTORIES):
        verdict = kind.judge(pair_events(record(kind, random.Random(seed), 20)))
        assert verdict.kind is VerdictKind.VALID, f"seed {seed}: {verdict.explanation}"


@pytest.mark.parametrize("name", KINDS)
def test_harmful_edits_are_flagged(name: str) -> None:
    kind = KINDS[name]
    harmful, missed, false_alarms = 0, [], []
    for seed in range(EDITS):
        rng = random.Random(seed)
        events = record(kind, rng, OPERATIONS)
        if not any(event.type == "ok" for event in events):
            continue
        operations = pair_events(edit(rng, events))
        flagged = kind.judge(operations).kind is VerdictKind.INVALID
        if explained(kind, operations):
            if flagged:
                false_alarms.append(seed)
            continue
        harmful += 1
        if not flagged:
            missed.append(seed)
    print(f"{name}: {harmful} of {EDITS} edits do harm, {len(missed)} of them missed")
    assert harmful >= EDITS // 8, "too few edits do harm: the test would show nothing"
    assert len(missed) <= (1 - FLAGGED_MIN) * harmful, f"missed: {missed}"
    assert not false_alarms, f"valid, yet flagged: {false_alarms}"

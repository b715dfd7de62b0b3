"""Sessions, mutexes and replicas: no false alarm in valid histories, and edits that do harm are flagged."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from kvstore.verify import MODELS, Event, Operation, Outcome, Semantics, VerdictKind, check_linearizability
from kvstore.verify.replica_checker import check_replicas
from kvstore.verify.session_checker import check_sessions
from tests.verify.effects import (
    EDITS,
    OPERATIONS,
    VALID_HISTORIES,
    Effect,
    Tally,
    Tape,
    begun,
    dropped,
    effect_of,
    ended,
    explained,
    moved,
    paired,
    repeated,
)

CLIENTS = 3

# --- sessions ---

Finals = dict[str, int]


class NaiveSessions:
    """Counters with a table of answers: a number seen before is answered from the table."""

    def __init__(self) -> None:
        self.counters: Finals = {}
        self.answers: dict[tuple[str, int], int] = {}

    def apply(self, asked: Sequence[Any]) -> int:
        session, number, amount = asked
        if (session, number) not in self.answers:
            self.counters[session] = self.counters.get(session, 0) + amount
            self.answers[session, number] = self.counters[session]
        return self.answers[session, number]


def record_sessions(rng: random.Random, count: int) -> tuple[list[Event], Finals]:
    """Requests that are sent again, elsewhere, after an unknown outcome; some arrive long after that."""
    tape, store = Tape(rng), NaiveSessions()
    process_of = list(range(CLIENTS))
    open_now: dict[int, tuple[list[Any], str | int | None]] = {}
    again: list[list[Any]] = []
    late: list[list[Any]] = []
    started = 0
    while started < count or open_now:
        slot = rng.randrange(CLIENTS)
        if late and rng.random() < 0.2:
            store.apply(late.pop(rng.randrange(len(late))))
        if slot not in open_now:
            if started < count:
                started += 1
                fresh = [rng.choice("ab"), started, rng.randint(1, 3)]
                asked = again.pop() if again and rng.random() < 0.7 else fresh
                tape.add(process_of[slot], "invoke", "apply", asked)
                open_now[slot] = (asked, None)
            continue
        asked, reply = open_now[slot]
        if reply is None:
            draw = rng.random()
            if draw < 0.1:
                late.append(asked)
            open_now[slot] = (asked, "info" if draw < 0.2 else "fail" if draw < 0.25 else store.apply(asked))
            continue
        lost = reply == "info" or (reply != "fail" and rng.random() < 0.2)
        kind = "info" if lost else "fail" if reply == "fail" else "ok"
        tape.add(process_of[slot], kind, "apply", reply if kind == "ok" else None)
        del open_now[slot]
        if kind != "ok":
            again.append(asked)
        if lost:
            process_of[slot] += CLIENTS
    return tape.events, store.counters


def edit_sessions(rng: random.Random, events: list[Event], finals: Finals) -> tuple[list[Event], Finals]:
    """One lie about answers, outcomes, times, numbers, amounts or the end."""
    edited, done, choice = list(events), ended(events), rng.randrange(9)
    if not done:
        return edited, finals
    n = rng.choice(done)
    asked = events[begun(events, n)].value
    if choice == 0:
        edited[n] = events[n]._replace(value=events[n].value + rng.choice([-2, -1, 1, 2, asked[2]]))
    elif choice == 1:
        m = rng.choice(done)
        edited[n], edited[m] = (
            events[n]._replace(value=events[m].value),
            events[m]._replace(value=events[n].value),
        )
    elif choice == 2:
        edited[n] = events[n]._replace(type=rng.choice(["fail", "info"]), value=None)
    elif choice == 3 and (lost := ended(events, "info") + ended(events, "fail")):
        m = rng.choice(lost)
        edited[m] = events[m]._replace(type="ok", value=rng.choice([events[n].value, rng.randint(1, 8)]))
    elif choice == 4:
        session = rng.choice(sorted(finals))
        return edited, {**finals, session: finals[session] + rng.choice([-2, -1, 1, 2])}
    elif choice == 5:
        m = begun(events, n)
        other = events[begun(events, rng.choice(done))].value
        edited[m] = events[m]._replace(
            value=rng.choice([[asked[0], other[1], asked[2]], [*asked[:2], asked[2] + 1], list(other)])
        )
    elif choice == 6:
        return dropped(events, n), finals
    elif choice == 7:
        return repeated(rng, events, n), finals
    else:
        return moved(rng, events), finals
    return edited, finals


def sessions_explained(operations: Sequence[Operation], finals: Mapping[str, int]) -> bool:
    """Whether some order applies each request at most once, those that were answered once."""
    amounts = {}
    for operation in operations:
        session, number, amount = operation.invoked
        if amounts.setdefault((session, number), amount) != amount:
            return False
    effects = [
        effect_of(operation, lambda state, at, op=operation: _apply_session(state, op))
        for operation in operations
        if operation.outcome is not Outcome.FAIL
    ]
    sessions = {operation.invoked[0] for operation in operations} | set(finals)
    return explained(
        (),
        effects,
        lambda state: all(
            sum(amounts[request] for request, _ in state if request[0] == one) == finals.get(one, 0)
            for one in sessions
        ),
    )


def _apply_session(state: tuple[Any, ...], operation: Operation) -> tuple[Any, ...] | None:
    """The state is what was applied, in order: ((session, number), counter after it)."""
    session, number, amount = operation.invoked
    answer = dict(state).get((session, number))
    after = state
    if answer is None:
        answer = amount + max([value for (other, _), value in state if other == session], default=0)
        after = (*state, ((session, number), answer))
    return None if operation.outcome is Outcome.OK and operation.completed != answer else after


def test_valid_sessions() -> None:
    for seed in range(VALID_HISTORIES):
        events, finals = record_sessions(random.Random(seed), 20)
        verdict = check_sessions(paired(events), finals)
        assert verdict.kind is VerdictKind.VALID, f"seed {seed}: {verdict.explanation}"


def test_edited_sessions() -> None:
    tally = Tally("sessions")
    for seed in range(EDITS):
        rng = random.Random(seed)
        events, finals = edit_sessions(rng, *record_sessions(rng, OPERATIONS - 1))
        operations = paired(events)
        verdict = check_sessions(operations, finals)
        tally.note(seed, explained=sessions_explained(operations, finals), verdict=verdict)
    tally.judge()


# --- mutexes ---


def record_mutex(rng: random.Random, count: int) -> list[Event]:
    """Clients that take a lock, hold it, and give it back; some answers are lost, some attempts refused."""
    tape = Tape(rng)
    process_of = list(range(CLIENTS))
    open_now: dict[int, tuple[str, str | None]] = {}
    holds: dict[int, bool] = {}
    taken, started, idle = False, 0, 0
    while (started < count or open_now) and idle < 100:
        slot = rng.randrange(CLIENTS)
        idle += 1
        if slot not in open_now:
            if started < count:
                f = "release" if holds.get(slot) else "acquire"
                tape.add(process_of[slot], "invoke", f, None)
                started, idle = started + 1, 0
                open_now[slot] = (f, None)
            continue
        f, reply = open_now[slot]
        if reply is None:
            draw = rng.random()
            if draw < 0.08:
                open_now[slot] = (f, "fail" if f == "acquire" else "info")
            elif f == "release" or not taken:
                taken = f == "acquire"
                open_now[slot] = (f, "info" if draw < 0.15 else "ok")
            continue
        idle = 0
        tape.add(process_of[slot], reply, f, None)
        del open_now[slot]
        holds[slot] = reply == "ok" and f == "acquire"
        if reply == "info":
            process_of[slot] += CLIENTS
    return tape.events


def edit_mutex(rng: random.Random, events: list[Event]) -> list[Event]:
    """One lie about an outcome, a time, or an operation as a whole."""
    edited, done, choice = list(events), ended(events), rng.randrange(5)
    if not done:
        return edited
    n = rng.choice(done)
    if choice == 0:
        edited[n] = events[n]._replace(type="fail")
    elif choice == 1 and (lost := ended(events, "info") + ended(events, "fail")):
        m = rng.choice(lost)
        edited[m] = events[m]._replace(type="ok")
    elif choice == 2:
        return dropped(events, n)
    elif choice == 3:
        return repeated(rng, events, n)
    else:
        return moved(rng, events)
    return edited


def mutex_explained(operations: Sequence[Operation]) -> bool:
    def act(operation: Operation) -> Effect:
        takes = operation.f == "acquire"
        return effect_of(operation, lambda held, at: takes if held is not takes else None)

    effects = [act(operation) for operation in operations if operation.outcome is not Outcome.FAIL]
    return explained(False, effects, lambda held: True)


def test_valid_mutexes() -> None:
    model = MODELS["mutex"](Semantics.PORCUPINE, None)
    for seed in range(VALID_HISTORIES):
        verdict = check_linearizability(paired(record_mutex(random.Random(seed), 20)), model)
        assert verdict.kind is VerdictKind.VALID, f"seed {seed}: {verdict.explanation}"


def test_edited_mutexes() -> None:
    tally, model = Tally("mutexes"), MODELS["mutex"](Semantics.PORCUPINE, None)
    for seed in range(EDITS):
        rng = random.Random(seed)
        operations = paired(edit_mutex(rng, record_mutex(rng, OPERATIONS - 1)))
        verdict = check_linearizability(operations, model)
        tally.note(seed, explained=mutex_explained(operations), verdict=verdict)
    tally.judge()


# --- replicas ---

Contents = dict[str, dict[str, tuple[Any, ...]]]


def record_replicas(rng: random.Random) -> Contents:
    """What three or five members hold that have applied the same random writes."""
    held: dict[str, tuple[Any, ...]] = {}
    for revision in range(2, 2 + rng.randint(0, OPERATIONS)):
        key = rng.choice("abcd")
        if rng.random() < 0.2:
            held.pop(key, None)
        else:
            _, _, create, version, _ = held.get(key, ("", 0, revision, 0, 0))
            held[key] = (str(rng.randrange(3)), revision, create, version + 1, rng.choice([0, 0, 7]))
    members = [f"node{number}" for number in range(1, rng.choice([3, 5]) + 1)]
    return {name: dict(rng.sample(sorted(held.items()), len(held))) for name in members}


def edit_replicas(rng: random.Random, contents: Contents) -> Contents:
    """One lie in one member, or the same in all, or a member less."""
    edited = {name: dict(held) for name, held in contents.items()}
    one, choice = rng.choice(sorted(edited)), rng.randrange(6)
    names = sorted(edited) if rng.random() < 0.2 else [one]
    keys, field, by = sorted(edited[one]), rng.randrange(5), rng.choice([-1, 0, 1])
    if choice == 0:
        del edited[one]
    elif choice == 1:
        key = rng.choice("abcdef")
        for name in names:
            edited[name][key] = ("new", 9, 9, 1, 0)
    elif keys and choice == 2:
        key = rng.choice(keys)
        for name in names:
            del edited[name][key]
    elif keys and choice == 3:
        key, other = rng.choice(keys), rng.choice(keys)
        for name in names:
            edited[name] |= {key: edited[name][other], other: edited[name][key]}
    elif keys:
        key = rng.choice(keys)
        for name in names:
            row = list(edited[name][key])
            row[field] = row[field] + by if field else row[field] + "x" * abs(by)
            edited[name][key] = tuple(row)
    return edited


def test_valid_replicas() -> None:
    for seed in range(VALID_HISTORIES):
        verdict = check_replicas(record_replicas(random.Random(seed)))
        assert verdict.kind is VerdictKind.VALID, f"seed {seed}: {verdict.explanation}"


def test_edited_replicas() -> None:
    tally = Tally("replicas")
    for seed in range(EDITS):
        rng = random.Random(seed)
        contents = edit_replicas(rng, record_replicas(rng))
        alike = len({tuple(sorted(held.items())) for held in contents.values()}) == 1
        tally.note(seed, explained=alike, verdict=check_replicas(contents))
    tally.judge()

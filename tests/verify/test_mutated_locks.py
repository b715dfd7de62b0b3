"""Locks with fencing: no false alarm in valid histories; edits that no order of holders explains are flagged.

A history of locks is one of a mutex too, and both checkers must agree.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from kvstore.verify import (
    MODELS,
    Event,
    Operation,
    Outcome,
    Semantics,
    Verdict,
    VerdictKind,
    check_linearizability,
)
from kvstore.verify.lock_checker import check_locks
from tests.verify.effects import (
    EDITS,
    NEVER,
    NS,
    OPERATIONS,
    TTL_S,
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


class NaiveLocks:
    """Queues of leases that wait for names, leases that end, one revision for all, the guarded numbers."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self.revision = 1
        self.granted = 100
        self.deadlines: dict[int, int] = {}
        self.queues: dict[str, list[int]] = {"a": [], "b": []}
        """Leases by name; the first holds it."""
        self.tokens: dict[tuple[str, int], int] = {}
        """(name, lease) -> the token, once it holds."""
        self.numbers: dict[str, tuple[int, int]] = {}
        """Name -> version, highest token seen."""

    def keep_alive(self, lease: int) -> None:
        if lease in self.deadlines:
            self.deadlines[lease] = self._tape.now + TTL_S * NS + self._tape.rng.randint(0, NS)

    def pass_time(self) -> None:
        for lease in [one for one, deadline in self.deadlines.items() if deadline < self._tape.now]:
            self.end(lease)

    def end(self, lease: int) -> int:
        del self.deadlines[lease]
        names = [name for name, queue in self.queues.items() if lease in queue]
        self.revision += bool(names)
        told = self.revision
        for name in names:
            self.leave(name, lease)
        return told

    def leave(self, name: str, lease: int) -> None:
        held = self.queues[name][0] == lease
        self.queues[name].remove(lease)
        if held:
            self._grant(name)

    def _grant(self, name: str) -> None:
        if self.queues[name]:
            self.tokens[name, self.queues[name][0]] = self.revision

    def enqueue(self, name: str, lease: int) -> None:
        self.revision += 1
        self.queues[name].append(lease)
        if len(self.queues[name]) == 1:
            self._grant(name)

    def give_back(self, name: str, lease: int) -> int:
        if lease in self.queues[name]:
            self.revision += 1
            told = self.revision
            self.leave(name, lease)
            return told
        return self.revision

    def read(self, name: str, token: int) -> int:
        version, top = self.numbers.get(name, (0, 0))
        self.numbers[name] = (version, max(top, token))
        return version

    def write(self, name: str, token: int) -> dict[str, Any]:
        version, top = self.numbers.get(name, (0, 0))
        if token < top:
            return {"version": version, "before": version, "accepted": False}
        self.numbers[name] = (version + 1, token)
        return {"version": version + 1, "before": version, "accepted": True}


class Client:
    """One client: a lease, some locks taken one after another and released, and the lease revoked."""

    def __init__(self, tape: Tape, store: NaiveLocks, process: int) -> None:
        self._tape, self._store, self._rng = tape, store, tape.rng
        self.process = process
        self._lease: int | None = None
        self._held: tuple[str, int] | None = None
        self._updated = False
        self._keeps_alive = True
        self.open: tuple[str, Any] | None = None
        self._stage = 0
        """How far the open operation has come."""
        self._reply: Any = None

    def step(self, may_begin: bool) -> bool:
        """One step; whether it began an operation."""
        if self._keeps_alive and self._lease is not None:
            self._store.keep_alive(self._lease)
        if self.open is None:
            if may_begin:
                self._begin()
            return may_begin
        f, asked = self.open
        if self._reply is None:
            self._advance(f, asked)
        else:
            self._finish(f, asked)
        return False

    def _begin(self) -> None:
        rng = self._rng
        if self._lease is None:
            self.open = ("grant", TTL_S)
        elif self._held is not None and not self._updated and rng.random() < 0.6:
            self.open = ("update", {"name": self._held[0], "token": self._held[1]})
        elif self._held is not None and rng.random() < 0.9:
            self.open = ("release", {"name": self._held[0], "token": self._held[1]})
        elif self._held is not None or rng.random() < 0.3:
            self.open = ("revoke", self._lease)
        else:
            self._keeps_alive = rng.random() < 0.8
            self.open = ("acquire", {"name": rng.choice("aab"), "lease": self._lease, "doomed": False})
        self._stage, self._reply = 0, None
        self._tape.add(self.process, "invoke", *self.open)

    def _advance(self, f: str, asked: Any) -> None:
        store, lost = self._store, self._rng.random() < 0.04
        if lost and self._rng.random() < 0.5:
            self._reply = "info"
            return
        if f == "grant":
            store.granted += 1
            store.deadlines[store.granted] = 0
            store.keep_alive(store.granted)
            self._reply = {"lease": store.granted, "ttl": TTL_S}
        elif f == "acquire":
            self._wait(asked["name"], asked["lease"], asked)
        elif f == "update":
            self._update(asked["name"], asked["token"])
        elif f == "release":
            assert self._lease is not None
            self._reply = {**asked, "revision": store.give_back(asked["name"], self._lease)}
        else:
            self._reply = "fail"
            if asked in store.deadlines:
                self._reply = {"lease": asked, "revision": store.end(asked)}
        if lost and self._reply is not None:
            self._reply = "info"

    def _wait(self, name: str, lease: int, asked: Any) -> None:
        store = self._store
        if lease not in store.deadlines:
            self._reply = "fail"
        elif self._stage == 0:
            store.enqueue(name, lease)
            self._stage = 1
        elif store.queues[name][:1] == [lease]:
            token = store.tokens[name, lease]
            revoked = store.end(lease) if self._rng.random() < 0.06 else None
            self._reply = {**asked, "token": token, "revoked": revoked}

    def _update(self, name: str, token: int) -> None:
        if self._stage == 0:
            self._stage, self._base = 1, self._store.read(name, token)
        elif self._rng.random() < 0.5:
            done = self._store.write(name, token)
            self._reply = {"name": name, "token": token, "base": self._base, **done}

    def _finish(self, f: str, asked: Any) -> None:
        ok = not isinstance(self._reply, str)
        self._tape.add(self.process, "ok" if ok else self._reply, f, self._reply if ok else None)
        self.open = None
        if self._reply == "info":
            self.process += CLIENTS
        if f == "grant" and ok:
            self._lease = self._reply["lease"]
        elif f == "acquire":
            lost = not ok or self._reply["revoked"] is not None
            self._held = None if lost else (asked["name"], self._reply["token"])
            self._updated = False
            self._lease = None if lost else self._lease
        elif f == "update":
            self._updated = True
        elif f == "release":
            self._held = None
            self._lease = self._lease if ok else None
        elif f == "revoke":
            self._lease = self._held = None


def record_locks(rng: random.Random, count: int) -> list[Event]:
    """Clients that take locks; some stop the keep-alives and continue as if they held the locks they lost."""
    tape = Tape(rng, (NS // 100, NS // 4))
    store = NaiveLocks(tape)
    clients = [Client(tape, store, number) for number in range(CLIENTS)]
    started, idle = 0, 0
    while (started < count or any(client.open for client in clients)) and idle < 150:
        tape.wait(0, 3 * NS if rng.random() < 0.03 else 0)
        store.pass_time()
        began = rng.choice(clients).step(started < count)
        started += began
        idle = 0 if began else idle + 1
    return tape.events


def edit_locks(rng: random.Random, events: list[Event]) -> list[Event]:
    """One lie about an answer, an outcome, a time, or an operation as a whole."""
    edited, choice = list(events), rng.randrange(9)
    done = ended(events)
    if not done:
        return edited
    n = rng.choice(done)
    if choice < 4:
        field = rng.choice(sorted(events[n].value))
        value = dict(events[n].value)
        if field in ("token", "revision", "base", "before", "version", "ttl"):
            value[field] = max(0, value[field] + rng.choice([-2, -1, 1, 2]))
        elif field == "accepted":
            value[field] = not value[field]
        elif field in ("name", "lease"):
            others = [events[m].value[field] for m in done if field in events[m].value]
            value[field] = rng.choice(others)
        elif field == "revoked":
            value[field] = value["token"] + rng.choice([-1, 0, 1])
        edited[n] = events[n]._replace(value=value)
        _echo(edited, begun(events, n), value)
    elif choice == 4:
        edited[n] = events[n]._replace(type=rng.choice(["fail", "info"]), value=None)
    elif choice == 5 and (lost := ended(events, "info") + ended(events, "fail")):
        m = rng.choice(lost)
        answers = [events[k].value for k in done if events[k].f == events[m].f]
        if answers:
            edited[m] = events[m]._replace(type="ok", value=rng.choice(answers))
            _echo(edited, begun(events, m), edited[m].value)
    elif choice == 6:
        return dropped(events, n)
    elif choice == 7:
        return repeated(rng, events, n)
    else:
        return moved(rng, events)
    return edited


def _echo(events: list[Event], begin: int, reply: dict[str, Any]) -> None:
    """What was asked for, as the answer has it."""
    asked = events[begin].value
    if isinstance(asked, dict):
        events[begin] = events[begin]._replace(
            value={
                key: value
                if key == "doomed" or key not in reply or (key == "token" and events[begin].f == "acquire")
                else reply[key]
                for key, value in asked.items()
            }
        )
    elif events[begin].f == "revoke":
        events[begin] = events[begin]._replace(value=reply["lease"])


# --- the judge: any order of grants, ends of leases, and requests to the resource ---


class State(NamedTuple):
    """What the judge believes at some moment."""

    least: int
    """The lowest revision the store can have."""
    leases: tuple[tuple[int, int], ...]
    """Living leases, with the time before which they cannot end by themselves."""
    gone: frozenset[int]
    holders: tuple[tuple[str, int, int], ...]
    """Name, token, lease."""
    taken: frozenset[tuple[str, int]]
    """Every (name, token) granted so far."""
    numbers: tuple[tuple[str, int, int], ...]
    """Name, version, highest token seen."""
    reading: tuple[tuple[int, int], ...]
    """Updates under way (by their call), with what they read."""


def locks_explained(operations: Sequence[Operation]) -> bool:
    possible = [op for op in operations if op.outcome is not Outcome.FAIL]
    done = [op for op in possible if op.outcome is Outcome.OK]
    told = [(_told(op), op) for op in done if op.f in ("acquire", "release", "revoke")]
    told += [(op.completed["revoked"], op) for op in done if op.f == "acquire" and op.completed["revoked"]]
    for op in done:
        if op.f == "acquire" and any(
            revision >= op.completed["token"] and (other.returned_ns or 0) < (op.called_ns or 0)
            for revision, other in told
        ):
            return False  # its own key was put after that
    granted = {op.completed["lease"] for op in done if op.f == "grant"}
    known = {op.completed["lease"] for op in done if op.f == "acquire"}
    known |= {op.invoked for op in possible if op.f == "revoke"}
    effects: list[Effect] = []
    for op in possible:
        effects += _effects(op)
    for lease in granted | known:
        effects.append(
            Effect(
                lambda state, lease=lease: dict(state.leases).get(lease, 0),
                NEVER,
                False,
                lambda state, at, lease=lease: _ended(state, lease, None),
            )
        )
    first = tuple((lease, 0) for lease in sorted(known - granted))
    empty: frozenset[Any] = frozenset()
    return explained(State(0, first, empty, (), empty, (), ()), effects, lambda state: True)


def _told(op: Operation) -> int:
    return int(op.completed["token" if op.f == "acquire" else "revision"])


def _effects(op: Operation) -> list[Effect]:
    done = op.outcome is Outcome.OK
    if op.f == "grant":
        return [effect_of(op, lambda state, at: _granted(state, op))] if done else []
    if op.f == "acquire":
        if not done:
            return []
        made = [effect_of(op, lambda state, at: _acquired(state, op))]
        if op.completed["revoked"] is not None:
            lease, revoked = op.completed["lease"], op.completed["revoked"]
            made.append(effect_of(op, lambda state, at: _ended(state, lease, revoked)))
        return made
    if op.f == "release":
        return [effect_of(op, lambda state, at: _released(state, op))]
    if op.f == "revoke":
        revision = op.completed["revision"] if done else None
        return [effect_of(op, lambda state, at: _ended(state, op.invoked, revision))]
    return [
        effect_of(op, lambda state, at: _read(state, op)),
        effect_of(op, lambda state, at: _written(state, op)),
    ]


def _granted(state: State, op: Operation) -> State | None:
    lease = op.completed["lease"]
    if lease in dict(state.leases) or lease in state.gone:
        return None
    sure = (op.called_ns or 0) + op.completed["ttl"] * NS
    return state._replace(leases=tuple(sorted((*state.leases, (lease, sure)))))


def _acquired(state: State, op: Operation) -> State | None:
    name, token, lease = op.completed["name"], op.completed["token"], op.completed["lease"]
    earlier = [one for other, one in state.taken if other == name]
    if lease not in dict(state.leases) or name in {holder[0] for holder in state.holders}:
        return None
    if token < state.least or token <= max(earlier, default=0):
        return None
    holders = tuple(sorted((*state.holders, (name, token, lease))))
    return state._replace(least=token, holders=holders, taken=state.taken | {(name, token)})


def _released(state: State, op: Operation) -> State | None:
    name, token = op.invoked["name"], op.invoked["token"]
    left = tuple(holder for holder in state.holders if holder[:2] != (name, token))
    least = state.least + (len(left) < len(state.holders))
    if op.outcome is Outcome.OK:
        told = op.completed["revision"]
        if told < least or told <= token or (name, token) not in state.taken:
            return None
        least = told
    return state._replace(least=least, holders=left)


def _ended(state: State, lease: int, told: int | None) -> State | None:
    if lease not in dict(state.leases):
        return None
    left = tuple(holder for holder in state.holders if holder[2] != lease)
    least = state.least + (len(left) < len(state.holders))
    had = [holder[1] for holder in state.holders if holder[2] == lease]
    if told is not None and (told < least or told <= max(had, default=-1)):
        return None
    leases = tuple(one for one in state.leases if one[0] != lease)
    return state._replace(
        least=least if told is None else told, holders=left, leases=leases, gone=state.gone | {lease}
    )


def _read(state: State, op: Operation) -> State | None:
    name, token = op.invoked["name"], op.invoked["token"]
    version, top = {one: (v, t) for one, v, t in state.numbers}.get(name, (0, 0))
    if (name, token) not in state.taken or (op.outcome is Outcome.OK and op.completed["base"] != version):
        return None
    rest = tuple(one for one in state.numbers if one[0] != name)
    return state._replace(
        numbers=tuple(sorted((*rest, (name, version, max(top, token))))),
        reading=tuple(sorted((*state.reading, (op.call, version)))),
    )


def _written(state: State, op: Operation) -> State | None:
    name, token = op.invoked["name"], op.invoked["token"]
    version, top = {one: (v, t) for one, v, t in state.numbers}.get(name, (0, 0))
    base = dict(state.reading).get(op.call)
    if base is None:
        return None
    accepted = token >= top
    reply = {"before": version, "version": version + accepted, "accepted": accepted}
    if op.outcome is Outcome.OK and {key: op.completed[key] for key in reply} != reply:
        return None
    if accepted and base != version:
        return None  # the guarantee: with fencing no update is lost
    rest = tuple(one for one in state.numbers if one[0] != name)
    return state._replace(numbers=tuple(sorted((*rest, (name, version + accepted, max(top, token))))))


def as_mutex(operations: Sequence[Operation]) -> list[Operation]:
    """The same in the words of a mutex: a lock whose lease may have ended by itself may be free any time."""
    revoked = {op.invoked for op in operations if op.f == "revoke" and op.outcome is Outcome.OK}
    released = {(op.invoked["name"], op.invoked["token"]): op for op in operations if op.f == "release"}
    words = []
    for op in operations:
        if op.f != "acquire" or op.outcome is not Outcome.OK or op.completed["revoked"] is not None:
            continue
        name, lease = op.completed["name"], op.completed["lease"]
        words.append(replace(op, key=name))
        release = released.get((name, op.completed["token"]))
        if release is not None and release.outcome is Outcome.OK and lease in revoked:
            words.append(replace(release, key=name))
        else:
            words.append(replace(op, f="release", key=name, outcome=Outcome.INFO, ret=None))
    return words


def judged(operations: Sequence[Operation]) -> Verdict:
    verdict = check_locks(operations, fenced=True)
    mutex = check_linearizability(as_mutex(operations), MODELS["mutex"](Semantics.PORCUPINE, None))
    assert (verdict.kind, mutex.kind) != (VerdictKind.VALID, VerdictKind.INVALID), "two checkers disagree"
    return verdict


def test_valid_locks() -> None:
    expired = 0
    for seed in range(VALID_HISTORIES):
        operations = paired(record_locks(random.Random(seed), 16))
        verdict = judged(operations)
        assert verdict.kind is VerdictKind.VALID, f"seed {seed}: {verdict.explanation}"
        expired += any(
            op.f == "update" and op.completed and not op.completed["accepted"] for op in operations
        )
    print(f"{expired} of {VALID_HISTORIES} histories have an update that the fence refused")
    assert expired, "no lock was ever lost while its client believed in it"


def test_edited_locks() -> None:
    tally = Tally("locks")
    for seed in range(EDITS):
        rng = random.Random(seed)
        operations = paired(edit_locks(rng, record_locks(rng, OPERATIONS - 1)))
        tally.note(seed, explained=locks_explained(operations), verdict=judged(operations))
    tally.judge()

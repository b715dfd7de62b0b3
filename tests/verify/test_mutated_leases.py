"""Leases: no false alarm in valid histories; edits that no moment of a lease's end explains are flagged."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from kvstore.verify import Event, Operation, Outcome, VerdictKind
from kvstore.verify.lease_checker import check_leases
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
    dropped,
    effect_of,
    ended,
    explained,
    moved,
    paired,
    repeated,
)

CLIENTS = 3


class NaiveLeases:
    """Leases with deadlines, which end some while after; keys that go with them; one revision for all."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self.revision = 1
        self.granted = 100
        self.deadlines: dict[int, int] = {}
        """Living lease -> when it expires, unless kept alive."""
        self.keys: dict[str, int] = {}

    def pass_time(self) -> None:
        for lease in [one for one, deadline in self.deadlines.items() if deadline < self._tape.now]:
            self.end(lease)

    def end(self, lease: int) -> None:
        del self.deadlines[lease]
        for key in [one for one, attached in self.keys.items() if attached == lease]:
            del self.keys[key]
            self.revision += 1

    def keep_alive(self, lease: int) -> int:
        if lease not in self.deadlines:
            return 0
        self.deadlines[lease] = self._tape.now + TTL_S * NS + self._tape.rng.randint(0, NS)
        return TTL_S

    def perform(self, f: str, asked: Any) -> Any:
        """The answer, or None when it is refused. Now and then somebody else writes."""
        self.revision += self._tape.rng.random() < 0.2
        if f == "grant":
            self.granted += 1
            self.deadlines[self.granted] = 0
            return {"lease": self.granted, "ttl": self.keep_alive(self.granted)}
        lease = asked if f == "revoke" else asked["lease"]
        if f == "keep_alive":
            return {"lease": lease, "ttl": self.keep_alive(lease)}
        if f == "observe":
            return {**asked, "revision": self.revision, "present": asked["key"] in self.keys}
        if lease not in self.deadlines:
            return None
        if f == "attach":
            self.keys[asked["key"]] = lease
            self.revision += 1
            return {**asked, "revision": self.revision}
        self.end(lease)
        return {"lease": lease, "revision": self.revision}


def ask(rng: random.Random, leases: Sequence[int], attached: set[int]) -> tuple[str, Any]:
    """The next operation of a client that knows these leases."""
    if not leases or (len(leases) < 3 and rng.random() < 0.1):
        return "grant", TTL_S
    lease = rng.choice(leases)
    key = {"lease": lease, "key": f"k{lease}"}
    if lease not in attached:
        attached.add(lease)
        return "attach", key
    f = rng.choice(["keep_alive", "keep_alive", "observe", "observe", "observe", "observe", "revoke"])
    return f, lease if f == "revoke" else key if f == "observe" else {"lease": lease}


def record_leases(rng: random.Random, count: int) -> list[Event]:
    """Clients that use each other's leases; one answer in ten is lost, and of those half took effect."""
    tape = Tape(rng, (NS // 100, NS // 4))
    store = NaiveLeases(tape)
    process_of = list(range(CLIENTS))
    open_now: dict[int, tuple[str, Any, Any]] = {}
    leases: list[int] = []
    attached: set[int] = set()
    started = 0
    while started < count or open_now:
        slot = rng.randrange(CLIENTS)
        tape.wait(0, NS if rng.random() < 0.1 else 0)
        store.pass_time()
        if slot not in open_now:
            waits = not leases and any(f == "grant" for f, _, _ in open_now.values())
            if started < count and not waits:
                started += 1
                f, asked = ask(rng, leases, attached)
                tape.add(process_of[slot], "invoke", f, asked)
                open_now[slot] = (f, asked, None)
            continue
        f, asked, reply = open_now[slot]
        if reply is None:
            lost = rng.random() < 0.1
            answer = None if lost and rng.random() < 0.5 else store.perform(f, asked)
            open_now[slot] = (f, asked, "lost" if lost else answer or "refused")
            continue
        kind = {"lost": "fail" if f == "observe" else "info", "refused": "fail"}.get(str(reply), "ok")
        tape.add(process_of[slot], kind, f, reply if kind == "ok" else None)
        del open_now[slot]
        if kind == "ok" and f == "grant":
            leases.append(reply["lease"])
        if kind == "info":
            process_of[slot] += CLIENTS
    return tape.events


def edit_leases(rng: random.Random, events: list[Event]) -> list[Event]:
    """One lie about an answer, an outcome, a time, or an operation as a whole."""
    edited, choice = list(events), rng.randrange(10)
    n = rng.choice([m for m in ended(events) if events[m].f != "grant"] or ended(events) or [0])
    value = events[n].value
    if not n:
        return edited
    if choice < 4:
        edited[n] = events[n]._replace(value=_lie(rng, events, value))
    elif choice == 4:
        edited[n] = events[n]._replace(type=rng.choice(["fail", "info"]), value=None)
    elif choice == 5 and (lost := ended(events, "info") + ended(events, "fail")):
        m = rng.choice(lost)
        answers = [events[k].value for k in ended(events, f=events[m].f)]
        if answers:
            edited[m] = events[m]._replace(type="ok", value=rng.choice(answers))
    elif choice == 6:
        return dropped(events, n)
    elif choice == 7:
        return repeated(rng, events, n)
    elif choice == 8:
        return moved(rng, events)
    else:
        late = rng.randint(1, 3 * NS)
        return [e if m < n else e._replace(time=(e.time or 0) + late) for m, e in enumerate(events)]
    return edited


def _lie(rng: random.Random, events: Sequence[Event], value: dict[str, Any]) -> dict[str, Any]:
    field = rng.choice([*sorted(value), *(one for one in ("present", "ttl") for _ in "123" if one in value)])
    if field == "present":
        return {**value, "present": not value["present"]}
    if field == "ttl":
        return {**value, "ttl": rng.choice([0, 1, 2, 3])}
    if field == "revision":
        return {**value, "revision": max(1, value["revision"] + rng.choice([-2, -1, 1, 2]))}
    others = [events[m].value["lease"] for m in ended(events) if events[m].f == "grant"]
    return {**value, "lease": rng.choice([*others, 7])} if field == "lease" else value


# --- the judge: any order of effects, with the end of each lease as an effect without a call ---


class Life(NamedTuple):
    """One lease in the judge's mind."""

    alive: bool
    attached: bool
    sure_ns: int
    """No end of its own before this."""


UNKNOWN_LEASE = Life(False, False, 0)

State = tuple[int, tuple[tuple[int, Life], ...]]
"""The least revision the store can have, and the leases there ever were."""


def leases_explained(operations: Sequence[Operation]) -> bool:
    possible = [op for op in operations if op.outcome is not Outcome.FAIL]
    granted = [op.completed["lease"] for op in possible if op.f == "grant" and op.completed]
    ttls = {op.completed["lease"]: op.completed["ttl"] for op in possible if op.f == "grant" and op.completed}
    lives = {lease for op in possible if (lease := _lease(op)) is not None}
    if len(set(granted)) < len(granted):
        return False
    effects = [
        effect_of(op, lambda state, at, op=op: _act(state, op, ttls))
        for op in possible
        if op.outcome is Outcome.OK or op.f in ("attach", "revoke")
    ]
    effects += [
        Effect(
            lambda state, lease=lease: dict(state[1]).get(lease, UNKNOWN_LEASE).sure_ns,
            NEVER,
            False,
            lambda state, at, lease=lease: _end(state, lease, None),
        )
        for lease in lives
    ]
    first = tuple((lease, Life(True, False, 0)) for lease in sorted(lives - set(granted)))
    return explained((0, first), effects, lambda state: True)


def _lease(op: Operation) -> int | None:
    value = op.completed if op.outcome is Outcome.OK else op.invoked
    if op.f == "grant" and op.outcome is not Outcome.OK:
        return None
    return value["lease"] if isinstance(value, dict) else value


def _with(state: State, revision: int, lease: int, life: Life) -> State:
    return revision, tuple(sorted({**dict(state[1]), lease: life}.items()))


def _end(state: State, lease: int, told: int | None) -> State | None:
    """The lease ends and takes its key along, at the revision told if one was."""
    least, lives = state
    life = dict(lives).get(lease, UNKNOWN_LEASE)
    least += life.attached
    if not life.alive or (told is not None and told < least):
        return None
    return _with(state, least if told is None else told, lease, Life(False, False, 0))


def _act(state: State, op: Operation, ttls: dict[int, int]) -> State | None:
    least, lives = state
    lease, done = _lease(op), op.outcome is Outcome.OK
    assert lease is not None
    assert op.called_ns is not None
    life = dict(lives).get(lease, UNKNOWN_LEASE)
    told = op.completed.get("revision", least) if done else least + 1
    if op.f == "grant":
        fresh = Life(True, False, op.called_ns + ttls[lease] * NS)
        return None if lease in dict(lives) else _with(state, least, lease, fresh)
    if op.f == "revoke":
        return _end(state, lease, told if done else None)
    if op.f == "attach":
        return (
            _with(state, told, lease, life._replace(attached=True)) if life.alive and told > least else None
        )
    if op.f == "observe":
        fits = told >= least and life.attached is op.completed["present"]
        return (told, lives) if fits else None
    ttl = op.completed["ttl"]
    if life.alive is not (ttl > 0) or ttl > ttls.get(lease, ttl):
        return None
    if not ttl:
        return state
    return _with(state, least, lease, life._replace(sure_ns=max(life.sure_ns, op.called_ns + ttl * NS)))


def test_valid_leases() -> None:
    ends = 0
    for seed in range(VALID_HISTORIES):
        operations = paired(record_leases(random.Random(seed), 20))
        verdict = check_leases(operations)
        assert verdict.kind is VerdictKind.VALID, f"seed {seed}: {verdict.explanation}"
        ends += any(op.f == "keep_alive" and op.completed and not op.completed["ttl"] for op in operations)
    assert ends > VALID_HISTORIES // 10, "hardly any lease is seen to have ended"


def test_edited_leases() -> None:
    tally = Tally("leases")
    for seed in range(EDITS):
        rng = random.Random(seed)
        operations = paired(edit_leases(rng, record_leases(rng, OPERATIONS - 1)))
        tally.note(seed, explained=leases_explained(operations), verdict=check_leases(operations))
    tally.judge()

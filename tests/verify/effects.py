"""A tape on which histories are recorded, small edits of it, and a judge that tries every order.

The judge shares nothing with the checkers but the form of a history. An operation becomes one or more
*effects*, each with the time it may come at the earliest and at the latest; hidden events, such as the
expiry of a lease, are effects without a call. A history is explained when some order of all effects that must
have come, and of any that may have, suits every one of them. For an order given, each effect comes as early
as it can: that leaves most to the others, so no other choice of moments needs to be tried.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from kvstore.verify import Event, Operation, Outcome, Verdict, VerdictKind, pair_events

NEVER = math.inf
FLAGGED_MIN = 0.99

VALID_HISTORIES = 1_000
"""Of each kind; none may be flagged."""
EDITS = int(os.environ.get("KVSTORE_VERIFY_EDITS", "500"))
"""Of each kind; enough for the share that is flagged to mean something, in a second or two."""
OPERATIONS = 8
"""Of one history: every order of them can be tried."""
NS = 1_000_000_000
TTL_S = 2
"""Of a lease; about as long as a history."""

Act = Callable[[Any, int], Any]
"""(state, time in ns) -> the state afterwards, or None where the effect cannot come."""


class Effect(NamedTuple):
    """Something that happens at one moment."""

    earliest_ns: int | Callable[[Any], int]
    """Or how to tell it from the state before."""
    latest_ns: float
    must: bool
    act: Act


def effect_of(operation: Operation, act: Act) -> Effect:
    """Of an operation that did not fail for certain: within its time when it was answered, else perhaps."""
    done = operation.outcome is Outcome.OK
    assert operation.called_ns is not None
    latest = operation.returned_ns if done and operation.returned_ns is not None else NEVER
    return Effect(operation.called_ns, latest, done, act)


def explained(initial: Hashable, effects: Sequence[Effect], accept: Callable[[Any], bool]) -> bool:
    """Whether any order of effects explains all that was seen, and ends in a state that is accepted."""
    seen: set[Any] = set()

    def search(state: Any, now: int, left: tuple[int, ...]) -> bool:
        if not any(effects[n].must for n in left) and accept(state):
            return True
        if (state, now, left) in seen:
            return False
        seen.add((state, now, left))
        bound = min((effects[n].latest_ns for n in left if effects[n].must), default=NEVER)
        for n in left:
            effect = effects[n]
            earliest = effect.earliest_ns(state) if callable(effect.earliest_ns) else effect.earliest_ns
            at = max(now, earliest)
            if at > bound or at > effect.latest_ns:
                continue
            after = effect.act(state, at)
            if after is not None and search(after, at, tuple(m for m in left if m != n)):
                return True
        return False

    return search(initial, 0, tuple(range(len(effects))))


class Tape:
    """Events as they happen, on a clock that moves by random steps."""

    def __init__(self, rng: random.Random, step_ns: tuple[int, int] = (1, 1_000)) -> None:
        self.rng = rng
        self.now = 1
        self.events: list[Event] = []
        self._step_ns = step_ns

    def wait(self, least_ns: int = 0, most_ns: int = 0) -> int:
        """Let time pass; the moment reached, which nothing else has."""
        self.now += self.rng.randint(*self._step_ns) + self.rng.randint(least_ns, most_ns)
        return self.now

    def add(self, process: int, kind: str, f: str, value: Any) -> None:
        self.events.append(Event(len(self.events) + 1, process, kind, f, value, time=self.wait()))


def pairs(events: Sequence[Event]) -> Iterator[tuple[int, int | None]]:
    """Positions of each invocation and of its completion, if it has one."""
    opened: dict[Any, int] = {}
    for n, event in enumerate(events):
        if event.type == "invoke":
            opened[event.process] = n
        else:
            yield opened.pop(event.process), n
    yield from ((n, None) for n in opened.values())


def ended(events: Sequence[Event], kind: str = "ok", f: str | None = None) -> list[int]:
    """Positions of the completions of a kind."""
    return [n for n, event in enumerate(events) if event.type == kind and f in (None, event.f)]


def begun(events: Sequence[Event], end: int) -> int:
    """Position of the invocation that completes there."""
    return max(n for n in range(end) if events[n].process == events[end].process)


def moved(rng: random.Random, events: Sequence[Event]) -> list[Event]:
    """One completion earlier or one call earlier or later, the times staying at their positions."""
    order = list(range(len(events)))
    begin, end = rng.choice([pair for pair in pairs(events) if pair[1] is not None] or [(0, None)])
    if end is None:
        return list(events)
    mine = [n for n in order if events[n].process == events[begin].process]
    if rng.random() < 0.5:
        after = min((n for n in mine if n > end), default=len(order))
        position = rng.randint(begin + 1, after - 1)
        order.insert(position, order.pop(end))
    else:
        before = max((n for n in mine if n < begin), default=-1)
        position = rng.randint(before + 1, end - 1)
        order.insert(position, order.pop(begin))
    return [
        events[n]._replace(time=events[position].time, line=position + 1) for position, n in enumerate(order)
    ]


def dropped(events: Sequence[Event], end: int) -> list[Event]:
    """Without the operation that ends there."""
    gone = (end, begun(events, end))
    return [event for n, event in enumerate(events) if n not in gone]


def repeated(rng: random.Random, events: Sequence[Event], end: int) -> list[Event]:
    """The operation that ends there once more, later, by a process of its own."""
    copied, process = list(events), 1 + max(int(event.process) for event in events)
    first = rng.randint(end + 1, len(events))
    last = rng.randint(first, len(events))
    copied.insert(last, events[end]._replace(process=process))
    copied.insert(first, events[begun(events, end)]._replace(process=process))
    times = sorted(int(event.time or 0) for event in events)
    times += [times[-1] + 1 + n for n in range(2)]
    return [event._replace(time=times[n], line=n + 1) for n, event in enumerate(copied)]


class Tally:
    """What a checker said of edited histories, beside what the judge of all orders says."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._harmful = 0
        self._edits = 0
        self._missed: list[int] = []
        self._alarms: list[tuple[int, Sequence[str]]] = []

    def note(self, seed: int, *, explained: bool, verdict: Verdict) -> None:
        flagged = verdict.kind is VerdictKind.INVALID
        self._edits += 1
        self._harmful += not explained
        if explained and flagged:
            self._alarms.append((seed, verdict.explanation))
        elif not explained and not flagged:
            self._missed.append(seed)

    def judge(self) -> None:
        """Raises AssertionError for a false alarm, too many misses, or a test without force."""
        print(f"{self._name}: {self._harmful} of {self._edits} edits do harm, missed: seeds {self._missed}")
        assert not self._alarms, f"{len(self._alarms)} explained, yet flagged: {self._alarms[:3]}"
        assert self._harmful >= self._edits // 8, "too few edits do harm: the test would show nothing"
        assert self._harmful <= self._edits * 19 // 20, "hardly any edit is harmless: no alarm could be false"
        assert len(self._missed) <= (1 - FLAGGED_MIN) * self._harmful, f"missed: seeds {self._missed}"


def paired(events: Sequence[Event]) -> list[Operation]:
    """The operations of a tape, in the order of their calls."""
    return pair_events(events)

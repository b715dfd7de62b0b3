"""A correct object under concurrent clients, and an exhaustive judge for tiny histories."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kvstore.verify import Event, Operation, Outcome
from kvstore.verify.models import INCONSISTENT, Model

CLIENTS = 4


def record_cas_register(rng: random.Random, count: int) -> list[Event]:
    """Events of a correct cas-register: each operation takes effect at a random instant while open."""
    events: list[Event] = []
    state: int | None = None
    open_now: dict[int, list[Any]] = {}
    process_of = list(range(CLIENTS))
    started = 0
    while started < count or open_now:
        slot = rng.randrange(CLIENTS)
        process, line = process_of[slot], len(events) + 1
        pending = open_now.get(slot)
        if pending is None and started < count:
            f = rng.choice(["read", "write", "cas"])
            draw = [rng.randrange(3), rng.randrange(3)]
            value: Any = {"read": None, "write": draw[0], "cas": draw}[f]
            events.append(Event(line, process, "invoke", f, value))
            open_now[slot] = [f, value, None]
            started += 1
        elif pending is not None and pending[2] is None:
            state, pending[2] = _take_effect(state, pending, rng)
        elif pending is not None:
            kind, value = pending[2]
            events.append(Event(line, process, kind, str(pending[0]), value))
            del open_now[slot]
            if kind == "info":
                process_of[slot] += CLIENTS
    return events


def _take_effect(
    state: int | None, pending: list[Any], rng: random.Random
) -> tuple[int | None, tuple[str, Any]]:
    f, value = pending[0], pending[1]
    lost = rng.random() < 0.15
    if f == "read":
        return state, ("ok", state)
    if f == "write":
        return value, ("info", value) if lost else ("ok", value)
    expected, new = value
    if state != expected:
        return state, ("info", value) if lost else ("fail", value)
    return new, ("info", value) if lost else ("ok", value)


def judge_exhaustively(operations: Sequence[Operation], model: Model) -> bool:
    """Whether any order of any subset that holds all completed operations is legal. Tiny histories only."""
    steps = [(op, step) for op in operations if (step := model.step(op)) is not None]
    sure = [pair for pair in steps if pair[0].ret is not None]
    maybe = [pair for pair in steps if pair[0].ret is None]
    for size in range(len(maybe) + 1):
        for chosen in itertools.combinations(maybe, size):
            if any(_legal(order, model) for order in itertools.permutations([*sure, *chosen])):
                return True
    return False


def _legal(order: Sequence[tuple[Operation, object]], model: Model) -> bool:
    state, latest_call = model.initial, -1
    for operation, step in order:
        if operation.ret is not None and operation.ret < latest_call:
            return False
        latest_call = max(latest_call, operation.call)
        state = model.move(state, step)  # type: ignore[arg-type]  # steps come from this model
        if state is INCONSISTENT:
            return False
    return True


@pytest.fixture
def cas_register_events() -> Callable[[random.Random, int], list[Event]]:
    return record_cas_register


@pytest.fixture
def exhaustive() -> Callable[[Sequence[Operation], Model], bool]:
    return judge_exhaustively


@pytest.fixture
def outcomes() -> Callable[[Sequence[Operation]], list[Outcome]]:
    return lambda operations: [operation.outcome for operation in operations]

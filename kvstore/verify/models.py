"""What a correct single copy would do: one small model per kind of object.

A model maps an operation to a `Step`, or drops it when it shows nothing, and moves a state by a
step. States are hashable. Two readings of history are offered where the field disagrees:

* `porcupine`: a failed compare-and-set *observed* a value other than `from`; nil is a value;
* `knossos`: failed operations are dropped; a read of nil matches anything.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from enum import Enum
from typing import Any, NamedTuple, Protocol

from kvstore.verify.operation_history import Operation, Outcome

INCONSISTENT: Any = object()
"""Returned by `Model.move` when a step is impossible in a state; never a state itself."""


class Semantics(Enum):
    """Which reading of failed compare-and-sets and nil reads to use."""

    PORCUPINE = "porcupine"
    KNOSSOS = "knossos"


class Step(NamedTuple):
    """An operation reduced to what moves or observes the state; equal steps are interchangeable."""

    kind: str
    first: Hashable = None
    second: Hashable = None
    observes: bool = False
    """True for a step that moves no state whatever: wherever it fits, it may be placed at once.

    A write of the value already there is *not* one: it may be needed after the state has moved away.
    """


class Model(Protocol):
    initial: Hashable

    def step(self, operation: Operation) -> Step | None:
        """What the operation does, or None when it neither moves nor observes anything."""

    def move(self, state: Any, step: Step) -> Any:
        """The state after `step`, or INCONSISTENT."""

    def keys(self, operation: Operation) -> tuple[Hashable, ...]:
        """Independent parts of the object that the operation touches."""


def freeze(value: Any) -> Hashable:
    """A hashable copy of a value read from a file, so that it can be part of a state."""
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    if isinstance(value, dict):
        return tuple(sorted(((freeze(k), freeze(v)) for k, v in value.items()), key=repr))
    frozen: Hashable = value
    return frozen


class Register:
    """read, write, and cas with a [from, to] value; one register, or one per `key`."""

    def __init__(self, semantics: Semantics, initial: Any = None) -> None:
        self.initial: Hashable = freeze(initial)
        self._observes_failure = semantics is Semantics.PORCUPINE
        self._nil_is_any = semantics is Semantics.KNOSSOS

    def step(self, operation: Operation) -> Step | None:
        f, outcome = operation.f, operation.outcome
        if f == "read":
            seen = freeze(operation.completed)
            if outcome is not Outcome.OK or (seen is None and self._nil_is_any):
                return None
            return Step("read", seen, observes=True)
        if f == "write":
            return None if outcome is Outcome.FAIL else Step("write", freeze(operation.invoked))
        if f == "cas":
            expected, new = _pair_of(operation)
            if outcome is not Outcome.FAIL:
                return Step("cas", expected, new)
            return Step("differs", expected, observes=True) if self._observes_failure else None
        raise ValueError(f"a register knows no {f!r} (line {operation.line})")

    def move(self, state: Any, step: Step) -> Any:
        kind, first, second, _ = step
        if kind == "read":
            return state if state == first else INCONSISTENT
        if kind == "write":
            return first
        if kind == "cas":
            return second if state == first else INCONSISTENT
        return state if state != first else INCONSISTENT

    def keys(self, operation: Operation) -> tuple[Hashable, ...]:
        return (freeze(operation.key),)


def _pair_of(operation: Operation) -> tuple[Hashable, Hashable]:
    value = operation.invoked
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"a cas needs [from to], found {value!r} (line {operation.line})")
    return freeze(value[0]), freeze(value[1])


class AppendMap:
    """get, put and append of strings per key; a missing key reads as the initial value."""

    def __init__(self, semantics: Semantics, initial: Any = None) -> None:
        self.initial: Hashable = "" if initial is None else str(initial)
        self._nil_is_any = semantics is Semantics.KNOSSOS

    def step(self, operation: Operation) -> Step | None:
        f, outcome = operation.f, operation.outcome
        if f == "get":
            seen = operation.completed
            if outcome is not Outcome.OK or (seen is None and self._nil_is_any):
                return None
            return Step("get", seen, observes=True)
        if f in {"put", "append"}:
            return None if outcome is Outcome.FAIL else Step(f, operation.invoked)
        raise ValueError(f"an append map knows no {f!r} (line {operation.line})")

    def move(self, state: Any, step: Step) -> Any:
        kind, first, _, _ = step
        if kind == "get":
            return state if state == first else INCONSISTENT
        return first if kind == "put" else state + first

    def keys(self, operation: Operation) -> tuple[Hashable, ...]:
        return (freeze(operation.key),)


class MultiRegister:
    """Transactions of [read k v] and [write k v] over several registers, each one atomic step.

    `initial` is a map from key to value, or one value for every key.
    """

    def __init__(self, semantics: Semantics, initial: Any = None) -> None:
        self.initial: Hashable = ()
        self._nil_is_any = semantics is Semantics.KNOSSOS
        self._first = {freeze(k): freeze(v) for k, v in initial.items()} if isinstance(initial, dict) else {}
        self._default = None if isinstance(initial, dict) else freeze(initial)

    def step(self, operation: Operation) -> Step | None:
        if operation.outcome is Outcome.FAIL:
            return None
        known = operation.outcome is Outcome.OK
        actions = []
        for f, key, value in self._actions(operation):
            if f in {"write", "w"}:
                actions.append(("write", key, value))
            elif known and not (value is None and self._nil_is_any):
                actions.append(("read", key, value))
        observes = all(kind == "read" for kind, _, _ in actions)
        return Step("txn", tuple(actions), observes=observes) if actions else None

    def _actions(self, operation: Operation) -> list[tuple[str, Hashable, Hashable]]:
        value = operation.completed if operation.outcome is Outcome.OK else operation.invoked
        if operation.outcome is Outcome.OK and value is None:
            value = operation.invoked
        try:
            actions = [(str(f), freeze(key), freeze(seen)) for f, key, seen in value]
        except (TypeError, ValueError):
            raise ValueError(f"a transaction is a list of [f k v] (line {operation.line})") from None
        for f, _, _ in actions:
            if f not in {"read", "r", "write", "w"}:
                raise ValueError(f"a multi-register knows no {f!r} (line {operation.line})")
        return actions

    def move(self, state: Any, step: Step) -> Any:
        actions: Any = step.first
        held = dict(state)
        for kind, key, value in actions:
            if kind == "write":
                held[key] = value
            elif held.get(key, self._first.get(key, self._default)) != value:
                return INCONSISTENT
        return tuple(sorted(held.items(), key=lambda item: repr(item[0])))

    def keys(self, operation: Operation) -> tuple[Hashable, ...]:
        return tuple(key for _, key, _ in self._actions(operation))


class Mutex:
    """acquire and release; held at most once. `initial` true means held at the start."""

    def __init__(self, semantics: Semantics, initial: Any = None) -> None:
        del semantics  # both readings agree: a failed acquire says nothing
        self.initial: Hashable = bool(initial) and initial != "unlocked"

    def step(self, operation: Operation) -> Step | None:
        if operation.f not in {"acquire", "release"}:
            raise ValueError(f"a mutex knows no {operation.f!r} (line {operation.line})")
        return None if operation.outcome is Outcome.FAIL else Step(operation.f)

    def move(self, state: Any, step: Step) -> Any:
        wanted = step.kind == "release"
        return (not wanted) if state == wanted else INCONSISTENT

    def keys(self, operation: Operation) -> tuple[Hashable, ...]:
        return (freeze(operation.key),)


MODELS: dict[str, Callable[[Semantics, Any], Model]] = {
    "register": Register,
    "cas-register": Register,
    "multi-register": MultiRegister,
    "kv-append": AppendMap,
    "mutex": Mutex,
}
"""Models by the name used on the command line. A plain register is a cas-register without cas."""

"""The searches against an exhaustive one, and against each other."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from kvstore.verify import (
    MODELS,
    Event,
    HistoryError,
    Model,
    Operation,
    Outcome,
    Semantics,
    VerdictKind,
    check_linearizability,
    pair_events,
)
from kvstore.verify.search import Problem, Result, breadth_first, depth_first

HISTORIES = 400


def _scrambled(rng: random.Random, events: Sequence[Event]) -> list[Event]:
    """The same history with one read changed at random: sometimes legal still, often not."""
    changed = list(events)
    reads = [n for n, event in enumerate(events) if event.type == "ok" and event.f == "read"]
    if reads:
        n = rng.choice(reads)
        changed[n] = events[n]._replace(value=rng.choice([None, 0, 1, 2]))
    return changed


def _run(search: Callable[[Problem], object], problem: Problem) -> Result:
    results = [step for step in search(problem) if step is not None]  # type: ignore[attr-defined]  # a generator
    assert len(results) == 1
    result: Result = results[0]
    return result


@pytest.mark.parametrize("semantics", list(Semantics))
def test_both_searches_agree_with_all_orders(
    semantics: Semantics,
    cas_register_events: Callable[[random.Random, int], list[Event]],
    exhaustive: Callable[[Sequence[Operation], Model], bool],
) -> None:
    verdicts = {True: 0, False: 0}
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        operations = pair_events(_scrambled(rng, cas_register_events(rng, 6)))
        model = MODELS["cas-register"](semantics, None)
        steps = [(op, step) for op in operations if (step := model.step(op)) is not None]
        expected = exhaustive(operations, model)
        assert _run(depth_first, Problem(model, steps)).legal is expected, f"seed {seed}"
        assert _run(breadth_first, Problem(model, steps)).legal is expected, f"seed {seed}"
        verdicts[expected] += 1
    assert min(verdicts.values()) > HISTORIES // 10, "the histories must exercise both verdicts"


def test_keys_are_judged_apart_and_the_culprit_is_named() -> None:
    events = [
        Event(1, 0, "invoke", "put", "a", "x"),
        Event(2, 0, "ok", "put", "a", "x"),
        Event(3, 1, "invoke", "get", None, "y"),
        Event(4, 1, "ok", "get", "", "y"),
        Event(5, 1, "invoke", "get", None, "x"),
        Event(6, 1, "ok", "get", "", "x"),
    ]
    verdict = check_linearizability(pair_events(events), MODELS["kv-append"](Semantics.PORCUPINE, None))
    assert verdict.kind is VerdictKind.INVALID
    assert verdict.explanation[0].startswith("cannot be placed: line 5:")


@pytest.mark.parametrize(("seen", "kind"), [([1, 1], VerdictKind.VALID), ([1, 0], VerdictKind.INVALID)])
def test_multi_register_reads_are_one_step(seen: list[int], kind: VerdictKind) -> None:
    write = [["write", "x", 1], ["write", "y", 1]]
    read = [["read", "x", None], ["read", "y", None]]
    done = [["read", "x", seen[0]], ["read", "y", seen[1]]]
    events = [
        Event(1, 0, "invoke", "txn", write),
        Event(2, 0, "ok", "txn", write),
        Event(3, 1, "invoke", "txn", read),
        Event(4, 1, "ok", "txn", done),
    ]
    model = MODELS["multi-register"](Semantics.PORCUPINE, {"x": 0, "y": 0})
    assert check_linearizability(pair_events(events), model).kind is kind


def test_a_mutex_is_held_once() -> None:
    twice = [
        Event(n, p, t, "acquire", None)
        for n, (p, t) in enumerate([(0, "invoke"), (0, "ok"), (1, "invoke"), (1, "ok")])
    ]
    model = MODELS["mutex"](Semantics.PORCUPINE, None)
    assert check_linearizability(pair_events(twice), model).kind is VerdictKind.INVALID
    assert check_linearizability(pair_events(twice[:3]), model).kind is VerdictKind.VALID


def test_an_exhausted_budget_is_unknown_not_valid(
    cas_register_events: Callable[[random.Random, int], list[Event]],
) -> None:
    operations = pair_events(cas_register_events(random.Random(7), 50))
    verdict = check_linearizability(operations, MODELS["register"](Semantics.PORCUPINE, None), budget_s=0.0)
    assert verdict.kind is VerdictKind.UNKNOWN


def test_pairing_names_the_line_of_an_impossible_event() -> None:
    with pytest.raises(HistoryError, match="line 2"):
        pair_events([Event(1, 0, "invoke", "read", None), Event(2, 0, "invoke", "read", None)])
    with pytest.raises(HistoryError, match="line 9"):
        pair_events([Event(9, 0, "ok", "read", None)])


def test_nemesis_is_left_out_and_the_unfinished_are_indeterminate(
    outcomes: Callable[[Sequence[Operation]], list[Outcome]],
) -> None:
    events = [Event(1, "nemesis", "info", "kill", None), Event(2, 0, "invoke", "write", 1)]
    assert outcomes(pair_events(events)) == [Outcome.INFO]

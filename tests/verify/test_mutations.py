"""No false alarm on correct histories; harmful edits are flagged."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from kvstore.verify import (
    MODELS,
    Event,
    Model,
    Operation,
    Semantics,
    VerdictKind,
    check_linearizability,
    pair_events,
)

VALID_HISTORIES = 1_000
EDITS = 600


def _edit(rng: random.Random, events: list[Event]) -> list[Event]:
    """One of: change a read, swap two reads' values, drop a write, make an unknown outcome a success."""
    edited = list(events)
    reads = [n for n, e in enumerate(events) if e.type == "ok" and e.f == "read"]
    writes = [n for n, e in enumerate(events) if e.type == "ok" and e.f == "write"]
    unknown = [n for n, e in enumerate(events) if e.type == "info"]
    choice = rng.randrange(4)
    if choice == 0 and reads:
        n = rng.choice(reads)
        edited[n] = edited[n]._replace(value=rng.choice([None, 0, 1, 2]))
    elif choice == 1 and len(reads) > 1:
        a, b = rng.sample(reads, 2)
        edited[a], edited[b] = (
            events[a]._replace(value=events[b].value),
            events[b]._replace(value=events[a].value),
        )
    elif choice == 2 and writes:
        n = rng.choice(writes)
        edited[n] = edited[n]._replace(type="fail")
    elif unknown:
        n = rng.choice(unknown)
        edited[n] = edited[n]._replace(type="ok")
    return edited


def test_correct_histories_are_valid(
    cas_register_events: Callable[[random.Random, int], list[Event]],
) -> None:
    for seed in range(VALID_HISTORIES):
        operations = pair_events(cas_register_events(random.Random(seed), 30))
        for semantics in Semantics:
            verdict = check_linearizability(operations, MODELS["cas-register"](semantics, None))
            assert verdict.kind is VerdictKind.VALID, f"seed {seed} {semantics}: {verdict}"


def test_harmful_edits_are_flagged(
    cas_register_events: Callable[[random.Random, int], list[Event]],
    exhaustive: Callable[[Sequence[Operation], Model], bool],
) -> None:
    harmful = flagged = 0
    model = MODELS["cas-register"](Semantics.PORCUPINE, None)
    for seed in range(EDITS):
        rng = random.Random(seed)
        operations = pair_events(_edit(rng, cas_register_events(rng, 6)))
        if exhaustive(operations, model):
            continue
        harmful += 1
        flagged += check_linearizability(operations, model).kind is VerdictKind.INVALID
    assert harmful >= EDITS // 6, "too few edits do harm: the test would show nothing"
    assert flagged >= 0.99 * harmful

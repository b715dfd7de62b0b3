"""The revision witness for transactions: silent on correct stores, loud on lies, at one with the search."""

from __future__ import annotations

import random
from typing import Any

from kvstore.verify import (
    MODELS,
    Event,
    Semantics,
    VerdictKind,
    check_linearizability,
    pair_events,
)
from kvstore.verify.transaction_checker import as_multi_register, check_transactions

CLIENTS = 5
KEYS = ["a", "b", "c"]


def record(rng: random.Random, count: int, loss: float) -> list[Event]:
    """Transactions of a correct store, each taking effect at a random instant while open."""
    held: dict[str, tuple[str | None, int]] = {}
    revision = 1
    events: list[Event] = []
    open_now: dict[int, tuple[list[Any], Any]] = {}
    process_of = list(range(CLIENTS))
    started = 0
    while started < count or open_now:
        slot = rng.randrange(CLIENTS)
        line, process = len(events) + 1, process_of[slot]
        if slot not in open_now:
            if started == count:
                continue
            started += 1
            asked = [["r", key, None] for key in KEYS if rng.random() < 0.6] or [["r", "a", None]]
            asked += [["w", key, f"{key}{started}"] for key in KEYS if rng.random() < 0.4]
            events.append(Event(line, process, "invoke", "txn", asked))
            open_now[slot] = (asked, None)
            continue
        asked, reply = open_now[slot]
        writes = [mop for mop in asked if mop[0] == "w"]
        if reply is None:
            if writes and rng.random() < loss:
                open_now[slot] = (asked, {})
                continue
            mops = [[*mop[:2], *held.get(mop[1], (None, 0))] if mop[0] == "r" else mop for mop in asked]
            revision += bool(writes)
            held.update((key, (value, revision)) for _, key, value in writes)
            open_now[slot] = (asked, {"revision": revision, "mops": mops})
            continue
        lost = not reply or (writes and rng.random() < loss)
        events.append(Event(line, process, "info" if lost else "ok", "txn", None if lost else reply))
        del open_now[slot]
        if lost:
            process_of[slot] += CLIENTS
    return events


def test_correct_histories_are_valid() -> None:
    for seed in range(300):
        operations = pair_events(record(random.Random(seed), 60, loss=0.1))
        assert check_transactions(operations).kind is VerdictKind.VALID, f"seed {seed}"


def test_witness_and_search_agree_on_edited_histories() -> None:
    flagged = 0
    model = MODELS["multi-register"](Semantics.PORCUPINE, None)
    for seed in range(200):
        rng = random.Random(seed)
        events = record(rng, 30, loss=0.05)
        done = [n for n, event in enumerate(events) if event.type == "ok"]
        chosen = events[rng.choice(done)].value
        reads = [mop for mop in chosen["mops"] if mop[0] == "r"]
        shown = [
            mop
            for n in done
            for mop in events[n].value["mops"]
            if mop[0] == "r" and reads and mop[1] == reads[0][1]
        ]
        if reads:
            reads[0][2:] = rng.choice(shown)[2:]
        operations = pair_events(events)
        witness = check_transactions(operations).kind
        search = check_linearizability(as_multi_register(operations), model).kind
        assert (witness, search) != (VerdictKind.VALID, VerdictKind.INVALID), f"seed {seed}"
        if search is VerdictKind.INVALID:
            flagged += 1
            assert witness is VerdictKind.INVALID
    assert flagged > 20, "hardly any edit did harm: the test would show nothing"

"""Each anomaly by name, and none where there is none."""

from __future__ import annotations

import random
from typing import Any

import pytest

from kvstore.verify import Event, VerdictKind, check_list_append, pair_events


def _sequence(*transactions: list[list[Any]] | tuple[str, list[list[Any]]]) -> list[Event]:
    """Transactions one after another, each by a process of its own."""
    events: list[Event] = []
    for process, given in enumerate(transactions):
        kind, mops = given if isinstance(given, tuple) else ("ok", given)
        asked = [[f, k, v if f == "append" else None] for f, k, v in mops]
        events.append(Event(len(events) + 1, process, "invoke", "txn", asked))
        events.append(Event(len(events) + 1, process, kind, "txn", mops))
    return events


def _together(*transactions: list[list[Any]]) -> list[Event]:
    """Transactions all open at once, so that real time orders none of them."""
    count = len(transactions)
    asked = [[[f, k, v if f == "append" else None] for f, k, v in mops] for mops in transactions]
    begun = [Event(n + 1, n, "invoke", "txn", mops) for n, mops in enumerate(asked)]
    return begun + [Event(count + n + 1, n, "ok", "txn", mops) for n, mops in enumerate(transactions)]


G0 = _together(
    [["append", "x", 1], ["append", "y", 1]],
    [["append", "x", 2], ["append", "y", 2]],
    [["r", "x", [1, 2]], ["r", "y", [2, 1]]],
)
G1C = _together([["append", "x", 1], ["r", "y", [1]]], [["append", "y", 1], ["r", "x", [1]]])
G_SINGLE = _together(
    [["append", "x", 1], ["append", "y", 1]],
    [["r", "x", [1]], ["r", "y", []]],
    [["r", "y", [1]]],
)
G2 = _together(
    [["r", "x", []], ["append", "y", 1]],
    [["r", "y", []], ["append", "x", 1]],
    [["r", "x", [1]], ["r", "y", [1]]],
)
STALE = _sequence([["append", "x", 1]], [["r", "x", []]])
LOST = _together(
    [["r", "x", []], ["append", "x", 1]], [["r", "x", []], ["append", "x", 2]], [["r", "x", [1, 2]]]
)


@pytest.mark.parametrize(
    ("name", "events"),
    [
        ("G0:", G0),
        ("G1c:", G1C),
        ("G-single:", G_SINGLE),
        ("G2:", G2),
        ("G-single-realtime:", STALE),
        ("lost-update:", LOST),
        ("G1a:", _sequence(("fail", [["append", "x", 1]]), [["r", "x", [1]]])),
        (
            "G1b:",
            _together([["append", "x", 1], ["append", "x", 2]], [["r", "x", [1]]], [["r", "x", [1, 2]]]),
        ),
        (
            "incompatible-order:",
            _together([["append", "x", 1]], [["append", "x", 2]], [["r", "x", [1, 2]]], [["r", "x", [2, 1]]]),
        ),
        ("phantom:", _sequence([["r", "x", [9]]])),
        ("internal:", _sequence([["append", "x", 1], ["r", "x", []]])),
        ("duplicate-elements:", _sequence([["append", "x", 1]], [["r", "x", [1, 1]]])),
    ],
)
def test_anomaly_is_found_by_name(name: str, events: list[Event]) -> None:
    verdict = check_list_append(pair_events(events))
    assert verdict.kind is VerdictKind.INVALID
    assert any(line.startswith(name) for line in verdict.explanation), verdict.explanation


def test_an_unknown_append_may_have_happened_or_not() -> None:
    unknown = ("info", [["append", "x", 1]])
    for seen in ([], [1]):
        assert (
            check_list_append(pair_events(_sequence(unknown, [["r", "x", seen]]))).kind is VerdictKind.VALID
        )


def _correct(rng: random.Random, count: int) -> list[Event]:
    """Strictly serial transactions over a shared map, overlapping in the record."""
    lists: dict[int, list[int]] = {}
    open_now: dict[int, list[list[Any]]] = {}
    events: list[Event] = []
    started = fresh = 0
    while started < count or open_now:
        process = rng.randrange(5)
        if process in open_now:
            events.append(Event(len(events) + 1, process, "ok", "txn", open_now.pop(process)))
        elif started < count:
            started += 1
            mops: list[list[Any]] = []
            for _ in range(rng.randint(1, 3)):
                key = rng.randrange(3)
                if rng.random() < 0.5:
                    fresh += 1
                    lists.setdefault(key, []).append(fresh)
                    mops.append(["append", key, fresh])
                else:
                    mops.append(["r", key, list(lists.get(key, []))])
            asked = [[f, k, v if f == "append" else None] for f, k, v in mops]
            events.append(Event(len(events) + 1, process, "invoke", "txn", asked))
            open_now[process] = mops
    return events


def test_correct_histories_are_valid() -> None:
    for seed in range(200):
        verdict = check_list_append(pair_events(_correct(random.Random(seed), 60)))
        assert verdict.kind is VerdictKind.VALID, f"seed {seed}: {verdict.explanation}"


def test_stale_reads_are_flagged() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        events = _correct(rng, 60)
        reads = [
            (n, m)
            for n, e in enumerate(events)
            if e.type == "ok"
            for m, mop in enumerate(e.value)
            if mop[0] == "r" and len(mop[2]) > 6
        ]
        n, m = rng.choice(reads)
        events[n].value[m][2] = events[n].value[m][2][:1]
        assert check_list_append(pair_events(events)).kind is VerdictKind.INVALID, f"seed {seed}"

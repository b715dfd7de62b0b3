"""Locks, leases and watches: each rule has a history that keeps it and one that breaks it."""

from __future__ import annotations

from typing import Any

import pytest

from kvstore.verify import Event, VerdictKind, pair_events
from kvstore.verify.lease_checker import check_leases
from kvstore.verify.lock_checker import check_locks, count_updates, overlaps
from kvstore.verify.operation_history import Operation
from kvstore.verify.watch_checker import check_watches

Line = tuple[float, int, str, str, Any]
"""Second, process, type, f, value."""


def history(*lines: Line) -> list[Operation]:
    ordered = sorted(lines, key=lambda line: line[0])
    return pair_events(
        [Event(n, *line[1:], time=int(line[0] * 1e9)) for n, line in enumerate(ordered, start=1)]
    )


def one(
    begin: float, end: float, process: int, f: str, asked: Any, done: Any, kind: str = "ok"
) -> list[Line]:
    return [(begin, process, "invoke", f, asked), (end, process, kind, f, done)]


def held(
    process: int,
    begin: float,
    end: float,
    token: int,
    *,
    revoked: int | None = None,
    base: int = 0,
    back: int | None = None,
) -> list[Line]:
    """A lock taken, an update made, and the lock released."""
    update = {"name": "l", "token": token}
    done = {**update, "base": base, "before": base, "version": base + 1, "accepted": True}
    asked = {"name": "l", "lease": process, "doomed": revoked is not None}
    return [
        *one(begin - 0.2, begin - 0.1, process, "grant", 2, {"lease": process, "ttl": 2}),
        *one(begin - 0.05, begin, process, "acquire", asked, {**asked, "token": token, "revoked": revoked}),
        *one(begin + 0.01, end - 0.02, process, "update", update, done),
        *one(end, end + 0.01, process, "release", update, {**update, "revision": back or token + 1}),
    ]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([*held(1, 1.0, 1.3, 5), *held(2, 1.5, 1.8, 7, base=1)], None),
        ([*held(1, 1.0, 1.3, 7), *held(2, 1.5, 1.8, 5, base=1)], "token went back"),
        ([*held(1, 1.0, 1.3, 5), *held(2, 1.5, 1.8, 5, base=1)], "one token twice"),
        ([*held(1, 1.0, 1.6, 5), *held(2, 1.2, 1.8, 7, base=1)], "held by two at once"),
        ([*held(1, 1.0, 9.0, 5, back=9), *held(2, 7.0, 8.0, 7, base=1)], None),
        ([*held(1, 1.0, 1.3, 5, revoked=4)], "had been revoked"),
        ([*held(1, 1.0, 1.3, 5, revoked=6)], None),
        ([*held(1, 1.0, 1.3, 5), *held(2, 1.5, 1.8, 7, base=0)[:4]], None),
    ],
)
def test_locks(lines: list[Line], says: str | None) -> None:
    verdict = check_locks(history(*lines), fenced=True)
    assert verdict.kind is (VerdictKind.VALID if says is None else VerdictKind.INVALID), verdict
    assert says is None or any(says in line for line in verdict.explanation), verdict


def test_a_lost_update_counts_with_fencing_and_is_only_counted_without() -> None:
    lines = held(1, 1.0, 1.3, 5)
    second = held(2, 1.5, 1.8, 7, base=1)
    position = next(n for n, line in enumerate(second) if line[2:4] == ("ok", "update"))
    second[position] = (*second[position][:4], {**second[position][4], "base": 0})
    operations = history(*lines, *second)
    assert count_updates(operations) == (2, 1)
    assert check_locks(operations, fenced=True).kind is VerdictKind.INVALID
    unfenced = check_locks(operations, fenced=False)
    assert unfenced.kind is VerdictKind.VALID
    assert unfenced.explanation == ("1 of 2 accepted updates lost an earlier one",)


def test_overlap_of_those_who_believe_in_their_locks() -> None:
    """The first was paused beyond its TTL: no guarantee is violated, yet both believe that they hold it."""
    operations = history(*held(1, 1.0, 9.0, 5, back=9), *held(2, 7.0, 8.0, 7, base=1))
    assert [(one.token, other.token) for one, other in overlaps(operations)] == [(5, 7)]
    assert check_locks(operations, fenced=False).kind is VerdictKind.VALID


def life(*lines: Line) -> list[Line]:
    key = {"lease": 1, "key": "k"}
    return [
        *one(0.0, 0.1, 1, "grant", 2, {"lease": 1, "ttl": 2}),
        *one(0.2, 0.3, 1, "attach", key, {**key, "revision": 2}),
        *lines,
    ]


def seen(begin: float, present: bool) -> list[Line]:
    key = {"lease": 1, "key": "k"}
    done = {**key, "revision": 4 + int(begin * 10), "present": present}
    return one(begin, begin + 0.1, 1, "observe", key, done)


def kept_alive(begin: float, ttl: int) -> list[Line]:
    return one(begin, begin + 0.1, 1, "keep_alive", {"lease": 1}, {"lease": 1, "ttl": ttl})


@pytest.mark.parametrize(
    ("lines", "left", "says"),
    [
        (life(*seen(1.0, True), *seen(4.0, False)), [], None),
        (life(*kept_alive(1.5, 2), *seen(3.0, True), *seen(5.0, False)), [], None),
        (life(*seen(1.0, False)), [], "early"),
        (life(*kept_alive(1.5, 2), *seen(3.0, False)), [], "early"),
        (life(*seen(3.0, False), *seen(4.0, True)), [], "back after"),
        (life(*seen(3.0, False), *kept_alive(4.0, 2)), [], "kept alive after"),
        (life(*kept_alive(1.0, 5)), [], "longer TTL"),
        (life(*one(1.0, 1.1, 1, "revoke", 1, {"lease": 1, "revision": 5}), *seen(1.2, False)), [], None),
        (
            life(*one(1.0, 1.1, 1, "revoke", 1, {"lease": 1, "revision": 5}), *seen(1.2, True)),
            [],
            "back after",
        ),
        (life(*one(1.0, 1.1, 1, "revoke", 1, None, "info"), *seen(1.2, False)), [], None),
        (life(*seen(1.0, True)), ["k"], "still exists"),
    ],
)
def test_leases(lines: list[Line], left: list[str], says: str | None) -> None:
    verdict = check_leases(history(*lines), left)
    assert verdict.kind is (VerdictKind.VALID if says is None else VerdictKind.INVALID), verdict
    assert says is None or any(says in line for line in verdict.explanation), verdict


FIRST = [2, "put", "w/a", "1", 2, 1, None]
SECOND = [3, "put", "w/a", "2", 2, 2, ["1", 2]]
BESIDE = [3, "put", "w/b", "2", 3, 1, None]
THIRD = [4, "delete", "w/a", None, 0, 0, ["2", 3]]
LIE = [5, "put", "w/b", "7", 3, 2, None]
DENIED = one(1.0, 1.1, 3, "write", [["w/b", "7"]], None, "fail")
LATE = one(4.0, 4.1, 3, "write", [["w/b", "7"]], None, "info")
"""Asked for when the watch had ended."""


def watched(batches: list[list[Any]], start: int = 1, **more: Any) -> list[Line]:
    asked = {"prefix": "w/", "start": start, "prev": True, "no_put": False, "no_delete": False}
    asked |= {name: more.pop(name) for name in list(more) if name in asked}
    done = {"created": 1, "batches": batches, "progress": [], "compacted": 0, "end": "stopped", **more}
    return one(2.0, 3.0, more.get("process", 9), "watch", asked, done)


WRITES = [
    *one(0.1, 0.2, 1, "write", [["w/a", "1"]], {"revision": 2}),
    *one(0.3, 0.4, 1, "write", [["w/a", "2"], ["w/b", "2"]], {"revision": 3}),
    *one(0.5, 0.6, 1, "delete", ["w/a"], {"revision": 4, "deleted": 1}),
]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (watched([[FIRST], [SECOND, BESIDE], [THIRD]]), None),
        (watched([[SECOND, BESIDE], [THIRD]], start=3), None),
        (watched([[THIRD]], start=1, no_put=True), None),
        (watched([], compacted=3), None),
        (watched([[FIRST], [SECOND, BESIDE]], progress=[[3, 2]]), None),
        (watched([[SECOND, BESIDE], [FIRST]]), "ordered"),
        (watched([[FIRST], [FIRST], [SECOND, BESIDE]]), "unique"),
        (watched([[FIRST], [SECOND], [BESIDE], [THIRD]]), "atomic"),
        (watched([[FIRST], [THIRD]]), "reliable"),
        (watched([[SECOND, BESIDE]], start=2), "reliable"),
        (watched([[FIRST]], progress=[[3, 1]]), "bookmarkable"),
        (watched([[FIRST], [SECOND, BESIDE]], progress=[[3, 1]]), "bookmarkable"),
        (watched([[FIRST], [[*SECOND[:6], ["9", 2]], BESIDE], [THIRD]]), "prev-value"),
        (watched([[FIRST], [SECOND, BESIDE], [[*THIRD[:6], ["1", 2]]]]), "prev-value"),
        (watched([[[2, "put", "w/a", "1", 2, 2, None]]]), "is-create"),
        (watched([[FIRST], [[3, "put", "w/a", "2", 3, 2, None], BESIDE]]), "is-create"),
        (watched([[FIRST]], no_put=True), "filter"),
        (watched([[[2, "put", "x", "1", 2, 1, None]]]), "filter"),
        (watched([[FIRST], [SECOND, BESIDE]], start=3), "filter"),
        (watched([[[2, "put", "w/a", "7", 2, 1, None]]]), "disagreement"),
        ([*DENIED, *watched([[FIRST], [SECOND, BESIDE], [THIRD], [LIE]])], "seen at revision"),
        (watched([[FIRST], [SECOND, BESIDE], [THIRD], [LIE]]), "no operation wrote"),
        (watched([[FIRST], [SECOND, BESIDE]], compacted=9), None),
        (watched([[SECOND, BESIDE]], start=3, compacted=4), "resumable"),
        ([*LATE, *watched([[FIRST], [SECOND, BESIDE], [THIRD], [LIE]])], "revisions went back"),
    ],
)
def test_watches(lines: list[Line], says: str | None) -> None:
    verdict = check_watches(history(*WRITES, *lines))
    assert verdict.kind is (VerdictKind.VALID if says is None else VerdictKind.INVALID), verdict
    assert says is None or any(says in line for line in verdict.explanation), verdict


def test_a_previous_value_may_only_be_missing_where_history_was_compacted() -> None:
    """A server that never sends one must not pass."""
    operations = history(*WRITES, *watched([[FIRST], [[*SECOND[:6], None], BESIDE]]))
    assert check_watches(operations).kind is VerdictKind.VALID
    assert check_watches(operations, compacted_through=3).kind is VerdictKind.VALID
    verdict = check_watches(operations, compacted_through=2)
    assert verdict.kind is VerdictKind.INVALID
    assert "has none" in verdict.explanation[0]

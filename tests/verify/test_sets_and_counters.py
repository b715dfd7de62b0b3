"""Sets, counters, sessions and replicas: silent on the truth, loud on each kind of loss and invention."""

from __future__ import annotations

from typing import Any

import pytest

from kvstore.verify import Event, VerdictKind, pair_events
from kvstore.verify.operation_history import Operation
from kvstore.verify.replica_checker import check_replicas
from kvstore.verify.session_checker import check_sessions
from kvstore.verify.set_checker import check_counter, check_set

Line = tuple[int, str, str, Any]


def history(*lines: Line) -> list[Operation]:
    return pair_events([Event(n, *line) for n, line in enumerate(lines, start=1)])


def one(process: int, f: str, asked: Any, completed: Any, kind: str = "ok") -> list[Line]:
    return [(process, "invoke", f, asked), (process, kind, f, completed)]


ADDED = one(0, "add", "s/1", "s/1")
LOST = one(1, "add", "s/2", None, "info")
FAILED = one(2, "add", "s/3", None, "fail")


@pytest.mark.parametrize(
    ("lines", "final", "says"),
    [
        ([*ADDED, *one(3, "read", "s/", ["s/1"])], ["s/1"], None),
        ([*ADDED, *LOST, *FAILED], ["s/1", "s/2"], None),
        ([*ADDED, *LOST, *FAILED], ["s/1"], None),
        ([*ADDED, *one(3, "read", "other/", [])], ["s/1"], None),
        ([*ADDED, *one(3, "read", "s/", [])], ["s/1"], "is lost"),
        ([*ADDED], [], "lost at the end"),
        ([*ADDED, *LOST, *one(3, "read", "s/", ["s/1", "s/2"])], ["s/1"], "lost at the end"),
        (
            [*LOST, *one(3, "read", "s/", ["s/2"]), *one(4, "read", "s/", [])],
            ["s/2"],
            "is lost",
        ),
        ([*ADDED, *FAILED], ["s/1", "s/3"], "but line"),
        ([*ADDED], ["s/1", "s/9"], "never added"),
        ([*one(3, "read", "s/", ["s/1"]), *ADDED], ["s/1"], "before it was added"),
    ],
)
def test_sets(lines: list[Line], final: list[str], says: str | None) -> None:
    verdict = check_set(history(*lines), {"node1": final})
    assert verdict.kind is (VerdictKind.VALID if says is None else VerdictKind.INVALID), verdict
    assert says is None or any(says in line for line in verdict.explanation), verdict


@pytest.mark.parametrize(
    ("lines", "final", "is_valid"),
    [
        ([*one(0, "add", ["c", 2], ["c", 2]), *one(1, "read", ["c", None], ["c", 2])], 2, True),
        ([*one(0, "add", ["c", 1], None, "info"), *one(1, "read", ["c", None], ["c", 1])], 1, True),
        ([*one(0, "add", ["c", 1], None, "info"), *one(1, "read", ["c", None], ["c", 0])], 1, True),
        ([*one(0, "add", ["c", 1], None, "info"), *one(1, "read", ["c", None], ["c", 1])], 0, False),
        ([*one(0, "add", ["c", 1], ["c", 1]), *one(1, "read", ["c", None], ["c", 0])], 1, False),
        ([*one(0, "add", ["c", 1], ["c", 1]), *one(1, "read", ["c", None], ["c", 2])], 2, False),
        ([*one(0, "add", ["c", 1], None, "fail")], 1, False),
        ([*one(0, "add", ["c", 1], ["c", 1])], 2, False),
    ],
)
def test_counters(lines: list[Line], final: int, is_valid: bool) -> None:
    verdict = check_counter(history(*lines), {"node1": {"c": final}})
    assert verdict.kind is (VerdictKind.VALID if is_valid else VerdictKind.INVALID), verdict


def test_a_counter_read_beside_an_addition_may_see_it_or_not() -> None:
    for seen in (0, 1):
        lines: list[Line] = [
            (0, "invoke", "add", ["c", 1]),
            (1, "invoke", "read", ["c", None]),
            (1, "ok", "read", ["c", seen]),
            (0, "ok", "add", ["c", 1]),
        ]
        assert check_counter(history(*lines), {}).kind is VerdictKind.VALID


@pytest.mark.parametrize(
    ("lines", "final", "is_valid"),
    [
        ([*one(0, "apply", ["s", 1, 5], None, "info"), *one(1, "apply", ["s", 1, 5], 5)], 5, True),
        ([*one(0, "apply", ["s", 1, 5], 5), *one(1, "apply", ["s", 1, 5], 5)], 5, True),
        ([*one(0, "apply", ["s", 1, 5], 5), *one(1, "apply", ["s", 1, 5], 10)], 10, False),
        ([*one(0, "apply", ["s", 1, 5], None, "info"), *one(1, "apply", ["s", 1, 5], 5)], 10, False),
        ([*one(0, "apply", ["s", 1, 5], 5)], 0, False),
        ([*one(0, "apply", ["s", 1, 5], 5), *one(1, "apply", ["s", 1, 6], 5)], 5, False),
    ],
)
def test_sessions(lines: list[Line], final: int, is_valid: bool) -> None:
    verdict = check_sessions(history(*lines), {"s": final})
    assert verdict.kind is (VerdictKind.VALID if is_valid else VerdictKind.INVALID), verdict


def test_replicas() -> None:
    same = {"a": ("1", 5), "b": ("2", 6)}
    assert check_replicas({"node1": same, "node2": dict(same)}).kind is VerdictKind.VALID
    for other in ({"a": ("1", 5)}, {**same, "a": ("1", 4)}, {**same, "c": ("3", 7)}):
        verdict = check_replicas({"node1": same, "node2": other})
        assert verdict.kind is VerdictKind.INVALID
        assert "node1 and node2 differ" in verdict.explanation[0]

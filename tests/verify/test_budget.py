"""Budgets of CPU and memory: shared by all keys, looked at in every loop, and named when they end a check.

The clock of these tests counts the lines that the checkers run, so a budget ends at the same line on every
machine, and a loop that does not look at it is seen as an overrun.
"""

from __future__ import annotations

import json
import math
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from kvstore.verify import (
    MODELS,
    Event,
    Operation,
    Semantics,
    Verdict,
    VerdictKind,
    check_linearizability,
    check_list_append,
    pair_events,
)
from kvstore.verify.budget import BoundMetError, Budget
from kvstore.verify.history_readers import parse_history
from kvstore.verify.session_checker import check_sessions
from kvstore.verify.verify_command import verify

LINES_PER_SECOND = 1_000_000
"""What the tests take for a second of CPU."""

SLACK_LINES = 6_000
"""Between two readings of the clock: a millisecond or so of Python."""

PACKAGE = str(Path(sys.modules[Budget.__module__].__file__ or "").parent)


class LineClock:
    """CPU seconds as the lines that ran in the checkers since `counting` began."""

    def __init__(self) -> None:
        self.lines = 0

    def __call__(self) -> float:
        return self.lines / LINES_PER_SECOND

    @contextmanager
    def counting(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._count if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _count(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.lines += event == "line"
        return self._count


def numbered(events: Sequence[Event]) -> list[Event]:
    return [event._replace(line=line) for line, event in enumerate(events, start=1)]


def lost_writes(key: str, process: int, count: int) -> list[Event]:
    """Writes of unknown outcome, then a read that no order of them explains: every subset is tried."""
    events = [Event(0, process + n, "invoke", "write", n, key) for n in range(count)]
    reader = process + count
    for f, value in (("write", -1), ("read", -2)):
        events.append(Event(0, reader, "invoke", f, None if f == "read" else value, key))
        events.append(Event(0, reader, "ok", f, value, key))
    return events


def legal(key: str, process: int) -> list[Event]:
    return [Event(0, process, "invoke", "write", 1, key), Event(0, process, "ok", "write", 1, key)]


HARD = 24
"""Lost writes: 24 * 2 ** 24 configurations, for which no budget of these tests suffices."""

EASY = 4
"""Lost writes of a key that is refuted within the budget of a test."""


def register(events: Sequence[Event], budget: Budget) -> Verdict:
    model = MODELS["cas-register"](Semantics.PORCUPINE, None)
    return check_linearizability(pair_events(numbered(events)), model, budget=budget)


@pytest.mark.parametrize("hard_keys", [1, 3])
def test_a_key_without_an_end_keeps_no_other_from_being_refuted(hard_keys: int) -> None:
    hard = [event for n in range(hard_keys) for event in lost_writes(f"hard{n}", 1_000 * n, HARD)]
    easy = [event for n in range(5) for event in lost_writes(f"easy{n}", 100_000 + 1_000 * n, EASY)]
    clock = LineClock()
    with clock.counting():
        assert register(hard, Budget(0.5, clock=clock)).kind is VerdictKind.UNKNOWN
        verdict = register([*hard, *easy], Budget(0.5, clock=clock))
    assert verdict.kind is VerdictKind.INVALID
    assert "easy" in verdict.explanation[0]


def test_a_larger_key_is_refuted_beside_one_without_an_end() -> None:
    """A key is decided when each of the others has used about as much as it needs, whatever its position."""
    clock = LineClock()
    size = HARD + 1
    rare = [*lost_writes("rare", 0, 7), *(event for n in range(size) for event in legal("rare", 500 + n))]
    with clock.counting():
        assert register(rare, Budget(math.inf, clock=clock)).kind is VerdictKind.INVALID
        needed = clock()
        verdict = register([*lost_writes("hard", 1_000, HARD), *rare], Budget(8 * needed, clock=clock))
    assert verdict.kind is VerdictKind.INVALID, "twice what it needs, twice for growing slices, and some more"
    assert "'rare'" in verdict.explanation[0]


def test_undecided_keys_are_named_with_the_bound_that_was_met() -> None:
    clock = LineClock()
    events = [*legal("fine", 0), *lost_writes("hard", 10, HARD), *legal("fine", 1)]
    with clock.counting():
        verdict = register(events, Budget(0.1, clock=clock))
    assert verdict.kind is VerdictKind.UNKNOWN
    assert verdict.explanation == (
        "undecided: 1 of 2 independent groups of keys",
        f"  key 'hard', {HARD + 2} operations: the budget of 0.1 CPU seconds is spent",
    )


def test_memory_is_bounded_and_the_verdict_says_so() -> None:
    tracemalloc.start()
    try:
        verdict = register(lost_writes("hard", 0, HARD), Budget(math.inf, memory_bytes=1 << 20))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert verdict.kind is VerdictKind.UNKNOWN
    assert verdict.explanation[1].endswith("the memory bound of 1 MiB is met")
    assert peak < 2 << 20, "the estimate is far from the truth"


def test_memory_that_one_key_may_not_have_decides_the_others() -> None:
    hard, easy = lost_writes("hard", 0, HARD), lost_writes("easy", 1_000, 8)
    bound = Budget(math.inf, memory_bytes=1 << 20)
    assert "'easy'" in register([*hard, *easy], bound).explanation[0]
    verdict = register([*hard, *legal("fine", 2_000)], bound)
    assert verdict.kind is VerdictKind.UNKNOWN
    assert verdict.explanation[0] == "undecided: 1 of 2 independent groups of keys"


def test_memory_of_large_states_is_counted() -> None:
    appends = [Event(0, n, "invoke", "append", f"{n:03}" * 400, "k") for n in range(30)]
    events = [*appends, Event(0, 99, "invoke", "get", None, "k"), Event(0, 99, "ok", "get", "none", "k")]
    model = MODELS["kv-append"](Semantics.PORCUPINE, None)
    verdict = check_linearizability(
        pair_events(numbered(events)), model, budget=Budget(math.inf, memory_bytes=4 << 20)
    )
    assert verdict.kind is VerdictKind.UNKNOWN
    assert "memory bound of 4 MiB" in verdict.explanation[1]


def test_memory_of_preparing_many_concurrent_operations_is_counted() -> None:
    count = 1_000
    events = [Event(0, n, "invoke", "write", n, "k") for n in range(count)]
    events += [Event(0, n, "ok", "write", n, "k") for n in range(count)]
    verdict = register(events, Budget(math.inf, memory_bytes=1 << 20))
    assert verdict.kind is VerdictKind.UNKNOWN
    assert "memory bound of 1 MiB" in verdict.explanation[1]


def test_memory_of_dependencies_is_counted() -> None:
    events = transactions([[["r", "x", []]]] * 300 + [[["append", "x", n]] for n in range(300)], overlap=True)
    assert check_list_append(pair_events(events)).kind is VerdictKind.VALID
    verdict = check_list_append(pair_events(events), budget=Budget(math.inf, memory_bytes=1 << 20))
    assert verdict.kind is VerdictKind.UNKNOWN
    assert verdict.explanation == ("undecided: the memory bound of 1 MiB is met",)


def test_the_command_shares_its_budget_between_reading_and_judging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard, long = tmp_path / "hard.json", tmp_path / "long.json"
    hard.write_text(text_of(lost_writes("k", 0, HARD), "json"))
    long.write_text(text_of(LONG, "json"))
    clock = LineClock()
    monkeypatch.setattr("kvstore.verify.verify_command.Budget", lambda cpu_s: Budget(cpu_s, clock=clock))
    with clock.counting():
        reading = CliRunner().invoke(verify, ["check", str(long), "--model=list-append", "--budget-s=0.01"])
        judging = CliRunner().invoke(verify, ["check", str(hard), "--model=register", "--budget-s=0.2"])
    assert clock() <= 1.05 * 0.21 + 2 * SLACK_LINES / LINES_PER_SECOND
    assert (reading.exit_code, judging.exit_code) == (2, 2)
    assert "the budget of 0.01 CPU seconds is spent, while the history was read" in reading.output
    assert "1 of 1 independent groups" in judging.output
    assert "the budget of 0.2 CPU seconds is spent" in judging.output


def test_a_cycle_that_is_found_refutes_even_if_the_budget_ends_before_it_is_described() -> None:
    operations = pair_events(large_cycle(500))
    kinds = []
    for hundredths in range(2, 40):
        clock = LineClock()
        with clock.counting():
            verdict = check_list_append(operations, budget=Budget(hundredths / 100, clock=clock))
        kinds.append(verdict.kind)
        if any("a cycle among 500 transactions" in line for line in verdict.explanation):
            assert "one of them on line 1; the budget of" in verdict.explanation[0]
            break
    else:
        raise AssertionError(f"no budget ended between finding and describing: {kinds}")
    assert verdict.kind is VerdictKind.INVALID


# --- every loop looks at the budget ---


def transactions(done: Sequence[list[list[Any]]], *, overlap: bool) -> list[Event]:
    """Transactions one after another, or all open at once."""
    asked = [[[f, k, v if f == "append" else None] for f, k, v in mops] for mops in done]
    begun = [Event(0, n, "invoke", "txn", mops) for n, mops in enumerate(asked)]
    ended = [Event(0, n, "ok", "txn", mops) for n, mops in enumerate(done)]
    if overlap:
        return numbered([*begun, *ended])
    return numbered([event for pair in zip(begun, ended, strict=True) for event in pair])


def growing_lists(count: int, *, overlap: bool = False) -> list[Event]:
    return transactions(
        [[["r", n % 5, list(range(n // 5))], ["append", n % 5, n // 5]] for n in range(count)],
        overlap=overlap,
    )


def phantoms(count: int) -> list[Event]:
    return transactions(
        [*([["r", "x", list(range(n))]] for n in range(40)), *([["r", n, [1]]] for n in range(count))],
        overlap=False,
    )


def large_cycle(count: int) -> list[Event]:
    """Everyone reads what the next one appended, all at once: one component of all transactions."""
    return transactions([[["append", n, 1], ["r", (n + 1) % count, [1]]] for n in range(count)], overlap=True)


def text_of(events: Sequence[Event], form: str) -> str:
    plain = [{"process": e.process, "type": e.type, "f": e.f, "value": e.value} for e in events]
    if form == "json":
        return json.dumps(plain, indent=1)
    if form == "json lines":
        return "".join(json.dumps(event) + "\n" for event in plain)
    values = [json.dumps(event["value"]).replace("null", "nil") for event in plain]
    if form == "log":
        return "".join(
            f"INFO  jepsen.util - {e.process} :{e.type} :{e.f} {value}\n"
            for e, value in zip(events, values, strict=True)
        )
    lines = [
        f"{{:process {e.process}, :type :{e.type}, :f :{e.f}, :value {value}}}"
        for e, value in zip(events, values, strict=True)
    ]
    return "\n".join(["[", *lines, "]"])


def concurrent_reads(count: int) -> list[Event]:
    """A write, and reads all at once, of which the last to return sees another value."""
    events = [Event(0, 0, "invoke", "write", 1), Event(0, 0, "ok", "write", 1)]
    events += [Event(0, n, "invoke", "read", None) for n in range(1, count)]
    return events + [Event(0, n, "ok", "read", 1 if n < count - 1 else 2) for n in range(1, count)]


def reads_in_sequence(count: int) -> list[Event]:
    return [
        Event(0, n, kind, "read", None if kind == "invoke" else 1)
        for n in range(count)
        for kind in ("invoke", "ok")
    ]


def wide_transactions(count: int) -> list[Event]:
    mops = [[["w", key, n] for key in range(200)] for n in range(count)]
    return [Event(0, n, kind, "txn", mops[n]) for n in range(count) for kind in ("invoke", "ok")]


def requests(count: int) -> list[Event]:
    events = []
    for n in range(count):
        asked = [n % 7, n, 1]
        events += [Event(0, n, "invoke", "apply", asked), Event(0, n, "info", "apply", asked)]
    return events


class Case(NamedTuple):
    """A check that is long for one of its loops."""

    given: Any
    check: Callable[[Any, Budget], object]


def operations_of(events: Sequence[Event]) -> list[Operation]:
    return pair_events(numbered(events))


def linearizable(model: str) -> Callable[[Sequence[Operation], Budget], Verdict]:
    chosen = MODELS[model](Semantics.PORCUPINE, None)
    return lambda operations, budget: check_linearizability(operations, chosen, budget=budget)


def append_check(operations: Sequence[Operation], budget: Budget) -> Verdict:
    return check_list_append(operations, budget=budget)


def sessions_check(operations: Sequence[Operation], budget: Budget) -> Verdict:
    return check_sessions(operations, dict.fromkeys(range(7), 10**6), budget=budget)


def read(text: str, budget: Budget) -> Verdict | None:
    try:
        pair_events(budget.each(parse_history(text, budget=budget)))
    except BoundMetError as bound:
        return Verdict(VerdictKind.UNKNOWN, 0, (str(bound),))
    return None


LONG = growing_lists(600)
CASES = {
    "reading edn": Case(text_of(LONG[:300], "edn"), read),
    "reading json": Case(text_of(LONG * 4, "json"), read),
    "reading json lines": Case(text_of(LONG * 4, "json lines"), read),
    "reading a log": Case(text_of(LONG[:300], "log"), read),
    "partition": Case(operations_of(wide_transactions(60)), linearizable("multi-register")),
    "preparation": Case(operations_of(reads_in_sequence(4_000)), linearizable("register")),
    "observations": Case(operations_of(concurrent_reads(600)), linearizable("register")),
    "subsets": Case(operations_of(lost_writes("k", 0, 7)), linearizable("register")),
    "sessions": Case(operations_of(requests(1_500)), sessions_check),
    "list-append": Case(pair_events(growing_lists(2_000)), append_check),
    "list-append, all open": Case(pair_events(growing_lists(2_000, overlap=True)), append_check),
    "phantoms": Case(pair_events(phantoms(2_000)), append_check),
    "cycles": Case(pair_events(large_cycle(500)), append_check),
}


@pytest.mark.parametrize("name", CASES)
def test_no_loop_overruns_the_budget_by_more_than_a_twentieth(name: str) -> None:
    given, check = CASES[name]
    clock = LineClock()
    with clock.counting():
        check(given, Budget(math.inf, clock=clock))
    whole_s = clock()
    assert whole_s * LINES_PER_SECOND > 10 * SLACK_LINES, "too short to show an overrun"
    for tenths in (1, 3, 5, 7, 9):
        clock = LineClock()
        budget = Budget(whole_s * tenths / 10, clock=clock)
        with clock.counting():
            verdict = check(given, budget)
        assert clock() <= 1.05 * budget.cpu_s + SLACK_LINES / LINES_PER_SECOND, f"{tenths} tenths"
        assert isinstance(verdict, Verdict)
        if verdict.kind is VerdictKind.UNKNOWN:
            assert "CPU seconds is spent" in verdict.explanation[-1]

"""Exactly-once requests: one request id, one effect, one answer, however often and wherever it is sent.

Operations are `apply` with [session, number, amount]: the request `number` of `session`, which adds
`amount` to the session's counter. Its answer, when ok, is the counter after it. The same request may stand
in the history many times, sent again through other members after an unknown outcome.

All attempts at a request are one operation, which takes effect between the call of the first and the end of
the first that was answered; a search for one order of these, read at the end, then says whether each took
effect once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvstore.verify.budget import BUDGET_S_DEFAULT, BoundMetError, Budget, undecided
from kvstore.verify.linearizability import check_linearizability
from kvstore.verify.models import INCONSISTENT, Step
from kvstore.verify.operation_history import Operation, Outcome, Verdict, VerdictKind
from kvstore.verify.set_checker import conclude

Request = tuple[Any, int]
"""A session and a number."""


class _Counters:
    """One counter per session: `apply` adds and answers with the sum, `final` reads."""

    initial: Hashable = 0

    def step(self, operation: Operation) -> Step:
        answer = operation.completed if operation.outcome is Outcome.OK else None
        amount = 0 if operation.f == "final" else operation.invoked[2]
        return Step(operation.f, amount, answer, observes=operation.f == "final")

    def move(self, state: Any, step: Step) -> Any:
        after = state + step.first
        return after if step.second is None or step.second == after else INCONSISTENT

    def keys(self, operation: Operation) -> tuple[Hashable, ...]:
        return (operation.invoked[0],)


def check_sessions(
    operations: Sequence[Operation],
    finals: Mapping[Any, int],
    *,
    budget_s: float = BUDGET_S_DEFAULT,
    budget: Budget | None = None,
) -> Verdict:
    """Judge a history of requests. `finals` is each session's counter at the end.

    Unknown when no order was found or excluded within `budget_s` CPU seconds, or what is left of a `budget`
    begun, and for a history without requests.
    """
    budget = budget or Budget(budget_s)
    try:
        verdict = conclude(operations, _contradictions(budget.each(operations)))
        if verdict.kind is VerdictKind.INVALID or not operations:
            return verdict
        merged = _merged(budget.each(sorted(operations, key=lambda op: op.call)))
        requests = [*merged.values(), *budget.each(_ends(operations, finals))]
    except BoundMetError as bound:
        return undecided(len(operations), f"undecided: {bound}, before the search began")
    searched = check_linearizability(requests, _Counters(), budget=budget)
    return replace(searched, operations=len(operations))


def _contradictions(operations: Iterable[Operation]) -> Iterator[str]:
    """What no order can explain: one request with two amounts, or with two answers."""
    amounts: dict[Request, int] = {}
    answers: dict[Request, Any] = {}
    for operation in operations:
        session, number, amount = operation.invoked
        request = (session, number)
        if amounts.setdefault(request, amount) != amount:
            yield f"one number was given to two requests: {operation.describe()}"
        if operation.outcome is not Outcome.OK:
            continue
        if answers.setdefault(request, operation.completed) != operation.completed:
            yield f"answered {answers[request]!r} before, now {operation.describe()}"


def _merged(operations: Iterable[Operation]) -> dict[Request, Operation]:
    """One operation for all attempts at a request, in the order of calls; none for a request that certainly
    failed each time."""
    merged: dict[Request, Operation] = {}
    for operation in operations:
        if operation.outcome is Outcome.FAIL:
            continue
        request = (operation.invoked[0], operation.invoked[1])
        known = merged.setdefault(request, operation)
        if operation.ret is not None and (known.ret is None or operation.ret < known.ret):
            merged[request] = replace(
                known, outcome=Outcome.OK, completed=operation.completed, ret=operation.ret
            )
    return merged


def _ends(operations: Sequence[Operation], finals: Mapping[Any, int]) -> Iterator[Operation]:
    """The counters at the end, as reads after everything."""
    end = max((max(op.call, op.ret or 0) for op in operations), default=0)
    sessions = dict.fromkeys([*(operation.invoked[0] for operation in operations), *finals])
    for position, session in enumerate(sessions):
        yield Operation(
            process="end",
            f="final",
            key=None,
            invoked=(session,),
            completed=finals.get(session, 0),
            outcome=Outcome.OK,
            call=end + 1 + 2 * position,
            ret=end + 2 + 2 * position,
            line=0,
        )

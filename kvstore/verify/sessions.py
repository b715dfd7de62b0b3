"""Exactly-once requests: one request id, one effect, one answer, however often and wherever it is sent.

Operations are `apply` with [session, number, amount]: the request `number` of `session`, which adds
`amount` to the session's counter. Its answer, when ok, is the counter after it. The same request may stand
in the history many times, sent again through other members after an unknown outcome.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvstore.verify.history import Operation, Outcome, Verdict
from kvstore.verify.sets import conclude


def check_sessions(operations: Sequence[Operation], finals: Mapping[Any, int]) -> Verdict:
    """Judge a history of requests. `finals` is each session's counter at the end."""
    return conclude(len(operations), _findings(operations, finals))


def _findings(operations: Sequence[Operation], finals: Mapping[Any, int]) -> Iterator[str]:
    amounts: dict[tuple[Any, int], int] = {}
    answers: dict[tuple[Any, int], Any] = {}
    acknowledged: dict[Any, int] = {}
    attempted: dict[Any, int] = {}
    possible: dict[tuple[Any, int], bool] = {}
    for operation in operations:
        session, number, amount = operation.invoked
        request = (session, number)
        if amounts.setdefault(request, amount) != amount:
            yield f"one number was given to two requests: {operation.describe()}"
        if operation.outcome is not Outcome.FAIL and request not in possible:
            possible[request] = True
            attempted[session] = attempted.get(session, 0) + amount
        if operation.outcome is not Outcome.OK:
            continue
        if request not in answers:
            acknowledged[session] = acknowledged.get(session, 0) + amount
        if answers.setdefault(request, operation.completed) != operation.completed:
            yield f"answered {answers[request]!r} before, now {operation.describe()}"
    for session in attempted:
        low, high, found = acknowledged.get(session, 0), attempted[session], finals.get(session, 0)
        if not low <= found <= high:
            yield f"session {session!r} ends at {found}, not between {low} and {high}"

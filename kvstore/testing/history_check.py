"""Checks the clients' history: by the store's revisions, and key by key by search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvstore.testing.simulation_judge import Broken
from kvstore.verify import (
    MODELS,
    Event,
    Operation,
    Outcome,
    Semantics,
    VerdictKind,
    check_linearizability,
    check_revisions,
    pair_events,
)

SEARCH_BUDGET_S = 1.0
"""CPU seconds for the cross-check of one key by search; an undecided search counts for nothing."""

SEARCH_OPERATIONS_MAX = 400
"""Longer histories of one key are checked by revisions only."""

OTHER_KEY = "other"
OTHER_PROCESS = 1 << 40
"""Key and first process of writes of which only the revision is known. Clients number theirs from 1."""

LINEARIZABLE = "the history is linearizable"


def judge_history(events: Sequence[Event], keys: Sequence[str]) -> tuple[bool, int]:
    """Whether the revisions decided, and how many keys the search checked as well.

    Raises Broken when the history is not linearizable.
    """
    operations = pair_events(events)
    verdict = check_revisions(operations)
    if verdict.kind is VerdictKind.INVALID:
        raise Broken(LINEARIZABLE, "; ".join(verdict.explanation[:3]))
    decided = verdict.kind is not VerdictKind.UNKNOWN
    searched = 0
    for key in keys:
        register = _as_register(operations, key)
        if decided and len(register) > SEARCH_OPERATIONS_MAX:
            continue
        found = check_linearizability(
            register, MODELS["cas-register"](Semantics.PORCUPINE, None), budget_s=SEARCH_BUDGET_S
        )
        if found.kind is VerdictKind.INVALID:
            raise Broken(LINEARIZABLE, "; ".join(found.explanation[:3]))
        searched += found.kind is VerdictKind.VALID
    return decided, searched


def with_other_revisions(events: Sequence[Event], revisions: Sequence[int]) -> list[Event]:
    """The history plus writes at these revisions, to a key without readers, at any time during the run."""
    count = len(revisions)
    begun = [
        Event(position + 1, OTHER_PROCESS + position, "invoke", "put", [OTHER_KEY, f"{revision}"])
        for position, revision in enumerate(revisions)
    ]
    shifted = [event._replace(line=event.line + count) for event in events]
    done = [
        Event(
            count + len(events) + position + 1, OTHER_PROCESS + position, "ok", "put", {"revision": revision}
        )
        for position, revision in enumerate(revisions)
    ]
    return begun + shifted + done


def _as_register(operations: Sequence[Operation], key: str) -> list[Operation]:
    """One key's operations as those of a register; serializable reads guarantee nothing to it."""
    register = []
    for operation in operations:
        if operation.invoked[0] != key or (operation.f == "get" and len(operation.invoked) > 1):
            continue
        if operation.f == "get":
            completed = operation.completed and operation.completed["value"]
            register.append(_replaced(operation, "read", None, completed))
        elif operation.f == "cas":
            failed = operation.outcome is Outcome.OK and not operation.completed["succeeded"]
            if operation.outcome is Outcome.FAIL:
                continue  # never applied, so its comparison shows nothing
            outcome = Outcome.FAIL if failed else operation.outcome
            register.append(_replaced(operation, "cas", operation.invoked[1:], None, outcome))
        else:
            value = operation.invoked[1] if operation.f == "put" else None
            register.append(_replaced(operation, "write", value, value))
    return register


def _replaced(
    operation: Operation, f: str, invoked: Any, completed: Any, outcome: Outcome | None = None
) -> Operation:
    return Operation(
        process=operation.process,
        f=f,
        key=operation.invoked[0],
        invoked=invoked,
        completed=completed,
        outcome=outcome or operation.outcome,
        call=operation.call,
        ret=operation.ret,
        line=operation.line,
    )

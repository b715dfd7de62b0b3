"""Which checkers apply to a run, and what they say together."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kvstore.verify.lease_checker import check_leases
from kvstore.verify.linearizability import check_linearizability
from kvstore.verify.list_append import check_list_append
from kvstore.verify.lock_checker import check_locks
from kvstore.verify.models import MODELS, Semantics
from kvstore.verify.operation_history import Operation, Outcome, Verdict, VerdictKind
from kvstore.verify.replica_checker import Contents, check_replicas
from kvstore.verify.revision_witness import check_revisions
from kvstore.verify.set_checker import check_counter, check_set
from kvstore.verify.transaction_checker import as_multi_register, check_transactions
from kvstore.verify.watch_checker import check_watches

SEARCH_BUDGET_S = 60.0
"""CPU seconds of the search of one run."""

EMPTY_REVISION = 1
"""Of an empty store: every run begins with one."""


@dataclass(slots=True, kw_only=True)
class Check:
    name: str
    kind: VerdictKind
    operations: int
    seconds: float
    explanation: Sequence[str] = field(default=())
    prefix: Sequence[int] = field(default=())
    """As in `Verdict`."""
    stuck: int | None = None


@dataclass(slots=True, kw_only=True)
class Finals:
    """What the members hold when everything is over, at one revision."""

    contents: Mapping[str, Contents]
    """By member: key -> (value, mod, create, version, lease)."""
    revision: int
    compacted_through: int | None = None
    """No history above this revision was compacted during the run; None when that is not known."""

    def keys(self, prefix: str) -> dict[str, Collection[str]]:
        return {name: [key for key in held if key.startswith(prefix)] for name, held in self.contents.items()}

    def versions(self, prefix: str) -> dict[str, dict[str, int]]:
        return {
            name: {key: int(str(row[3])) for key, row in held.items() if key.startswith(prefix)}
            for name, held in self.contents.items()
        }


def judge(workload: str, operations: Sequence[Operation], finals: Finals) -> list[Check]:
    """Every check that applies. Raises ValueError for a history of another form."""
    checks = [_timed(name, run) for name, run in _checks(workload, operations, finals).items()]
    checks.append(_timed("replicas agree", lambda: check_replicas(finals.contents)))
    return checks


def _checks(
    workload: str, operations: Sequence[Operation], finals: Finals
) -> dict[str, Callable[[], Verdict]]:
    def search(model: str, history: Sequence[Operation]) -> Verdict:
        chosen = MODELS[model](Semantics.PORCUPINE, None)
        return check_linearizability(history, chosen, budget_s=SEARCH_BUDGET_S)

    table: dict[str, dict[str, Callable[[], Verdict]]] = {
        "register": {
            "revision witness": lambda: check_revisions(operations, begins_at=EMPTY_REVISION),
            "search": lambda: search("cas-register", as_register(operations)),
        },
        "txn": {
            "revision witness": lambda: check_transactions(operations, begins_at=EMPTY_REVISION),
            "search": lambda: search("multi-register", as_multi_register(operations)),
        },
        "append": {"list-append": lambda: check_list_append(operations)},
        "set": {"set": lambda: check_set(operations, finals.keys("s/"))},
        "counter": {"counter": lambda: check_counter(operations, finals.versions("c/"))},
        "watch": {"watch": lambda: check_watches(operations, compacted_through=finals.compacted_through)},
        "lock": {"lock": lambda: check_locks(operations, fenced=False)},
        "lock-fenced": {"lock with fencing": lambda: check_locks(operations, fenced=True)},
        "lease": {
            "lease": lambda: check_leases(
                operations, sorted({k for held in finals.keys("lease/").values() for k in held})
            )
        },
    }
    return table[workload]


def _timed(name: str, run: Callable[[], Verdict]) -> Check:
    began = time.monotonic()
    verdict = run()
    return Check(
        name=name,
        kind=verdict.kind,
        operations=verdict.operations,
        seconds=round(time.monotonic() - began, 3),
        explanation=verdict.explanation,
        prefix=verdict.prefix,
        stuck=verdict.stuck,
    )


def as_register(operations: Sequence[Operation]) -> list[Operation]:
    """A revisioned history as operations of the cas-register model, without the weaker serializable reads."""
    converted = []
    for operation in operations:
        key, *rest = operation.invoked
        f, outcome, completed = operation.f, operation.outcome, operation.completed
        if f == "get":
            if rest or outcome is not Outcome.OK:
                continue
            converted.append(
                replace(operation, f="read", key=key, invoked=None, completed=completed["value"])
            )
        elif f == "cas":
            if outcome is Outcome.OK and not completed["succeeded"]:
                outcome = Outcome.FAIL
            elif outcome is Outcome.FAIL:
                continue  # it never ran, so it observed nothing
            converted.append(
                replace(operation, key=key, invoked=list(rest), completed=list(rest), outcome=outcome)
            )
        elif outcome is not Outcome.FAIL:
            value = rest[0] if f == "put" else None
            converted.append(replace(operation, f="write", key=key, invoked=value, completed=value))
    return converted


def deciding(checks: Sequence[Check]) -> list[VerdictKind]:
    """The verdicts that count: where the witness had to guess, the search has the last word."""
    searched = any(check.name == "search" and check.kind is not VerdictKind.UNKNOWN for check in checks)
    return [
        check.kind
        for check in checks
        if not (searched and check.name == "revision witness" and check.kind is VerdictKind.UNKNOWN)
    ]


def disagreement(checks: Sequence[Check]) -> str | None:
    """Where two checkers of one history contradict each other: one of them is wrong."""
    by_name = {check.name: check.kind for check in checks}
    witness, search = by_name.get("revision witness"), by_name.get("search")
    if witness is None or search is None or VerdictKind.UNKNOWN in (witness, search):
        return None
    if witness is VerdictKind.VALID and search is VerdictKind.INVALID:
        return "the revision witness finds an order, the search says there is none"
    return None

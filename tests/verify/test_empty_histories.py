"""A verdict made from nothing is no evidence: an empty history is unknown, whichever checker is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

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
    check_revisions,
    pair_events,
)
from kvstore.verify.lease_checker import check_leases
from kvstore.verify.lock_checker import check_locks
from kvstore.verify.replica_checker import check_replicas
from kvstore.verify.session_checker import check_sessions
from kvstore.verify.set_checker import check_counter, check_set
from kvstore.verify.transaction_checker import check_transactions
from kvstore.verify.verify_command import verify
from kvstore.verify.watch_checker import check_watches


def _searched(model: str) -> Callable[[Sequence[Operation]], Verdict]:
    return lambda operations: check_linearizability(operations, MODELS[model](Semantics.KNOSSOS, None))


CHECKERS: dict[str, Callable[[Sequence[Operation]], Verdict]] = {
    **{model: _searched(model) for model in MODELS},
    "list-append": check_list_append,
    "revisions": check_revisions,
    "transactions": check_transactions,
    "set": lambda operations: check_set(operations, {"node1": []}),
    "counter": lambda operations: check_counter(operations, {"node1": {}}),
    "leases": check_leases,
    "locks": lambda operations: check_locks(operations, fenced=False),
    "locks with fencing": lambda operations: check_locks(operations, fenced=True),
    "sessions": lambda operations: check_sessions(operations, {}),
    "watches": check_watches,
}


@pytest.mark.parametrize("name", CHECKERS)
def test_an_empty_history_is_unknown(name: str) -> None:
    verdict = CHECKERS[name]([])
    assert verdict.kind is VerdictKind.UNKNOWN
    assert verdict.operations == 0
    assert verdict.explanation[0].startswith("nothing to judge")


FAILED = {
    "register": ("write", 1),
    "cas-register": ("cas", [1, 2]),
    "multi-register": ("txn", [["w", "k", 1]]),
    "kv-append": ("put", "x"),
    "mutex": ("acquire", None),
    "list-append": ("txn", [["append", "k", 1]]),
    "revisions": ("put", ["k", "v"]),
    "transactions": ("txn", [["w", "k", "v"]]),
    "set": ("add", "s/1"),
    "counter": ("add", ["c", 1]),
}


@pytest.mark.parametrize("name", FAILED)
def test_a_history_of_operations_that_failed_is_unknown(name: str) -> None:
    f, value = FAILED[name]
    operations = pair_events([Event(1, 0, "invoke", f, value), Event(2, 0, "fail", f, value)])
    assert CHECKERS[name](operations).kind is VerdictKind.UNKNOWN


def test_replicas_of_which_none_was_read_are_unknown() -> None:
    assert check_replicas({}).kind is VerdictKind.UNKNOWN
    both_read_and_empty = check_replicas({"node1": {}, "node2": {}})
    assert both_read_and_empty.kind is VerdictKind.VALID


def test_what_the_members_hold_refutes_even_an_empty_history() -> None:
    assert check_set([], {"node1": ["s/1"]}).kind is VerdictKind.INVALID
    assert check_leases([], ["lease/1"]).kind is VerdictKind.INVALID


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n \n",
        "[]",
        "()",
        "; only a comment\n",
        "[\n]",
        "{:process :nemesis, :type :info, :f :kill, :value nil}\n",
    ],
)
@pytest.mark.parametrize("model", [*MODELS, "list-append"])
def test_the_command_says_unknown(text: str, model: str, tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text(text)
    result = CliRunner().invoke(verify, ["check", str(path), "--model", model])
    assert result.exit_code == VerdictKind.UNKNOWN
    assert result.output.startswith("unknown: 0 operations\nnothing to judge")

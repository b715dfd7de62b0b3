"""`kvstore verify`: the checkers from a shell."""

from __future__ import annotations

import sys

import click

from kvstore.verify.budget import BUDGET_S_DEFAULT, BoundMetError, Budget, undecided
from kvstore.verify.edn import EdnError, parse_all
from kvstore.verify.history_readers import read_history
from kvstore.verify.linearizability import check_linearizability
from kvstore.verify.list_append import check_list_append
from kvstore.verify.models import MODELS, Semantics
from kvstore.verify.operation_history import Verdict, pair_events

EXIT_UNREADABLE = 3
"""The file could not be read as a history; 0, 1 and 2 are the verdicts valid, invalid, unknown."""


_network = click.option(
    "--network",
    type=click.Choice(["auto", "relay", "namespaces"]),
    default="relay",
    show_default=True,
    help="Partition by relays, or by network namespaces, which need root; auto: namespaces if available.",
)
_directory = click.option("--directory", type=click.Path(), default="jepsen", show_default=True)


@click.group()
def verify() -> None:
    """Judge recorded histories of concurrent operations."""


@verify.command()
@click.argument("file", type=click.Path())
@click.option(
    "--model", type=click.Choice([*MODELS, "list-append"]), required=True, help="What was operated on."
)
@click.option(
    "--semantics",
    type=click.Choice([choice.value for choice in Semantics]),
    default=Semantics.PORCUPINE.value,
    show_default=True,
    help="porcupine: a failed cas observed another value, nil is a value; "
    "knossos: failed operations are dropped, a nil read matches anything.",
)
@click.option("--initial", metavar="V", default=None, help="State at the start, in EDN.  [default: nil]")
@click.option(
    "--budget-s",
    type=click.FloatRange(min=0.001),
    default=BUDGET_S_DEFAULT,
    show_default=True,
    help="CPU seconds, to read and to judge; what is undecided then is unknown.",
)
def check(file: str, model: str, semantics: str, initial: str | None, budget_s: float) -> None:
    """Check FILE and explain the verdict.

    Reads Jepsen's EDN, JSON, and Porcupine's logs. Exit code: 0 valid, 1 invalid, 2 unknown (a bound was
    met first, or there was nothing to judge), 3 the file could not be read.
    """
    budget = Budget(budget_s)
    try:
        operations = pair_events(budget.each(read_history(file, budget=budget)))
        if model == "list-append":
            verdict = check_list_append(operations, budget=budget)
        else:
            chosen = MODELS[model](Semantics(semantics), _initial(initial))
            verdict = check_linearizability(operations, chosen, budget=budget)
    except BoundMetError as bound:
        verdict = undecided(0, f"undecided: {bound}, while the history was read")
    except ValueError as error:  # HistoryError, or an operation outside the model's vocabulary
        click.echo(f"Error: {file}: {error}", err=True)
        sys.exit(EXIT_UNREADABLE)
    _report(verdict)
    sys.exit(int(verdict.kind))


@verify.command()
@click.option("--workload", default="register", show_default=True, help="What the clients do.")
@click.option(
    "--nemesis", default="", help="What is done to the members: names with commas; by default nothing."
)
@click.option("--nodes", type=int, default=3, show_default=True, help="Members: 3, 5 or 7.")
@click.option("--seconds", type=float, default=30.0, show_default=True, help="How long clients work.")
@click.option("--rate", type=float, default=600.0, show_default=True, help="Operations a second aimed at.")
@click.option("--slots", type=int, default=16, show_default=True, help="Logical clients.")
@click.option("--seed", type=int, default=None, help="Everything is drawn from it.  [default: a new one]")
@_network
@_directory
def run(
    workload: str, nemesis: str, directory: str, seed: int | None, network: str, **numbers: float
) -> None:
    """Test a new local cluster: clients, faults, judgement.

    Exit code: 0 valid, 1 invalid, 2 unknown or inconclusive, 3 it could not be carried out.
    """
    from kvstore.verify.run.run_command import run_once  # the cluster's parts; `check` does without

    nemeses = tuple(name for name in nemesis.split(",") if name)
    done = run_once(
        workload=workload, nemeses=nemeses, directory=directory, seed=seed, network=network, **numbers
    )
    sys.exit(done)


@verify.command()
@click.option("--minutes", type=click.FloatRange(min=0.5), default=10.0, show_default=True)
@click.option("--nodes", type=int, default=3, show_default=True, help="Members: 3, 5 or 7.")
@click.option("--rate", type=float, default=800.0, show_default=True, help="Operations a second aimed at.")
@click.option("--seed", type=int, default=None, help="Everything is drawn from it.  [default: a new one]")
@_network
@_directory
def rotate(minutes: float, directory: str, seed: int | None, network: str, **numbers: float) -> None:
    """Test new local clusters one after another, over workloads and faults.

    Exit code: 0 when every run is valid, 1 when one is invalid, 2 when one is unknown or inconclusive.
    """
    from kvstore.verify.run.run_command import run_rotation  # the cluster's parts; `check` does without

    sys.exit(run_rotation(minutes=minutes, directory=directory, seed=seed, network=network, **numbers))


def _initial(text: str | None) -> object:
    if text is None:
        return None
    try:
        forms = parse_all(text)
    except EdnError as error:
        raise click.BadParameter(str(error), param_hint="--initial") from error
    return forms[0][0] if forms else None


def _report(verdict: Verdict) -> None:
    click.echo(f"{verdict.kind.name.lower()}: {verdict.operations} operations")
    for line in verdict.explanation:
        click.echo(line)

"""The commands of a local cluster, mounted by `cluster.py` and as `kvstore cluster`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import IO, Any, TypeVar

import click

from kvstore.devcluster import control, session
from kvstore.devcluster.display import banner, best_display, plain_table
from kvstore.devcluster.plan import NODES_MAX, ClusterError, ClusterPlan, Running, load, prepare, save

_FOLLOW_INTERVAL_S = 0.2

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _OneLine(click.ClickException):
    """A ClusterError as the command line shows it."""


class _Command(click.Command):
    """A command whose ClusterErrors end it with one line and exit code 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ClusterError as error:
            raise _OneLine(str(error)) from error


class _Group(click.Group):
    """The group: its commands share `_Command`, and the tour is loaded only when asked for."""

    command_class = _Command

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), "demo"])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name == "demo":
            command: click.Command = import_module("kvstore.devcluster.demo").demo
            return command
        return super().get_command(context, name)


def _directory(function: _Function) -> _Function:
    return click.option(
        "--directory",
        type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
        default=".cluster",
        show_default=True,
        help="State, data and logs of the cluster.",
    )(function)


_who = click.argument("node", metavar="N|leader")


@click.group(cls=_Group)
def cluster() -> None:
    """Run a local cluster of real processes, and do faults to it."""


@cluster.command()
@click.option("--nodes", type=click.IntRange(1, NODES_MAX), help="Number of nodes (3 for a new cluster).")
@click.option("--foreground", is_flag=True, help="Stay, show the cluster, stop it on Ctrl-C.")
@click.option("--no-proxy", is_flag=True, help="Connect nodes directly; partitions are then impossible.")
@click.option("--free-ports", is_flag=True, help="Give a new cluster free ports, not 2379, 22379, 32379.")
@click.argument("server_arguments", nargs=-1, metavar="[-- SERVER FLAGS]")
@_directory
def up(
    nodes: int | None,
    foreground: bool,
    no_proxy: bool,
    free_ports: bool,
    server_arguments: tuple[str, ...],
    directory: Path,
) -> None:
    """Start the cluster; its data from earlier runs is kept."""
    plan = prepare(
        directory, nodes=nodes, free=free_ports, proxied=not no_proxy, server_arguments=server_arguments
    )
    if foreground:
        asyncio.run(session.run(plan, best_display()))
        return
    with session.directory_lock(directory):
        plan.check_ports()  # before they are recorded: the next `up` would choose them again
        save(plan, Running())  # so that the supervisor finds the very ports chosen here
    arguments = [f"--directory={directory}", *(["--no-proxy"] if no_proxy else []), "--", *server_arguments]
    asyncio.run(session.start_in_background(plan, arguments))
    click.echo(banner(plan))


@cluster.command()
@_directory
def status(directory: Path) -> None:
    """Show every node: process, role, term, indices."""
    rows = session.ask(directory, "status")
    click.echo(plain_table([control.status_from(row) for row in rows]))


def _node_command(name: str, text: str) -> None:
    """Add a command that the supervisor carries out on one node, under the same name."""

    @cluster.command(name, help=text)
    @_who
    @_directory
    def command(node: str, directory: Path) -> None:
        click.echo(session.ask(directory, name, node))


_node_command("kill", "Kill a node's process (SIGKILL).")
_node_command("pause", "Stop a node's process where it stands (SIGSTOP).")
_node_command("resume", "Let a paused node go on (SIGCONT).")
_node_command("restart", "Start a node on its data, stopping it first if it runs.")
_node_command("isolate", "Partition one node from all others.")


@cluster.command()
@click.argument("groups", metavar="A,B|C")
@_directory
def partition(groups: str, directory: Path) -> None:
    """Split the network: only nodes of one group hear one another (quote the bar)."""
    click.echo(session.ask(directory, "partition", groups))


@cluster.command()
@_directory
def heal(directory: Path) -> None:
    """End the partition."""
    click.echo(session.ask(directory, "heal"))


@cluster.command()
@click.argument("node", required=False, metavar="[N]")
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is logged.")
@_directory
def logs(node: str | None, follow: bool, directory: Path) -> None:
    """Print the log of one node, or of all each line prefixed by its name."""
    recorded = load(directory)
    if recorded is None:
        raise ClusterError(f"there is no cluster in {directory}")
    plan, _ = recorded
    numbers = [plan_number(plan, node)] if node else [member.number for member in plan.nodes]
    with ExitStack() as files:
        tails: list[tuple[str, IO[str]]] = []
        for number in numbers:
            path = plan.log_file(plan.node(number))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            file = files.enter_context(path.open(encoding="utf-8", errors="replace"))
            tails.append((f"node{number} | " if len(numbers) > 1 else "", file))
        asyncio.run(_print(tails, follow))


def plan_number(plan: ClusterPlan, text: str) -> int:
    """Return the number of the node named by `2` or `node2`."""
    digits = text.removeprefix("node")
    if not digits.isdigit():
        raise ClusterError(f"{text!r} is no node's number")
    return plan.node(int(digits)).number


async def _print(tails: list[tuple[str, IO[str]]], follow: bool) -> None:
    while True:
        for line in _new_lines(tails):
            click.echo(line)
        if not follow:
            return
        await asyncio.sleep(_FOLLOW_INTERVAL_S)


def _new_lines(tails: list[tuple[str, IO[str]]]) -> Iterator[str]:
    for prefix, file in tails:
        for line in file:
            yield prefix + line.rstrip("\n")


@cluster.command()
@_directory
def down(directory: Path) -> None:
    """Stop every node and the supervisor; data is kept."""
    orphans = asyncio.run(session.down(directory))
    click.echo(
        f"cluster stopped; its supervisor was gone, {orphans} nodes were killed"
        if orphans
        else "cluster stopped"
    )

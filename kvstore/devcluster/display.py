"""How a cluster looks: a live table on a terminal (with rich), plain lines otherwise."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Protocol

import click

from kvstore.devcluster.cluster_status import NodeStatus
from kvstore.devcluster.plan import ClusterPlan
from kvstore.devcluster.supervisor import Supervisor

REFRESH_INTERVAL_S = 0.5
"""Often enough to watch an election, seldom enough to cost next to nothing."""

COLUMNS = (
    "node",
    "process",
    "pid",
    "clients",
    "role",
    "term",
    "index",
    "applied",
    "data",
    "partitioned from",
)


def cells(status: NodeStatus) -> tuple[str, ...]:
    known = status.answered
    silent = "-" if status.process != "running" else "no answer"
    return (
        status.name,
        status.process,
        str(status.pid or "-"),
        status.client_address,
        status.role or silent,
        str(status.term) if known else "-",
        str(status.raft_index) if known else "-",
        str(status.applied_index) if known else "-",
        size(status.database_bytes) if known else "-",
        ",".join(map(str, status.unreachable_from)) or "-",
    )


def size(nbytes: int) -> str:
    """Return a size as people read it: 20 kB, 1.5 MB."""
    amount = float(nbytes)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"


def plain_table(statuses: Sequence[NodeStatus]) -> str:
    """Return an aligned table without decoration."""
    rows = [COLUMNS, *(cells(status) for status in statuses)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def banner(plan: ClusterPlan) -> str:
    """Return what a newcomer needs to use the cluster that has just come up."""
    return (
        f"cluster of {len(plan.nodes)} nodes is up: {plan.endpoints}\n"
        f"data and logs in {plan.directory}; try: kvstore put greeting hi"
    )


class Display(Protocol):
    async def show(self, supervisor: Supervisor) -> None: ...


def best_display() -> Display:
    """Return the live table when the terminal and the installed packages allow, else plain lines."""
    if sys.stdout.isatty():
        try:
            return LiveTable()
        except ImportError:
            pass  # rich comes with an extra; plain lines say the same
    return PlainLines()


class PlainLines:
    """One line whenever a member's state, role or term has changed."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[object, ...]] = {}
        """What was last said about each member."""

    async def show(self, supervisor: Supervisor) -> None:
        while True:
            for line in self.news(await supervisor.statuses()):
                click.echo(line)
            await asyncio.sleep(REFRESH_INTERVAL_S)

    def news(self, statuses: Sequence[NodeStatus]) -> list[str]:
        """Return the lines worth saying since last asked."""
        lines = []
        for status in statuses:
            seen = (status.process, status.pid, status.role, status.term, status.unreachable_from)
            if self._last.get(status.number) != seen:
                self._last[status.number] = seen
                lines.append(self._line(status))
        return lines

    def _line(self, status: NodeStatus) -> str:
        words = [f"{status.name} {status.process}"]
        if status.pid:
            words.append(f"pid {status.pid}")
        if status.answered:
            words.append("no leader" if status.role == "none" else status.role)
            words.append(f"term {status.term}")
        elif status.process == "running":
            words.append("no answer")
        if status.unreachable_from:
            words.append(
                "partitioned from " + ",".join(f"node{number}" for number in status.unreachable_from)
            )
        return ", ".join(words)


class LiveTable:
    """A table that redraws itself on the same lines. Raises ImportError when rich is not installed."""

    def __init__(self) -> None:
        from rich.live import Live  # an extra: only who looks at a terminal needs it
        from rich.table import Table

        self._live_class = Live
        self._table_class = Table

    async def show(self, supervisor: Supervisor) -> None:
        with self._live_class(auto_refresh=False) as live:
            while True:
                table = self._table_class(box=None, padding=(0, 1, 0, 0), caption="Ctrl-C stops the cluster")
                for column in COLUMNS:
                    table.add_column(column, no_wrap=True)
                for status in await supervisor.statuses():
                    table.add_row(*cells(status), style=self._style(status))
                live.update(table, refresh=True)
                await asyncio.sleep(REFRESH_INTERVAL_S)

    def _style(self, status: NodeStatus) -> str:
        if status.process != "running":
            return "yellow" if status.process == "paused" else "red"
        return "bold green" if status.role == "leader" else ""

"""`timeline.html`: the clients' operations, the faults, and the availability as clients see it.

One file without any link to elsewhere. Lanes of clients, then of members; faults as bands; below, latency and
successes per second. The wheel zooms, dragging moves, pointing shows details. For a refuted history the
longest legal order is filled, everything else is pale, and what cannot be placed is red.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from kvstore.verify.operation_history import Operation, VerdictKind

if TYPE_CHECKING:
    from kvstore.verify.run.run_execution import RunResult  # would be a circle

OPERATIONS_MAX = 50_000
"""Operations drawn; a longer history keeps those around what its verdict names."""

TEXT_CHARACTERS_MAX = 160
LINES_NAMED = re.compile(r"line (\d+)")


def write_timeline(
    result: RunResult, events: Sequence[dict[str, Any]], operations: Sequence[Operation], began_ns: int
) -> None:
    """Write the page. Operations without times are left out."""
    named = _named(result)
    shown = _around(operations, named)
    prefix = {line: position for check in result.checks for position, line in enumerate(check.prefix)}
    slots = result.settings.slots
    rows = []
    for operation in shown:
        if operation.called_ns is None:
            continue
        returned = operation.returned_ns if operation.returned_ns is not None else None
        rows.append(
            [
                int(operation.process) % slots,
                round((operation.called_ns - began_ns) / 1e6, 2),
                None if returned is None else round((returned - began_ns) / 1e6, 2),
                operation.outcome.value,
                events[operation.line - 1].get("node", 0) + 1,
                operation.describe()[:TEXT_CHARACTERS_MAX],
                1 if operation.line in named else 0,
                prefix.get(operation.line, -1),
            ]
        )
    data = {
        "title": f"{result.settings.workload} x {', '.join(result.settings.nemeses) or 'no fault'}",
        "verdict": result.verdict,
        "seed": result.settings.seed,
        "reasons": [reason[:2000] for reason in result.reasons[:20]],
        "slots": slots,
        "nodes": result.settings.nodes,
        "left_out": len(operations) - len(shown),
        "operations": rows,
        "has_prefix": bool(prefix),
        "faults": _faults(result, began_ns),
        "checks": [[check.name, check.kind.name.lower(), check.operations] for check in result.checks],
        "counts": result.counts,
    }
    page = resources.files("kvstore.verify.run").joinpath("timeline_page.html").read_text("utf-8")
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    (result.settings.directory / "timeline.html").write_text(page.replace("/*DATA*/null", text), "utf-8")


def _faults(result: RunResult, began_ns: int) -> list[dict[str, Any]]:
    table = result.figures.get("availability", [])
    return [
        {
            "name": fault.nemesis,
            "target": fault.target or fault.missed,
            "begin": round((fault.begin_ns - began_ns) / 1e6, 1),
            "end": round((fault.end_ns - began_ns) / 1e6, 1),
            "nodes": list(fault.nodes),
            "evidence": fault.evidence,
            "gap": table[position]["longest_gap_s"] if position < len(table) else None,
            "recovered": table[position]["recovered_s"] if position < len(table) else None,
        }
        for position, fault in enumerate(result.faults)
    ]


def _named(result: RunResult) -> set[int]:
    """Lines of the history that the verdict speaks of, the one that cannot be placed among them."""
    lines = {check.stuck for check in result.checks if check.stuck is not None}
    for check in () if lines else result.checks:
        if check.kind is VerdictKind.INVALID:
            lines |= {int(number) for text in check.explanation for number in LINES_NAMED.findall(text)}
    return lines


def _around(operations: Sequence[Operation], named: set[int]) -> Sequence[Operation]:
    """All, or as many as are drawn, around the first that is named."""
    if len(operations) <= OPERATIONS_MAX:
        return operations
    position = next((n for n, operation in enumerate(operations) if operation.line in named), 0)
    first = max(0, min(position - OPERATIONS_MAX // 2, len(operations) - OPERATIONS_MAX))
    return operations[first : first + OPERATIONS_MAX]

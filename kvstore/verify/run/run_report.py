"""What a run leaves behind: histories, schedule, results, junit, and a page to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

from kvstore.verify.operation_history import Operation
from kvstore.verify.run.availability import availability
from kvstore.verify.run.cluster_under_test import ClusterUnderTest
from kvstore.verify.run.edn_writer import write_history
from kvstore.verify.run.nemesis_runner import Fault
from kvstore.verify.run.timeline import write_timeline
from kvstore.verify.run.workload_checks import Check

if TYPE_CHECKING:
    from kvstore.verify.run.run_execution import RunResult  # would be a circle

ALARMING = ("Traceback (most recent call last)", "AssertionError", "was never retrieved", "internal error")
"""What no member may ever write into its log, whatever is done to it."""

EXPLANATION_LINES_MAX = 40
REASONS_SHOWN_MAX = 12


def merged(events: Sequence[dict[str, Any]], faults: Sequence[Fault]) -> list[dict[str, Any]]:
    """Clients' events and the nemesis's in the order of time, each with its index."""
    lines = list(events)
    for fault in faults:
        base = {"process": "nemesis", "type": "info", "f": fault.nemesis}
        lines.append({"time": fault.begin_ns, **base, "value": ["begin", fault.target or fault.missed]})
        lines.append({"time": fault.end_ns, **base, "value": ["end", fault.evidence or fault.missed]})
    lines.sort(key=lambda event: (event["time"], event["type"] != "invoke"))
    return [{"index": index, **event} for index, event in enumerate(lines)]


def write_histories(directory: Path, events: Sequence[dict[str, Any]]) -> None:
    """`history.jsonl` and `history.edn`: the same events."""
    with (directory / "history.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(event, separators=(",", ":")) + "\n" for event in events)
    (directory / "history.edn").write_text(write_history(events), encoding="utf-8")


def log_findings(cluster: ClusterUnderTest) -> list[str]:
    """Lines in the members' logs that mean a bug."""
    found = []
    for number in cluster.numbers:
        path = cluster.log_of(number)
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            if any(word in line for word in ALARMING):
                found.append(f"node{number} wrote: {line.strip()[:300]}")
                break
    return found


def write_results(result: RunResult) -> None:
    directory = result.settings.directory
    directory.mkdir(parents=True, exist_ok=True)
    summary = {
        "verdict": result.verdict,
        "reasons": result.reasons,
        "workload": result.settings.workload,
        "nemeses": list(result.settings.nemeses),
        "nodes": result.settings.nodes,
        "seed": result.settings.seed,
        "means": result.means,
        "operations": result.counts,
        "checked": result.checked,
        "checks": [_check(check) for check in result.checks],
        "faults": {
            "done": len(result.faults),
            "took_hold": sum(bool(fault.evidence) for fault in result.faults),
        },
        "seconds": result.seconds,
        "figures": result.figures,
    }
    (directory / "results.json").write_text(json.dumps(summary, indent=2) + "\n")
    schedule = [asdict(fault) for fault in result.faults]
    (directory / "schedule.json").write_text(json.dumps(schedule, indent=2) + "\n")
    (directory / "junit.xml").write_text(junit([result]))


def _check(check: Check) -> dict[str, Any]:
    return {
        "name": check.name,
        "verdict": check.kind.name.lower(),
        "operations": check.operations,
        "seconds": check.seconds,
        "explanation": list(check.explanation)[:EXPLANATION_LINES_MAX],
    }


def write_all(
    result: RunResult, events: Sequence[dict[str, Any]], operations: Sequence[Operation], began_ns: int
) -> None:
    result.figures["availability"] = availability(operations, result.faults)
    write_results(result)
    write_timeline(result, events, operations, began_ns)


def junit(results: Sequence[RunResult]) -> str:
    """A junit file: one test case a run; inconclusive and unknown are errors, not passes."""
    cases = []
    failures = errors = 0
    for result in results:
        settings = result.settings
        name = f"{settings.workload} x {'+'.join(settings.nemeses) or 'none'}"
        seconds = sum(result.seconds.values())
        body = ""
        text = escape("\n".join(result.reasons)[:10_000])
        if result.verdict == "invalid":
            failures += 1
            body = f"<failure message={quoteattr(result.verdict)}>{text}</failure>"
        elif result.verdict != "valid":
            errors += 1
            body = f"<error message={quoteattr(result.verdict)}>{text}</error>"
        properties = f"<properties><property name='seed' value='{settings.seed}'/></properties>"
        cases.append(
            f"  <testcase classname='jepsen' name={quoteattr(name)} time='{seconds:.1f}'>"
            f"{properties}{body}</testcase>\n"
        )
    head = f"<testsuite name='jepsen' tests='{len(results)}' failures='{failures}' errors='{errors}'>"
    return f"<?xml version='1.0' encoding='utf-8'?>\n{head}\n{''.join(cases)}</testsuite>\n"


def summary(result: RunResult) -> list[str]:
    settings = result.settings
    counts = " ".join(f"{name} {count}" for name, count in sorted(result.counts.items()))
    held = f"{sum(bool(fault.evidence) for fault in result.faults)} of {len(result.faults)} faults"
    name = f"{settings.workload} x {'+'.join(settings.nemeses) or 'none'}"
    first = (
        f"{result.verdict:8} {name:40} {result.checked:6} operations ({counts}), {held}, seed {settings.seed}"
    )
    means = [f"         {name}: {means}" for name, means in sorted(result.means.items())]
    return [first, *means, *(f"         {reason}" for reason in result.reasons[:REASONS_SHOWN_MAX])]

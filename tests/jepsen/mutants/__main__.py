"""`make jepsen-mutants`: hunt every mutant in real processes, and record the seed that found it.

    python -m tests.jepsen.mutants [--only BUG] [--runs 3] [--seed N]

Each hunt takes at most five minutes: run after run, each with a seed of its own, until one is invalid. The
record `tests/jepsen/mutants.json` holds the seed that found each. The last row is no mutant but a control:
locks without fencing must lose updates when clients are paused for longer than their leases.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from kvstore.verify import pair_events, read_history
from kvstore.verify.lock_checker import count_updates, overlaps
from kvstore.verify.run.run_execution import RunResult, execute
from kvstore.verify.run.run_settings import Settings

SERVER = Path(__file__).parent / "server.py"
RECORD = Path(__file__).parent.parent / "mutants.json"
HUNT_SECONDS_MAX = 300.0
RUN_SECONDS = 40.0
RUNS_MAX = 8
CLUE_CHARACTERS_MAX = 110
CONTROL = "unfenced-locks"


class Hunt(NamedTuple):
    """The workload and nemeses that show a bug."""

    workload: str
    nemeses: tuple[str, ...]
    timeout_s: float = 2.0
    """Of one call. A stale leader answers only clients that still wait."""


HUNTS: dict[str, Hunt] = {
    "skips-sync": Hunt("register", ("power-cut",)),
    "reads-without-quorum": Hunt("register", ("pause-partition",), timeout_s=6.0),
    "forgets-votes": Hunt("register", ("slow-election",)),
    "dead-lease": Hunt("lock-fenced", ()),
    CONTROL: Hunt("lock", ("client-pause",)),
}


def found(bug: str, result: RunResult) -> str | None:
    """The evidence of the bug; None without any."""
    if bug == CONTROL:
        operations = pair_events(read_history(result.settings.directory / "history.jsonl"))
        updates, lost = count_updates(operations)
        both = len(overlaps(operations))
        return f"{both} overlaps, {lost} of {updates} updates lost" if lost and both else None
    return result.reasons[0] if result.verdict == "invalid" else None


def hunt(bug: str, seed: int, folder: Path) -> dict[str, Any]:
    """Run until the bug is found or the time is up; one row of the record."""
    workload, nemeses, timeout_s = HUNTS[bug]
    program = ("-m", "kvstore", "server") if bug == CONTROL else (str(SERVER), bug, "server")
    began = time.monotonic()
    row: dict[str, Any] = {"bug": bug, "workload": workload, "nemeses": list(nemeses), "found": False}
    for attempt in range(RUNS_MAX):
        if time.monotonic() - began > HUNT_SECONDS_MAX - RUN_SECONDS:
            break
        settings = Settings(
            workload=workload,
            nemeses=nemeses,
            directory=folder / f"{bug}-{seed + attempt}",
            seed=seed + attempt,
            seconds=RUN_SECONDS,
            program=program,
            rate=400,
            timeout_s=timeout_s,
        )
        clue = found(bug, asyncio.run(execute(settings)))
        row |= {"seed": seed + attempt, "runs": attempt + 1, "seconds": round(time.monotonic() - began)}
        if clue is not None:
            return {**row, "found": True, "clue": clue[:CLUE_CHARACTERS_MAX]}
    return row


def main() -> int:
    parser = argparse.ArgumentParser(prog="make jepsen-mutants", description=__doc__)
    parser.add_argument("--only", choices=sorted(HUNTS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6) * 1000)
    options = parser.parse_args()
    rows = json.loads(RECORD.read_text()) if RECORD.exists() else []
    missed = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        for bug in [options.only] if options.only else HUNTS:
            rows = [row for row in rows if row["bug"] != bug]
            for number in range(options.runs):
                row = hunt(bug, options.seed + 100 * number, Path(name))
                print(json.dumps(row), flush=True)
                missed += not row["found"]
                rows.append(row)
            RECORD.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

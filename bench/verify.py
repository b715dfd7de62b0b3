"""`make bench-verify`: how long checking 100,000 operations takes; writes bench/results/verify.json."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kvstore.verify import (
    Event,
    Operation,
    Verdict,
    VerdictKind,
    check_list_append,
    check_revisions,
    pair_events,
)

OPERATIONS = 100_000
CLIENTS = 16
SECONDS_MAX = 10.0  # what either checker may take

Draw = Callable[[random.Random, int], tuple[str, Any, Any]]
"""From the number of an operation to its kind, request and reply."""


def history(draw: Draw, rng: random.Random, count: int) -> list[Operation]:
    """Operations of a correct store, as many open at once as there are clients."""
    events: list[Event] = []
    open_now: dict[int, tuple[str, Any]] = {}
    started = 0
    while started < count or open_now:
        process = rng.randrange(CLIENTS)
        if process in open_now:
            f, completed = open_now.pop(process)
            events.append(Event(len(events) + 1, process, "ok", f, completed))
        elif started < count:
            started += 1
            f, asked, completed = draw(rng, started)
            events.append(Event(len(events) + 1, process, "invoke", f, asked))
            open_now[process] = (f, completed)
    return pair_events(events)


def register() -> Draw:
    """Puts and gets of a hundred keys, answered with revisions."""
    held: dict[str, tuple[str, int]] = {}
    revision = 1

    def draw(rng: random.Random, number: int) -> tuple[str, Any, Any]:
        nonlocal revision
        key = f"k{rng.randrange(100)}"
        if rng.random() < 0.5:
            revision += 1
            held[key] = (f"v{number}", revision)
            return "put", [key, f"v{number}"], {"revision": revision}
        value, mod = held.get(key, (None, 0))
        return "get", [key], {"revision": revision, "value": value, "mod": mod}

    return draw


def append() -> Draw:
    """Transactions over lists that grow to about 125 elements."""
    lists: dict[int, list[int]] = {}

    def draw(rng: random.Random, number: int) -> tuple[str, Any, Any]:
        mops: list[list[Any]] = []
        for position in range(rng.randint(1, 4)):
            key = number // 1000 * 8 + rng.randrange(8)
            if rng.random() < 0.5:
                lists.setdefault(key, []).append(4 * number + position)
                mops.append(["append", key, 4 * number + position])
            else:
                mops.append(["r", key, list(lists.get(key, []))])
        return "txn", [[f, k, v if f == "append" else None] for f, k, v in mops], mops

    return draw


def timed(check: Callable[[Sequence[Operation]], Verdict], operations: Sequence[Operation]) -> float:
    """Seconds one check takes. The verdict must be valid."""
    began = time.monotonic()
    verdict = check(operations)
    seconds = time.monotonic() - began
    assert verdict.kind is VerdictKind.VALID, verdict
    return round(seconds, 2)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-verify", description=__doc__)
    parser.add_argument("--operations", type=int, default=OPERATIONS)
    parser.add_argument("--out", type=Path, default=Path("bench/results/verify.json"))
    options = parser.parse_args()
    count = options.operations
    figures = {
        "operations": count,
        "revision_witness_s": timed(check_revisions, history(register(), random.Random(1), count)),
        "list_append_s": timed(check_list_append, history(append(), random.Random(1), count)),
    }
    print(json.dumps(figures))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if max(figures["revision_witness_s"], figures["list_append_s"]) <= SECONDS_MAX else 1


if __name__ == "__main__":
    sys.exit(main())

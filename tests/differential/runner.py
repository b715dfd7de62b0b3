"""Runs programs against two clusters in step and reports every difference, shrunk to its smallest form.

Both sides of a pair see the same requests in the same order from one writer, so their revisions are equal
as numbers and are compared as they stand. A program talks to one member only, so that its serializable
reads follow its own writes; programs alternate over the members. Several pairs run side by side: single
members for speed, three members for replication.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.differential import judge
from tests.differential.context import Abandoned
from tests.differential.kinds import Restart, make_program
from tests.differential.pairs import MakeCluster, Pair
from tests.differential.programs import Put, Step, Txn, without_inner_revisions
from tests.differential.running import Alter, run_steps
from tests.differential.tally import Tally

SHRINK_ATTEMPTS_MAX = 200


def smaller(steps: list[Step]) -> list[list[Step]]:
    """Programs with something left out, boldest first."""
    found = []
    size = len(steps) // 2
    while size:
        found += [steps[:start] + steps[start + size :] for start in range(0, len(steps), size)]
        size //= 2
    for index, step in enumerate(steps):
        if isinstance(step.request, Txn):
            for name in ("compare", "success", "failure"):
                for position in range(len(getattr(step.request, name))):
                    copy = Txn.FromString(step.request.SerializeToString())
                    del getattr(copy, name)[position]
                    found.append([*steps[:index], Step(copy, step.options), *steps[index + 1 :]])
    return found


async def shrink(pair: Pair, steps: list[Step], alter: Alter | None) -> tuple[list[Step], str | None]:
    """The smallest program found that still differs on fresh single members; None if it no longer does."""
    attempts = 0

    async def differs(candidate: list[Step]) -> str | None:
        nonlocal attempts
        attempts += 1
        left, right = await pair.both(0, Put(key=b"\x00"))
        if judge.difference(Put(key=b"\x00"), left, right) is not None:  # the last attempt parted them
            await pair.restart()
        return await run_steps(pair, candidate, 0, None, alter)

    found = await differs(steps)
    is_smaller = found is not None
    while is_smaller and attempts < SHRINK_ATTEMPTS_MAX:
        is_smaller = False
        for candidate in smaller(steps):
            said = await differs(candidate)
            if said is not None:
                steps, found, is_smaller = candidate, said, True
                break
            if attempts >= SHRINK_ATTEMPTS_MAX:
                break
    return steps, found


@dataclass(slots=True, kw_only=True)
class Run:
    """One differential run: until so many programs or so many seconds, whichever comes first."""

    left: MakeCluster
    right: MakeCluster
    folder: Path
    seed: int
    programs: int
    seconds: float = float("inf")
    kinds: tuple[str, ...] = ("watch",)
    """What programs contain beside KV."""
    sizes: tuple[int, ...] = (1, 3)
    """One pair of clusters per number, running side by side, each of so many members."""
    alter: Alter | None = None
    differences_max: int = 5  # more tell nothing new
    tally: Tally = field(default_factory=Tally)
    seconds_taken: float = 0.0

    async def go(self) -> Tally:
        began = time.monotonic()
        self.tally.kinds = self.kinds
        indices = iter(range(self.programs))
        async with asyncio.TaskGroup() as group:
            for number, size in enumerate(self.sizes):
                group.create_task(
                    self._stream(indices, self.folder / f"pair-{number}", size, began + self.seconds)
                )
        self.seconds_taken = time.monotonic() - began
        return self.tally

    async def _stream(self, indices: Iterator[int], folder: Path, size: int, deadline: float) -> None:
        async with Pair(self.left, self.right, folder, size) as pair:
            for index in indices:  # shared by the streams: each takes the next
                if time.monotonic() > deadline or len(self.tally.differences) >= self.differences_max:
                    return
                await self._program(pair, index)

    async def _program(self, pair: Pair, index: int) -> None:
        steps = make_program(f"{self.seed}:{index}", self.kinds)
        if pair.size > 1 or any(isinstance(step.request, Restart) for step in steps):
            steps = [without_inner_revisions(step) for step in steps]
        self.tally.programs += 1
        try:
            found = await run_steps(pair, steps, index % pair.size, self.tally, self.alter)
        except Abandoned as error:
            found = pair.obituary()
            if found is None:
                self.tally.abandoned.append(f"program {index}: {error}")
                await pair.restart()
                return
        if found is not None:
            await self._report(pair, index, steps, found)

    async def _report(self, pair: Pair, index: int, steps: list[Step], found: str) -> None:
        shrunk: list[Step] = []
        said: str | None = None
        async with Pair(self.left, self.right, pair.folder / f"shrink-{index}", 1) as fresh:
            try:
                shrunk, said = await shrink(fresh, steps, self.alter)
            except Abandoned as error:
                found = f"{found}\nwhile shrinking: {fresh.obituary() or error}"
        await pair.restart()
        self.tally.differences.append(
            {
                "program": f"{self.seed}:{index}",
                "members": pair.size,
                "first_seen": found,
                "shrunk_to": [judge.show(step.request) for step in shrunk]
                if said
                else "needs the history before it",
                "then": said,
            }
        )

    def result(self) -> dict[str, object]:
        """Everything a reader or a program wants to know about the run."""
        tally = self.tally
        return {
            "seed": self.seed,
            "kinds": list(self.kinds),
            "sizes": list(self.sizes),
            "programs": tally.programs,
            "steps": tally.steps,
            "requests": tally.requests,
            "seconds": round(self.seconds_taken, 1),
            "error_share": round(tally.refused / max(1, tally.requests), 4),
            "options": dict(sorted(tally.options.items())),
            "errors": dict(tally.errors.most_common()),
            "counts": dict(tally.counts.most_common()),
            "abandoned": tally.abandoned,
            "shortfalls": tally.shortfalls(),
            "differences": tally.differences,
        }

    def add_to(self, path: Path) -> dict[str, int]:
        """Add this run to a file of runs; the programs in it by kind."""
        path.parent.mkdir(parents=True, exist_ok=True)
        runs = json.loads(path.read_text())["runs"] if path.exists() else []
        runs.append(self.result())
        totals: Counter[str] = Counter()
        for run in runs:
            totals[" ".join(["KV", *run["kinds"]])] += run["programs"]
        path.write_text(json.dumps({"programs": totals, "runs": runs}, indent=2) + "\n")
        return dict(totals)

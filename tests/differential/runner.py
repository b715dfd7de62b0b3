"""Runs programs against two clusters in step and reports every difference, cut to its smallest form.

Both sides of a pair see the same requests in the same order from one writer, so their revisions are equal
as numbers and are compared as they stand. A program talks to one member only, so that its serializable
reads follow its own writes; programs take turns over the members. Several pairs run side by side: single
members for speed, three members for replication.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc.aio

from bench import clusters, rpc
from tests.differential import judge
from tests.differential.kinds import make_program, options_of
from tests.differential.programs import (
    Compaction,
    Delete,
    Put,
    Range,
    Request,
    Step,
    Txn,
    resolve,
    without_inner_revisions,
)
from tests.differential.watching import NoAnswer, WatchAction, Watching

REQUEST_SECONDS_MAX = 10.0  # longer than the servers' own 7 s
COVERAGE_MIN = 20  # each option and each error text
ERROR_SHARE = (0.10, 0.40)
SHRINK_ATTEMPTS_MAX = 200
ABANDONED_SHARE_MAX = 0.02  # programs cut short because a side answered "unavailable"

ERRORS = (
    "etcdserver: key is not provided",
    "etcdserver: key not found",
    "etcdserver: value is provided",
    "etcdserver: lease is provided",
    "etcdserver: requested lease not found",
    "etcdserver: too many operations in txn request",
    "etcdserver: duplicate key given in txn request",
    "etcdserver: mvcc: required revision has been compacted",
    "etcdserver: mvcc: required revision is a future revision",
    "etcdserver: request is too large",
)
"""Every error text that a healthy cluster without auth gives to these five requests."""

Alter = Callable[[Request, judge.Reply | judge.Refusal], judge.Reply | judge.Refusal]
"""Changes a reply of the right side before it is compared: how the judge itself is judged."""

MakeCluster = Callable[[Path, int], clusters.Cluster]


class Abandoned(Exception):
    """A side answered that it is unavailable; nothing can be said about this program."""


class Side:
    """One cluster and a connection to each of its members."""

    def __init__(self, cluster: clusters.Cluster) -> None:
        self.stores = [rpc.Store(endpoint) for endpoint in cluster.endpoints]
        self.calls = [
            {Range: one.range, Put: one.put, Delete: one.delete, Txn: one.txn, Compaction: one.compact}
            for one in self.stores
        ]

    async def call(self, member: int, request: Request) -> judge.Reply | judge.Refusal:
        try:
            return await self.calls[member][type(request)](request, timeout=REQUEST_SECONDS_MAX)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise Abandoned(f"{self.stores[member].endpoint}: {error.details()}") from error
            return judge.Refusal(error.code().value[0], error.details() or "")

    async def close(self) -> None:
        for store in self.stores:
            await store.close()


@dataclass(slots=True)
class Tally:
    """What a run has covered and found."""

    kinds: tuple[str, ...] = ()
    programs: int = 0
    requests: int = 0
    refused: int = 0
    options: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    """Events of watches, kept differences, and what else a reader wants to see counted."""
    abandoned: list[str] = field(default_factory=list)
    differences: list[dict[str, object]] = field(default_factory=list)

    def shortfalls(self) -> list[str]:
        """What the run must cover and did not."""
        found = [
            f"{self.options[name]:4d} x {name}"
            for name in sorted(options_of(self.kinds))
            if self.options[name] < COVERAGE_MIN
        ]
        found += [f"{self.errors[text]:4d} x {text}" for text in ERRORS if self.errors[text] < COVERAGE_MIN]
        share = self.refused / max(1, self.requests)
        if not ERROR_SHARE[0] <= share <= ERROR_SHARE[1]:
            found.append(
                f"{share:.1%} of the replies are errors, wanted {ERROR_SHARE[0]:.0%} to {ERROR_SHARE[1]:.0%}"
            )
        if len(self.abandoned) > max(1, ABANDONED_SHARE_MAX * self.programs):
            found.append(f"{len(self.abandoned)} of {self.programs} programs abandoned: {self.abandoned[0]}")
        return found


class Pair:
    """Two fresh clusters of equal size that see the same requests."""

    def __init__(self, left: MakeCluster, right: MakeCluster, folder: Path, size: int) -> None:
        self.make = (left, right)
        self.folder, self.size = folder, size
        self.generation = itertools.count()
        self.compacted = 0
        """Newest revision that both sides' history was compacted at."""
        self.clusters: list[clusters.Cluster] = []
        self.sides: list[Side] = []

    async def __aenter__(self) -> Self:
        await self.restart()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        for side in self.sides:
            await side.close()
        for cluster in self.clusters:
            cluster.kill()
        self.sides, self.clusters = [], []

    async def restart(self) -> None:
        """Throw both clusters away and begin with empty ones."""
        await self.stop()
        self.compacted = 0
        folder = self.folder / f"generation-{next(self.generation)}"
        for name, make in zip(("left", "right"), self.make, strict=True):
            cluster = make(folder / name, self.size)
            await asyncio.to_thread(cluster.__enter__)
            self.clusters.append(cluster)
            self.sides.append(Side(cluster))

    def obituary(self) -> str | None:
        """The last words of a process that ended by itself: nothing a client sends may do that."""
        for cluster in self.clusters:
            for member in cluster.running():
                if member.process is not None and member.process.poll() is not None:
                    return f"{member.name} ended with {member.process.returncode}:\n{member.tail()}"
        return None

    async def both(self, member: int, request: Request) -> list[judge.Reply | judge.Refusal]:
        return list(await asyncio.gather(*(side.call(member, request) for side in self.sides)))


async def run_steps(
    pair: Pair, steps: list[Step], member: int, tally: Tally | None = None, alter: Alter | None = None
) -> str | None:
    """Run one program on both sides; the first unexplained difference, or None."""
    reset = Delete(key=b"\x00", range_end=b"\x00")
    left, right = await pair.both(member, reset)
    assert not isinstance(left, judge.Refusal), left
    found = judge.difference(reset, left, right)
    if found is not None and tally is not None:
        return f"before the program: {found}"
    program = _Program(pair, member, left.header.revision, tally or Tally(), alter)
    return await program.run(steps)


class _Program:
    """One program on its way through both sides."""

    def __init__(self, pair: Pair, member: int, base: int, tally: Tally, alter: Alter | None) -> None:
        self.pair, self.member, self.tally, self.alter = pair, member, tally, alter
        self.now = self.base = base
        stores = [side.stores[member] for side in pair.sides]
        self.watching = Watching(stores, pair.compacted, tally.counts)

    async def run(self, steps: list[Step]) -> str | None:
        try:
            found = await self.watching.begin(self.now)
            for number, step in enumerate(steps):
                found = found or await self._step(step)
                if found is not None:
                    return f"step {number} at revision {self.now}: {found}"
            found = await self.watching.settle(self.now)
            return found and f"in the end: {found}"
        except NoAnswer as error:
            return str(error)
        finally:
            await self.watching.close()

    async def _step(self, step: Step) -> str | None:
        self.tally.requests += 1
        self.tally.options.update(set(step.options))
        if isinstance(step.request, WatchAction):
            return await self.watching.act(step.request, self.now, self.base)
        request = resolve(step.request, self.now, self.base)
        if isinstance(request, Compaction):
            await self.watching.before_compaction(self.now)
        left, right = await self.pair.both(self.member, request)
        if self.alter is not None:
            right = self.alter(request, right)
        if isinstance(left, judge.Refusal):
            self.tally.refused += 1
            self.tally.errors[left.text] += 1
        found = judge.difference(request, left, right)
        if found is not None:
            kept = judge.explanation(request, left, right)
            if kept is None:
                return found
            self.tally.counts[f"kept difference: {kept.name}"] += 1
        if not isinstance(left, judge.Refusal):
            self.now = max(self.now, left.header.revision)
            if isinstance(request, Compaction):
                self.pair.compacted = request.revision
                self.watching.compacts(request.revision)
        return None


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
                for place in range(len(getattr(step.request, name))):
                    copy = Txn.FromString(step.request.SerializeToString())
                    del getattr(copy, name)[place]
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
        if pair.size > 1:
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
        cut: list[Step] = []
        said: str | None = None
        async with Pair(self.left, self.right, pair.folder / f"shrink-{index}", 1) as fresh:
            try:
                cut, said = await shrink(fresh, steps, self.alter)
            except Abandoned as error:
                found = f"{found}\nwhile shrinking: {fresh.obituary() or error}"
        await pair.restart()
        self.tally.differences.append(
            {
                "program": f"{self.seed}:{index}",
                "members": pair.size,
                "first_seen": found,
                "shrunk_to": [judge.show(step.request) for step in cut]
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

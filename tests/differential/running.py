"""One program on its way through both sides of a pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench import rpc
from tests.differential import judge, leasing, locking
from tests.differential.context import Abandoned, NoAnswer, learn, until
from tests.differential.pairs import Pair
from tests.differential.programs import Compaction, Delete, Range, Request, Step, resolve
from tests.differential.tally import Tally
from tests.differential.watching import WatchAction, Watching

Alter = Callable[[Request, judge.Reply | judge.Refusal], judge.Reply | judge.Refusal]
"""Changes a reply of the right side before it is compared: how the judge itself is judged."""

LEASES_PER_PROGRAM = 0x100


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
    pair.programs += 1
    program = _Program(pair, member, left.header.revision, tally or Tally(), alter)
    return await program.run(steps)


class _Program:
    """Structurally a `context.Context`."""

    def __init__(self, pair: Pair, member: int, base: int, tally: Tally, alter: Alter | None) -> None:
        self.pair, self.member, self.tally, self.alter = pair, member, tally, alter
        self.now = self.base = base
        self.lease_base = pair.programs * LEASES_PER_PROGRAM
        self.queues = locking.Queues()
        self.watching = Watching(self.stores, pair.compacted, tally.counts)

    @property
    def stores(self) -> list[rpc.Store]:
        return [side.stores[self.member] for side in self.pair.sides]

    def count(self, what: str) -> None:
        self.tally.counts[what] += 1

    async def both(self, request: Request) -> list[judge.Reply | judge.Refusal]:
        outcomes = await self.pair.both(self.member, request)
        learn(self, outcomes)
        return outcomes

    async def run(self, steps: list[Step]) -> str | None:
        kinds = {name.split()[0] for step in steps for name in step.options}
        try:
            found = await self.watching.begin(self.now)
            for number, step in enumerate(steps):
                found = found or await self._step(step)
                if found is not None:
                    return f"step {number} at revision {self.now}: {found}"
            if "lock" in kinds or "campaign" in kinds:
                found = await locking.clean_up(self)
            elif "lease" in kinds:
                found = await leasing.clean_up(self)
            found = found or await self.watching.complete(self.now)
            return found and f"in the end: {found}"
        except NoAnswer as error:
            return str(error)
        finally:
            await self.watching.close()
            await self.queues.close()

    async def _step(self, step: Step) -> str | None:
        self.tally.steps += 1
        self.tally.options.update(set(step.options))
        if isinstance(step.request, WatchAction):
            return await self.watching.act(step.request, self.now, self.base)
        if hasattr(step.request, "act"):
            found: str | None = await step.request.act(self)
            return found
        request = resolve(step.request, self.now, self.base)
        if isinstance(request, Compaction):
            await self.watching.catch_up(self.now)
        self.tally.requests += 1
        left, right = await self.both(request)
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
            self.count(f"kept difference: {kept.name}")
        if isinstance(request, Compaction) and not isinstance(left, judge.Refusal):
            self.pair.compacted = request.revision
            self.watching.compacts(request.revision)
        return None

    async def restart(self, number: int) -> None:
        """Kill a member of each side, start it again, and go on once both serve."""
        number %= self.pair.size
        await self.watching.catch_up(self.now)
        await self.pair.restart_member(number)

        async def both_serve() -> bool:
            try:
                outcomes: list[Any] = await self.both(resolve(_PROBE, 0, 0))
            except Abandoned:
                return False
            return not any(isinstance(one, judge.Refusal) for one in outcomes)

        await until(both_serve, "both sides to serve after the restart of a member")
        if number == self.member:
            await self.watching.resume(self.now)
        self.count("members restarted")


_PROBE = Range(key=b"probe")

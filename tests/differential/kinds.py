"""What a program may be made of beside KV, and what a run of each kind must have covered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from tests.differential import leasing, locking, watching
from tests.differential.programs import Draw, Generator, Step, expected_options


class Kind(NamedTuple):
    """One family of steps."""

    draws: tuple[Draw, ...]
    options: frozenset[str]
    share: float
    """Of the programs of a run that has this kind, those that contain it."""
    only: frozenset[str] | None = None
    """Requests of KV that may stand beside it; None for all."""


class Restart(NamedTuple):
    """Kill a member of each side, and start it again."""

    number: int

    async def act(self, context: Any) -> str | None:
        if not context.queues.waiting:  # their calls would end with the member, each side in its own time
            await context.restart(self.number)
        return None


def draw_restart(generator: Generator) -> Step:
    return Step(Restart(generator.random.randrange(6)), ("restart",))


KINDS = {
    "watch": Kind(
        draws=((14, watching.draw_create), (4, watching.draw_cancel), (2, watching.draw_progress)),
        options=watching.OPTIONS,
        share=0.6,
    ),
    "lease": Kind(draws=leasing.DRAWS, options=leasing.OPTIONS, share=0.6),
    # A deletion of a range would remove waiters' keys, at a different time on each side.
    "lock": Kind(
        draws=locking.DRAWS,
        options=locking.OPTIONS,
        share=0.45,
        only=frozenset(("range", "put", "reading_txn")),
    ),
    "restart": Kind(draws=((4, draw_restart),), options=frozenset(("restart",)), share=1.0),
}


def make_program(seed: str, kinds: Iterable[str]) -> list[Step]:
    """The program of a seed; `kinds` beside KV are mixed in."""
    generator = Generator(seed)
    chosen = [KINDS[name] for name in kinds if generator.happens(KINDS[name].share)]
    draws = [draw for kind in chosen for draw in kind.draws]
    only = [kind.only for kind in chosen if kind.only is not None]
    return generator.program(more=draws, only=frozenset.intersection(*only) if only else None)


def options_of(kinds: Iterable[str]) -> frozenset[str]:
    """What a run must have exercised."""
    return expected_options().union(*(KINDS[name].options for name in kinds))

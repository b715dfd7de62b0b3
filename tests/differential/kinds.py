"""What a program may be made of beside KV, and what a run of each kind must have covered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tests.differential import watching
from tests.differential.programs import Draw, Generator, Step, expected_options


class Kind(NamedTuple):
    """One family of steps."""

    draws: tuple[Draw, ...]
    options: frozenset[str]
    share: float
    """Of the programs of a run that has this kind, those that contain it."""


KINDS = {
    "watch": Kind(
        draws=((14, watching.draw_create), (4, watching.draw_cancel), (2, watching.draw_progress)),
        options=watching.OPTIONS,
        share=0.6,
    ),
}


def make_program(seed: str, kinds: Iterable[str]) -> list[Step]:
    """The program of a seed; `kinds` beside KV are mixed in."""
    generator = Generator(seed)
    draws: list[Draw] = []
    for name in kinds:
        if generator.chance(KINDS[name].share):
            draws += KINDS[name].draws
    return generator.program(more=draws)


def options_of(kinds: Iterable[str]) -> frozenset[str]:
    """What a run must have exercised."""
    return expected_options().union(*(KINDS[name].options for name in kinds))

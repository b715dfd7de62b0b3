"""What may have been meant by a name that does not exist, as cobra suggests it for etcdctl."""

from __future__ import annotations

from collections.abc import Iterable

DISTANCE_MAX = 2
"""Letters to change, add or leave out: cobra's."""


def did_you_mean(typed: str, names: Iterable[str]) -> str:
    """The paragraph to put behind an error; empty when nothing is similar."""
    similar = [name for name in names if is_similar(typed.lower(), name.lower())]
    return "\n\nDid you mean this?\n" + "".join(f"\t{name}\n" for name in similar) if similar else ""


def is_similar(typed: str, name: str) -> bool:
    """True for the beginning of a name, and for few wrong letters; dashes of flags do not count."""
    typed, name = typed.lstrip("-"), name.lstrip("-")
    return bool(typed) and (name.startswith(typed) or distance(typed, name) <= DISTANCE_MAX)


def distance(one: str, other: str) -> int:
    """Levenshtein's."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        above = row
        row = [number]
        for column, another in enumerate(other, 1):
            row.append(min(above[column] + 1, row[-1] + 1, above[column - 1] + (letter != another)))
    return row[-1]

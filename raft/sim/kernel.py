"""Virtual time, and randomness in a tree: the same seed is the same history, to the byte.

Random numbers come from named streams, each a function of the seed and its path alone: one more draw from
one stream changes no other, and a shortened schedule stays similar.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

MILLISECOND = 1_000
SECOND = 1_000_000


def stream(seed: int, path: str) -> random.Random:
    """The generator named `path` of this seed."""
    digest = hashlib.blake2b(f"{seed}/{path}".encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "big"))  # noqa: S311 -- repeatable on purpose


class Kernel:
    """A heap of events in microseconds. Events of one moment run in an order drawn from the seed."""

    __slots__ = ("_heap", "_serial", "_tie", "events", "now", "seed")

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0
        """Virtual microseconds since the start. Never decreases."""
        self.events = 0
        """Events run so far."""
        self._heap: list[tuple[int, int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0
        """Keeps two events of one moment and one draw from comparing their actions."""
        self._tie = stream(seed, "kernel/tie").getrandbits

    def stream(self, path: str) -> random.Random:
        return stream(self.seed, path)

    def at(self, when: int, action: Callable[..., None], *args: Any) -> None:
        """Run `action(*args)` at the moment `when`, which must not lie in the past."""
        assert when >= self.now, f"{when} is past ({self.now})"
        self._serial += 1
        heappush(self._heap, (when, self._tie(16), self._serial, action, args))

    def run(self, until: int) -> None:
        """Run every event up to and including the moment `until`; then it is that moment."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, _, action, args = heappop(heap)
            self.events += 1
            action(*args)
        self.now = until

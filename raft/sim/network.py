"""Links between members. Two kinds: datagrams (any loss, repetition and order) and streams (in order;
a reset loses everything in flight). A link misbehaves as the faults now active on it say.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from raft.core import Message
from raft.sim.kernel import Kernel

Deliver = Callable[[Message, int], None]
"""Takes a message and the sender's incarnation."""

TAIL_US = 5_000_000
"""Longest delay of a late message: several elections. Most are much shorter."""


class Link:
    """One direction between two members."""

    __slots__ = (
        "capacity",
        "down",
        "drop",
        "duplicate",
        "generation",
        "last_at",
        "rng",
        "slow",
        "tail",
        "under_way",
    )

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.generation = 0
        """Streams: number of the connection; messages sent on an earlier one are lost."""
        self.last_at = 0
        """Streams: when the newest message arrives; later ones arrive no earlier."""
        self.under_way = 0
        """Messages sent and not yet arrived."""
        self.clear_faults()

    def clear_faults(self) -> None:
        self.down = False
        self.drop = 0.0
        self.duplicate = 0.0
        self.tail = 0.0
        """Share of messages that come very late."""
        self.capacity = 0
        """Messages that may be in flight at once, 0 for any number; further ones are dropped."""
        self.slow = 0
        """Microseconds added to each."""


def _lateness(rng: random.Random) -> int:
    return int(rng.random() ** 3 * TAIL_US)


class Network:
    """Every link, made when first used."""

    def __init__(
        self,
        kernel: Kernel,
        deliver: Deliver,
        *,
        base_us: int,
        jitter_us: int,
        ordered: bool,
        hit: Callable[[str], None],
    ) -> None:
        self._hit = hit
        """Counts rare situations; see `probes`."""
        self._kernel = kernel
        self._deliver = deliver
        self._base_us = base_us
        self._jitter_us = jitter_us
        self._ordered = ordered
        self._links: dict[tuple[int, int], Link] = {}
        self.inject: Callable[[int, int, Link], None] = lambda source, target, link: None
        """Applies the active faults to a link; called when a link is made and by `refresh`."""
        self.lost = 0

    def link(self, source: int, target: int) -> Link:
        link = self._links.get((source, target))
        if link is None:
            link = self._links[source, target] = Link(self._kernel.stream(f"net/{source}->{target}"))
            self.inject(source, target, link)
        return link

    def refresh(self) -> None:
        """Apply the active faults to every link; called after one began or ended."""
        for (source, target), link in self._links.items():
            was_down = link.down
            link.clear_faults()
            self.inject(source, target, link)
            if link.down and not was_down:
                link.generation += 1

    def disconnect(self, member: int) -> None:
        """The member's process ended, which resets its connections; datagrams are still delivered."""
        if self._ordered:
            for pair, link in self._links.items():
                if member in pair:
                    link.generation += 1

    def post(self, message: Message, incarnation: int, extra_us: int = 0) -> bool:
        """Send from this incarnation of a member; False when the message is certainly lost."""
        link = self._links.get((message.from_, message.to)) or self.link(message.from_, message.to)
        if link.down:
            self.lost += 1
            return False
        rng = link.rng
        if link.drop and rng.random() < link.drop:
            self.lost += 1
            if self._ordered:
                link.generation += 1  # a stream loses messages only by a reset
            return False
        if link.capacity and link.under_way >= link.capacity:
            self.lost += 1
            self._hit("a queue is full")
            return False
        when = self._kernel.now + self._base_us + extra_us + link.slow
        if self._jitter_us:
            when += int(rng.random() * self._jitter_us)
        if link.tail and rng.random() < link.tail:
            when += _lateness(rng)
        if self._ordered:
            when = link.last_at = max(when, link.last_at)
        link.under_way += 1
        self._kernel.at(when, self._arrive, link, link.generation, message, incarnation)
        if link.duplicate and not self._ordered and rng.random() < link.duplicate:
            self._hit("a message is repeated")
            link.under_way += 1
            self._kernel.at(when + _lateness(rng), self._arrive, link, link.generation, message, incarnation)
        return True

    def _arrive(self, link: Link, generation: int, message: Message, incarnation: int) -> None:
        link.under_way -= 1
        if self._ordered and generation != link.generation:
            self.lost += 1
            self._hit("a stream breaks with messages on their way")
            return  # a datagram in flight arrives during a partition, too
        self._deliver(message, incarnation)

    def after(self, delay_us: int, action: Callable[..., None], *args: Any) -> None:
        self._kernel.at(self._kernel.now + delay_us, action, *args)

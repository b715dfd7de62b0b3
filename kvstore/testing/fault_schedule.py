"""The fault schedule of a simulated run: drawn from a seed, then plain data.

Swarm testing: each class of faults is in a run with probability one half, and then has its own rate. A run
with few classes explores their combinations deeply; all runs together cover all classes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

CLASS_PROBABILITY = 0.5
"""Probability of each class to be in a run."""

LOST_DISKS = ("wipe", "rot")
"""Faults that lose a disk. At most one is injected per run: a majority must keep its votes and acknowledged
entries."""

LOST_DISK_PROBABILITY = 0.1
"""After a lost disk, a cluster of three tolerates no further loss in that run, so these faults are rarer."""

RATES_PER_S = (0.05, 0.15, 0.5)
"""Faults of one class per virtual second; drawn per run and class."""

CHOSEN_RATES_PER_S = (0.3, 0.6, 1.0)
"""The same for classes that were requested by name: fewer others run beside them."""


class Fault(NamedTuple):
    """One fault. Members are ids; times are seconds from the start of the fault phase."""

    at_s: float
    kind: str
    for_s: float
    """Duration of a partition, an outage, a pause or a bad link. 0.0 for instantaneous faults."""
    members: Sequence[int] = ()
    """Its targets; for partitions, one side."""
    links: Sequence[tuple[int, int]] = ()
    """Directed links it affects, (from, to)."""
    detail: Any = None


class Draw:
    """Draws faults for a cluster of `size` members."""

    def __init__(self, rng: random.Random, size: int) -> None:
        self._rng = rng
        self._ids = list(range(1, size + 1))

    def schedule(self, length_s: float, classes: Sequence[str] = ()) -> list[Fault]:
        """All faults of a run in order; with `classes`, only those, instead of a drawn swarm."""
        rng = self._rng
        faults: list[Fault] = []
        for name in CLASSES:
            probability = LOST_DISK_PROBABILITY if name in LOST_DISKS else CLASS_PROBABILITY
            kept, rate = (
                rng.random() < probability,
                rng.choice(CHOSEN_RATES_PER_S if classes else RATES_PER_S),
            )
            if name not in classes if classes else not kept:
                continue
            draw = CLASSES[name]
            at_s = rng.uniform(0, length_s / 2) if classes else rng.expovariate(rate)
            while at_s < length_s:
                faults.append(draw(self, at_s))
                at_s += rng.expovariate(rate)
        lost = [fault for fault in faults if fault.kind in LOST_DISKS]
        faults = [fault for fault in faults if fault.kind not in LOST_DISKS or fault is lost[0]]
        return sorted(faults, key=lambda fault: fault.at_s)

    def _some(self, *, most: int | None = None) -> list[int]:
        return sorted(self._rng.sample(self._ids, self._rng.randint(1, most or len(self._ids))))

    def _one(self) -> list[int]:
        return [self._rng.choice(self._ids)]

    def _links(self) -> list[tuple[int, int]]:
        every = [(a, b) for a in self._ids for b in self._ids if a != b]
        return sorted(self._rng.sample(every, self._rng.randint(1, len(every))))

    def delay(self, at_s: float) -> Fault:
        most_s = self._rng.choice((0.005, 0.05, 0.3, 1.5, 5.0))
        conditions = {"delay_min_s": self._rng.uniform(0, most_s / 4), "delay_max_s": most_s}
        return Fault(at_s, "delay", self._rng.uniform(0.2, 4), links=self._links(), detail=conditions)

    def drop(self, at_s: float) -> Fault:
        conditions = {"drop_probability": self._rng.uniform(0.01, 0.4)}
        return Fault(at_s, "drop", self._rng.uniform(0.2, 5), links=self._links(), detail=conditions)

    def duplicate(self, at_s: float) -> Fault:
        conditions = {"duplicate_probability": self._rng.uniform(0.05, 0.5)}
        return Fault(at_s, "duplicate", self._rng.uniform(0.2, 5), links=self._links(), detail=conditions)

    def reset(self, at_s: float) -> Fault:
        return Fault(at_s, "reset", 0.0, links=self._links())

    def late_handshake(self, at_s: float) -> Fault:
        return Fault(at_s, "late-handshake", 0.0, self._some())

    def partition(self, at_s: float) -> Fault:
        side = self._some(most=len(self._ids) - 1)
        return Fault(at_s, "partition", self._long(), links=self._between(side, both=True))

    def one_way(self, at_s: float) -> Fault:
        return Fault(at_s, "one-way", self._long(), links=self._links())

    def isolate_leader(self, at_s: float) -> Fault:
        how = self._rng.choice(("both", "both", "in", "out"))
        return Fault(at_s, "isolate-leader", self._long(), detail=how)

    def bridge(self, at_s: float) -> Fault:
        ids = self._rng.sample(self._ids, len(self._ids))
        half = len(ids) // 2
        left, right = ids[:half], ids[half + 1 :]  # ids[half] sees both
        links = [(a, b) for a in left for b in right] + [(b, a) for a in left for b in right]
        return Fault(at_s, "bridge", self._long(), links=links)

    def flapping(self, at_s: float) -> Fault:
        side = self._some(most=len(self._ids) - 1)
        links = self._between(side, both=self._rng.random() < 0.6)
        return Fault(at_s, "flapping", self._long(), links=links, detail=self._rng.uniform(0.05, 2.0))

    def crash(self, at_s: float) -> Fault:
        members = self._ids if self._rng.random() < 0.25 else self._some()
        how = self._rng.choice(("kill", "power", "power", "in-commit", "in-commit"))
        return Fault(at_s, "crash", self._rng.choice((0.0, 0.1, 1.0, 3.0)), members, detail=how)

    def comeback(self, at_s: float) -> Fault:
        detail = (self._rng.randrange(1, 40), self._rng.random() < 0.7)
        return Fault(at_s, "comeback", self._rng.uniform(1, 5), self._one(), detail=detail)

    def stop(self, at_s: float) -> Fault:
        return Fault(at_s, "stop", self._rng.uniform(0, 1), self._one())

    def pause(self, at_s: float) -> Fault:
        return Fault(at_s, "pause", self._rng.choice((0.02, 0.3, 1.2, 5.0)), self._some())

    def slow_disk(self, at_s: float) -> Fault:
        most_s = self._rng.choice((0.005, 0.05, 0.3, 1.0))
        return Fault(at_s, "slow-disk", self._long(), self._some(), detail=most_s)

    def hung_disk(self, at_s: float) -> Fault:
        return Fault(at_s, "hung-disk", self._rng.uniform(0.4, 4), self._one())

    def io_error(self, at_s: float) -> Fault:
        operations = self._rng.choice((("datasync", "sync"), ("pwrite", "datasync", "sync")))
        detail = (self._rng.randrange(40), operations)
        return Fault(at_s, "io-error", self._rng.uniform(0.2, 2), self._one(), detail=detail)

    def no_space(self, at_s: float) -> Fault:
        return Fault(at_s, "no-space", self._rng.uniform(1, 6), self._one())

    def wipe(self, at_s: float) -> Fault:
        return Fault(at_s, "wipe", self._rng.uniform(0, 1), self._one())

    def rot(self, at_s: float) -> Fault:
        detail = (self._rng.random(), self._rng.randrange(8))
        return Fault(at_s, "rot", self._rng.uniform(0, 1), self._one(), detail=detail)

    def _long(self) -> float:
        return self._rng.choice((0.1, 0.5, 1.5, 5.0)) * self._rng.uniform(0.7, 1.5)

    def _between(self, side: Sequence[int], *, both: bool) -> list[tuple[int, int]]:
        out = [(a, b) for a in side for b in self._ids if b not in side]
        return out + [(b, a) for a, b in out] if both else out


CLASSES: dict[str, Callable[[Draw, float], Fault]] = {
    "delay": Draw.delay,
    "drop": Draw.drop,
    "duplicate": Draw.duplicate,
    "reset": Draw.reset,
    "late-handshake": Draw.late_handshake,
    "partition": Draw.partition,
    "one-way": Draw.one_way,
    "isolate-leader": Draw.isolate_leader,
    "bridge": Draw.bridge,
    "flapping": Draw.flapping,
    "crash": Draw.crash,
    "comeback": Draw.comeback,
    "stop": Draw.stop,
    "pause": Draw.pause,
    "slow-disk": Draw.slow_disk,
    "hung-disk": Draw.hung_disk,
    "io-error": Draw.io_error,
    "no-space": Draw.no_space,
    "wipe": Draw.wipe,
    "rot": Draw.rot,
}
"""Every class of faults by its name. The order counts: a seed draws the classes in it."""

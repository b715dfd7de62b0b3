"""Faults between members: partitions of every shape, slow links, links that break."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import permutations
from random import Random

from kvstore.verify.run.nemesis_runner import FaultMissedError, Field

Links = list[tuple[int, int]]
"""Ordered pairs (sender, receiver) whose messages are dropped."""

FLAP_S = (0.1, 3.0)
"""Phases of a flapping partition: 0.1 to 3 election timeouts of a second."""

DELAY_S = (0.02, 0.3)
"""One way; above half an election timeout nothing could work."""

SLOW_ELECTION_S = (0.1, 0.3)
"""One way, longer than the slots in which survivors stand after one another."""

BREAK_EVERY_S = 0.4


def halves(members: list[int], leader: int, rng: Random) -> Links:
    del leader
    small = rng.sample(members, (len(members) - 1) // 2)
    return _between(small, [one for one in members if one not in small])


def isolate_one(members: list[int], leader: int, rng: Random) -> Links:
    del leader
    one = rng.choice(members)
    return _between([one], [other for other in members if other != one])


def isolate_leader(members: list[int], leader: int, rng: Random) -> Links:
    one = leader or rng.choice(members)
    return _between([one], [other for other in members if other != one])


def one_way(members: list[int], leader: int, rng: Random) -> Links:
    """One member only receives, or only sends; the leader more often than not."""
    one = leader if leader and rng.random() < 0.6 else rng.choice(members)
    others = [other for other in members if other != one]
    return [(one, other) for other in others] if rng.random() < 0.5 else [(other, one) for other in others]


def bridge(members: list[int], leader: int, rng: Random) -> Links:
    """Two halves, connected only through one member that both reach."""
    del leader
    order = rng.sample(members, len(members))
    half = (len(order) - 1) // 2
    return _between(order[1 : 1 + half], order[1 + half :])


def majorities_ring(members: list[int], leader: int, rng: Random) -> Links:
    """Every member receives from a majority, no two from the same one: itself and the next ones around a
    ring."""
    del leader
    order = rng.sample(members, len(members))
    count, reach = len(order), len(order) // 2
    heard = {
        (order[(position + step) % count], order[position])
        for position in range(count)
        for step in range(reach + 1)
    }
    return [pair for pair in permutations(order, 2) if pair not in heard]


def _between(some: list[int], others: list[int]) -> Links:
    return [pair for one in some for other in others for pair in ((one, other), (other, one))]


class PartitionFault:
    """One shape of partition, drawn anew each time."""

    def __init__(self, field: Field, shape: Callable[[list[int], int, Random], Links]) -> None:
        self.field = field
        self.nodes: tuple[int, ...] = ()
        self._shape = shape
        self._held = 0

    def prepare(self) -> None:
        """Nothing to prepare: every member stands behind a proxy, or in a network of its own."""

    async def begin(self) -> str:
        links = await self._draw()
        self.field.cluster.partition_state.set_links(links)
        self._held = self.field.cluster.held_links()
        return self._shape.__name__.replace("_", " ") + ": " + _describe(links)

    async def _draw(self) -> Links:
        cluster = self.field.cluster
        links = self._shape(cluster.numbers, await cluster.leader(), self.field.rng)
        self.nodes = tuple(sorted({number for link in links for number in link}))
        return links

    async def end(self) -> str:
        cluster = self.field.cluster
        held = max(self._held, cluster.held_links())
        cluster.heal()
        if not held:
            raise FaultMissedError(f"no {cluster.held_called}")
        return f"{held} {cluster.held_called}"


class Flapping(PartitionFault):
    """The leader is isolated and healed again and again, faster and slower than elections."""

    def __init__(self, field: Field) -> None:
        super().__init__(field, isolate_leader)
        self._task: asyncio.Task[None] | None = None
        self._flaps = 0

    async def begin(self) -> str:
        self._flaps = 0
        self._task = asyncio.get_running_loop().create_task(self._flap())
        return "flapping isolation of the leader"

    async def _flap(self) -> None:
        cluster, rng = self.field.cluster, self.field.rng
        while True:
            cluster.partition_state.set_links(await self._draw())
            held = cluster.held_links()
            await asyncio.sleep(rng.uniform(*FLAP_S))
            self._flaps += max(held, cluster.held_links()) > 0
            cluster.heal()
            await asyncio.sleep(rng.uniform(*FLAP_S))

    async def end(self) -> str:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self.field.cluster.heal()
        if not self._flaps:
            raise FaultMissedError(f"no {self.field.cluster.held_called}")
        return f"isolated {self._flaps} times"


class SlowLinks:
    """Some directed links deliver late, each by a time of its own."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.nodes: tuple[int, ...] = ()

    def prepare(self) -> None:
        """Nothing to prepare."""

    async def begin(self) -> str:
        cluster, rng = self.field.cluster, self.field.rng
        links = [link for link in permutations(cluster.numbers, 2) if rng.random() < 0.6]
        if not links:
            raise FaultMissedError("no link was drawn")
        self.nodes = tuple(sorted({number for link in links for number in link}))
        delays = {link: rng.uniform(*DELAY_S) for link in links}
        cluster.partition_state.set_delays(delays)
        return "slow: " + ", ".join(f"{a}>{b} {1000 * s:.0f} ms" for (a, b), s in delays.items())

    async def end(self) -> str:
        cluster = self.field.cluster
        open_links = cluster.open_links()
        cluster.heal()
        if not open_links:
            raise FaultMissedError("there was no connection to slow down")
        return f"{open_links} connections were open"


class SlowElection:
    """The leader is killed while every link is slow: candidates campaign before they receive each other's
    requests."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.nodes: tuple[int, ...] = ()

    def prepare(self) -> None:
        """Nothing to prepare."""

    async def begin(self) -> str:
        cluster, rng = self.field.cluster, self.field.rng
        leader = await self.field.leader_or_any()
        self.nodes = (leader,)
        links = permutations(cluster.numbers, 2)
        cluster.partition_state.set_delays({link: rng.uniform(*SLOW_ELECTION_S) for link in links})
        await cluster.kill(leader)
        return f"killed node{leader} while all links were slow"

    async def end(self) -> str:
        cluster = self.field.cluster
        cluster.heal()
        dead = [number for number in self.nodes if number not in cluster.alive]
        for number in dead:
            await cluster.restart(number)
        if not dead:
            raise FaultMissedError("no member was dead")
        return f"node{dead[0]} was gone"


class ResetLinks:
    """Every connection between members is reset, again and again."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.nodes: tuple[int, ...] = ()
        self._resets = 0
        self._task: asyncio.Task[None] | None = None

    def prepare(self) -> None:
        """Nothing to prepare."""

    async def begin(self) -> str:
        self._resets = 0
        self.nodes = tuple(self.field.cluster.numbers)
        self._task = asyncio.get_running_loop().create_task(self._reset())
        return "all connections between members reset again and again"

    async def _reset(self) -> None:
        while True:
            self._resets += self.field.cluster.reset_links()
            await asyncio.sleep(BREAK_EVERY_S * self.field.rng.uniform(0.5, 1.5))

    async def end(self) -> str:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if not self._resets:
            raise FaultMissedError("there was no connection to reset")
        return f"{self._resets} connections reset"


def _describe(links: Links) -> str:
    both = sorted(link for link in links if (link[1], link[0]) in links and link[0] < link[1])
    single = sorted(link for link in links if (link[1], link[0]) not in links)
    return ", ".join([*(f"{a}|{b}" for a, b in both), *(f"{a}>{b}" for a, b in single)]) or "nothing"


SHAPES: dict[str, Callable[[list[int], int, Random], Links]] = {
    "partition-halves": halves,
    "partition-one": isolate_one,
    "partition-leader": isolate_leader,
    "partition-one-way": one_way,
    "partition-bridge": bridge,
    "partition-ring": majorities_ring,
}

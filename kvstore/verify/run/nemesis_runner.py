"""A nemesis injects one kind of fault; the injector runs one fault after another and records them.

A fault counts only with evidence that it took hold: an ended process, a held connection, an injected error.
A nemesis without evidence raises `FaultMissedError`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import grpc.aio

from kvstore.devcluster.plan import ClusterError
from kvstore.verify.run.cluster_under_test import ClusterUnderTest
from kvstore.verify.run.run_settings import Settings

QUIET_S = (1.0, 3.0)
"""Between two faults: time to elect and to catch up."""

HOLD_S = (1.5, 5.0)
"""How long a fault lasts: from one election timeout to several."""

OVERTIME_S = 45.0
"""How much longer than planned a run may take until each of its faults took hold once: on a slow machine
an injected error or a refusal to start takes its time, and a run without its faults is inconclusive."""

HEALTHY_TIMEOUT_S = 20.0
"""Patience for all members to serve again before the next fault."""


class FaultMissedError(Exception):
    """The fault did not take hold; the text says why."""


class Missing(Exception):
    """The nemesis cannot work here at all: a tool or a service is not there; the text names it."""


@dataclass(slots=True, kw_only=True)
class Fault:
    nemesis: str
    target: str
    """What was done, and to which members."""
    begin_ns: int
    end_ns: int = 0
    """Monotonic, when it was taken back; 0 while it stands."""
    evidence: str = ""
    """What shows that it took hold; empty when nothing does."""
    missed: str = ""
    """Why it did not take hold."""
    nodes: tuple[int, ...] = ()
    """Members it was done to."""


@dataclass(slots=True, kw_only=True)
class Field:
    """What a nemesis may touch."""

    cluster: ClusterUnderTest
    settings: Settings
    rng: random.Random
    directory: Path
    client_pids: list[int]
    """Processes of clients; filled when they have started."""
    means: dict[str, str] = field(default_factory=dict)
    """By what a fault is done where there is a choice, for the configuration of the run."""
    compacted_through: int = 0
    """Highest revision through which compaction was asked for; 0 if none was."""

    async def leader_or_any(self) -> int:
        leader = await self.cluster.leader()
        alive = self.cluster.alive
        if leader in alive:
            return leader
        if not alive:
            raise FaultMissedError("no member is alive")
        return self.rng.choice(alive)

    async def pick(self) -> int:
        """The leader every other time, else any living member."""
        if self.rng.random() < 0.5:
            return await self.leader_or_any()
        alive = self.cluster.alive
        if not alive:
            raise FaultMissedError("no member is alive")
        return self.rng.choice(alive)

    def minority(self) -> list[int]:
        """Some living members, fewer than half of the cluster."""
        most = (len(self.cluster.numbers) - 1) // 2
        alive = sorted(self.cluster.alive)
        return self.rng.sample(alive, min(len(alive), self.rng.randint(1, max(1, most))))


class Nemesis(Protocol):
    """One kind of fault: `prepare` once, before the members start, then `begin` and `end` alternately."""

    nodes: tuple[int, ...]
    """Members of the fault that stands, for the record."""

    def prepare(self) -> None:
        """Choose how members are started. Raises Missing when the nemesis cannot work here."""

    async def begin(self) -> str:
        """Inject the fault; returns what was done. Raises FaultMissedError."""

    async def end(self) -> str:
        """Heal it; returns the evidence that it took hold. Raises FaultMissedError, after healing, without
        any."""


class NemesisRunner:
    """Injects faults until the deadline, one at a time, and heals each."""

    def __init__(self, field: Field, nemeses: dict[str, Nemesis]) -> None:
        self._field = field
        self._nemeses = nemeses
        self.faults: list[Fault] = []

    async def run(self, deadline: float) -> None:
        """Until `deadline` of the monotonic clock, or longer for faults that never took hold so far."""
        names = list(self._nemeses)
        iteration = 0
        while names:
            await asyncio.sleep(self._field.rng.uniform(*QUIET_S))
            if time.monotonic() >= deadline:
                names = [name for name in names if not fired(self.faults, name)]
                if not names or time.monotonic() >= deadline + OVERTIME_S:
                    return
            await self._one(names[iteration % len(names)])
            iteration += 1

    async def _one(self, name: str) -> None:
        nemesis, rng = self._nemeses[name], self._field.rng
        fault = Fault(nemesis=name, target="", begin_ns=time.monotonic_ns())
        self.faults.append(fault)
        begun = True
        try:
            fault.target = await nemesis.begin()
            fault.nodes = nemesis.nodes
        except (FaultMissedError, ClusterError, grpc.aio.AioRpcError) as error:
            fault.missed, begun = _said(error), False
        if begun:
            await asyncio.sleep(rng.uniform(*HOLD_S))
        try:
            fault.evidence = await nemesis.end()
        except (FaultMissedError, ClusterError, grpc.aio.AioRpcError) as error:
            fault.missed = fault.missed or _said(error)
        if fault.missed:
            fault.evidence = ""  # injected in part, it does not count
        fault.end_ns = time.monotonic_ns()
        await self._recover()

    async def _recover(self) -> None:
        """Restart dead members and wait for them; if they do not recover, the checks at the end report it."""
        cluster = self._field.cluster
        cluster.note_ends()
        for number in cluster.numbers:
            if number not in cluster.alive:
                await cluster.restart(number)
        deadline = time.monotonic() + HEALTHY_TIMEOUT_S
        while time.monotonic() < deadline:
            statuses = await cluster.statuses()
            if all(status.leader_id for status in statuses):
                return
            await asyncio.sleep(0.1)


def _said(error: Exception) -> str:
    return f"{error.code().name} {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else str(error)


def fired(faults: Sequence[Fault], name: str) -> int:
    """How often a nemesis's faults took hold."""
    return sum(fault.nemesis == name and bool(fault.evidence) for fault in faults)

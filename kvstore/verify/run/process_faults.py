"""Faults of processes: killed, paused, all at once or a few, members and clients."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from kvstore.verify.run.nemesis_runner import FaultMissedError, Field

TAKE_OVER_S = (2.0, 4.0)
"""How long the leader is paused: long enough for an election and some writes."""

CLIENT_PAUSE_S = 5.0
"""Longer than two TTLs of the lock workloads: a client that held a lock has lost it."""


class _OfProcesses:
    """What the nemeses of this file share."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.nodes: tuple[int, ...] = ()

    def prepare(self) -> None:
        """Nothing to prepare."""


class Kill(_OfProcesses):
    """SIGKILL to one member, a minority, or all; they are started again at the end."""

    async def begin(self) -> str:
        field = self.field
        draw = field.rng.random()
        if draw < 0.6:
            chosen = [await field.pick()]
        elif draw < 0.85:
            chosen = field.minority()
        else:
            chosen = sorted(field.cluster.alive)
        if not chosen:
            raise FaultMissedError("no member is alive")
        self.nodes = tuple(chosen)
        await asyncio.gather(*(field.cluster.kill(number) for number in chosen))
        return "killed " + _names(chosen)

    async def end(self) -> str:
        cluster = self.field.cluster
        dead = [number for number in self.nodes if number not in cluster.alive]
        for number in dead:
            await cluster.restart(number)
        if not dead:
            raise FaultMissedError("no member was dead")
        return f"processes of {_names(dead)} were gone"


class Pause(_OfProcesses):
    """SIGSTOP to one member or a minority; SIGCONT at the end."""

    async def begin(self) -> str:
        field = self.field
        chosen = [await field.pick()] if field.rng.random() < 0.7 else field.minority()
        self.nodes = tuple(chosen)
        for number in chosen:
            field.cluster.pause(number)
        return "paused " + _names(chosen)

    async def end(self) -> str:
        cluster = self.field.cluster
        stopped = [number for number in self.nodes if _stopped(cluster.pids.get(number, 0))]
        for number in self.nodes:
            if cluster.state(number) == "paused":
                cluster.resume(number)
        if not stopped:
            raise FaultMissedError("no process was stopped")
        return f"processes of {_names(stopped)} were paused"


class PausePartition(_OfProcesses):
    """The leader is paused while another takes over, and resumes partitioned from the others."""

    async def begin(self) -> str:
        field, cluster = self.field, self.field.cluster
        leader = await field.leader_or_any()
        self.nodes = (leader,)
        cluster.pause(leader)
        cluster.isolate(leader)
        try:
            await asyncio.sleep(field.rng.uniform(*TAKE_OVER_S))
            self._was_paused = _stopped(cluster.pids.get(leader, 0))
        finally:
            cluster.resume(leader)
        return f"paused node{leader}, and isolated it when it resumed"

    async def end(self) -> str:
        cluster = self.field.cluster
        held = cluster.held_links()
        cluster.heal()
        if not self._was_paused:
            raise FaultMissedError("the leader was not stopped")
        if not held:
            raise FaultMissedError(f"no {cluster.held_called}")
        return f"the process was paused, then {held} {cluster.held_called}"

    _was_paused = False


class ClientPause(_OfProcesses):
    """SIGSTOP to one process of clients for five seconds, with whatever locks it holds."""

    async def begin(self) -> str:
        living = [pid for pid in self.field.client_pids if _state_of(pid)]
        if not living:
            raise FaultMissedError("no process of clients is alive")
        pid = self.field.rng.choice(living)
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(CLIENT_PAUSE_S)
            self._was_paused = _stopped(pid)
        finally:
            os.kill(pid, signal.SIGCONT)
        return f"paused clients {self.field.client_pids.index(pid) + 1} for {CLIENT_PAUSE_S:g} s"

    async def end(self) -> str:
        if not self._was_paused:
            raise FaultMissedError("the clients were not stopped")
        return "the process was paused"

    _was_paused = False


def _state_of(pid: int) -> str:
    """The kernel's letter for a process's state; empty when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[0]


def _stopped(pid: int) -> bool:
    return pid > 0 and _state_of(pid) == "T"


def _names(numbers: list[int]) -> str:
    return ", ".join(f"node{number}" for number in numbers)

"""Carries a schedule of faults out on a simulated cluster, and takes everything back at the end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from kvstore.testing.disks import FaultyDisk, SlowLogWriter, flip, io_error, no_space, power_cut
from kvstore.testing.faults import Fault
from kvstore.testing.judge import Judge
from kvstore.testing.probes import NodeProbes
from kvstore.testing.simulation import DATA_DIRECTORY, SimulatedCluster, SimulatedNode
from raft.node.membership import REMOVED_REASON
from raft.storage import Damaged, MemoryFiles
from raft.storage.directory import LOG_NAME
from raft.storage.memory_files import Fault as DiskFault
from raft.storage.records import SECTOR_BYTES
from raft.storage.wal import LOG_USED_UP, Log
from raft.transport.transport_protocol import Handshake

SUPERVISE_S = 0.01
"""How often dead processes are looked for, in virtual time."""

RESTART_S = 0.5
"""A process that ended by itself is started again after this."""

NEVER_S = float("inf")

LOG_DIRECTORY = f"{DATA_DIRECTORY}/{LOG_NAME}"

SEGMENT_BYTES_MAX = 1 << 20
"""More than any segment of a simulated log holds."""


class FaultyCluster(SimulatedCluster):
    """A cluster with disks that can be slow, hung, full or failing, and a supervisor for its processes."""

    judge: Judge
    probes: NodeProbes

    def prepare(self, judge: Judge) -> None:
        """Set what faults change. Called once, before the first start."""
        self.judge = judge
        self.probes = judge.probes
        self.begun_s = dict.fromkeys(self.members, 0.0)
        """When each member's newest process began."""
        self.sync_s = dict.fromkeys(self.members, 0.0)
        """Longest sync of each member's disk; 0.0 for at once."""
        self.hung_until_s = dict.fromkeys(self.members, 0.0)
        self.start_at_s = dict.fromkeys(self.members, 0.0)
        """When a process that is down may be started."""
        self.lives: Counter[int] = Counter()
        """Processes of each member so far."""
        self.wiped: set[int] = set()
        self.rotten: set[int] = set()
        """Members whose log is damaged and that have not been started since."""
        self.handshakes: dict[int, list[Handshake]] = {}
        """What each process of a member said of itself, oldest first."""
        self.disks: dict[int, FaultyDisk] = {}
        """The fault planted in each member's disk, while its process lives."""
        self.cutting: set[int] = set()
        """Members whose power is going: their process ends with it."""
        self.processes: Counter[str] = Counter()
        """How processes ended."""
        self.bootstrap_members = tuple(self.members)
        """The members the cluster began with; faults are drawn for them."""
        self.may_leave: set[int] = set()
        """Members whose removal was asked for: they may find themselves removed."""
        self._supervisor = self.loop.create_task(self._supervise(), name="supervisor")

    def enlist(self, member_id: int) -> None:
        """Have another member, which is started soon. It must be asked for (`change`) to take part."""
        self.add(member_id)
        self.sync_s[member_id] = self.hung_until_s[member_id] = self.start_at_s[member_id] = 0.0

    def make_writer(
        self, member_id: int, log: Log, fatal: Callable[[str], None], on_space: Callable[[bool], None]
    ) -> SlowLogWriter:
        def duration_s() -> float:
            hung_s = self.hung_until_s[member_id] - self.loop.time()
            if hung_s > 0:
                return hung_s
            most_s = self.sync_s[member_id]
            return self.rng.uniform(0, most_s) if most_s else 0.0

        return SlowLogWriter(
            log,
            loop=self.loop,
            fatal=fatal,
            on_space=on_space,
            duration_s=duration_s,
            draw=self.rng.random,
        )

    def on_failure(self, member_id: int, reason: str) -> None:
        super().on_failure(member_id, reason)
        if reason == "killed":
            return
        if reason == REMOVED_REASON and member_id in self.may_leave:
            self.processes["removed"] += 1
            self.start_at_s[member_id] = NEVER_S
            self.loop.call_soon(self._bury, member_id, self.lives[member_id])
            return
        disk = self.disks.get(member_id)
        log_full = disk is not None and disk.log_refused > 0 and reason.endswith(LOG_USED_UP)
        if disk is None or not (disk.injected or log_full):
            self.judge.violate("no member stops by itself", f"member {member_id}: {reason}")
        self.processes["gave up"] += 1
        self.probes.hit("a failed disk ends a process", when=disk is not None and disk.injected > 0)
        self.loop.call_soon(self._bury, member_id, self.lives[member_id])

    def _bury(self, member_id: int, life: int) -> None:
        if self.members[member_id].node is not None and self.lives[member_id] == life:
            self.kill(member_id, RESTART_S, power=member_id in self.cutting)

    def kill(self, member_id: int, down_s: float, *, power: bool) -> None:
        """End a process now and let it start again after `down_s`."""
        if self.members[member_id].node is not None:
            self._note_death(member_id, power=power)
            self.crash(member_id, power=power)
            self.probes.down([node.member_id for node in self.running], len(self.members))
            self.processes["power" if power else "kill"] += 1
        self.disks.pop(member_id, None)
        self.cutting.discard(member_id)
        self.start_at_s[member_id] = max(self.start_at_s[member_id], self.loop.time() + down_s)

    def _note_death(self, member_id: int, *, power: bool) -> None:
        member, disk = self.members[member_id], self.disks.get(member_id)
        writer = member.writer
        assert isinstance(writer, SlowLogWriter)
        self.probes.hit("one sync covers several works", when=writer.gathered > 1)
        self.probes.died(
            member_id,
            power=power,
            leading=member.running.is_leader,
            syncing=writer.busy,
            amid_write=member_id in self.cutting and disk is not None and disk.injected > 0,
            age_s=self.loop.time() - self.begun_s[member_id],
        )

    def wipe(self, member_id: int, down_s: float) -> None:
        """The member's disk is replaced by an empty one."""
        self.kill(member_id, down_s, power=False)
        self.members[member_id].files = MemoryFiles()
        self.wiped.add(member_id)

    def inject_disk_fault(self, member_id: int, fault: DiskFault) -> FaultyDisk | None:
        """Have the member's disk fail from now on; None if there is no process to see it."""
        self._cut_for_good(member_id)
        node = self.members[member_id].node
        if node is None:
            return None
        disk = FaultyDisk(fault, log_directory=LOG_DIRECTORY, state_path=lambda: node.state_path)
        self.disks[member_id] = self.members[member_id].files.fault = disk
        return disk

    def _cut_for_good(self, member_id: int) -> None:
        """A process whose power went in a callback of its own, which the loop caught, is no less dead."""
        disk = self.disks.get(member_id)
        if disk is not None and disk.injected and member_id in self.cutting:
            self.kill(member_id, RESTART_S, power=True)

    def repair(self, member_id: int) -> None:
        self._cut_for_good(member_id)
        self.disks.pop(member_id, None)
        self.members[member_id].files.fault = None

    def late_handshake(self, member_id: int) -> None:
        """If an earlier process of the member is gone, its peers hear a hello of it now."""
        for handshake in self.handshakes.get(member_id, [])[:-1][-1:]:
            for other in self.members:
                if other != member_id:
                    self.probes.hit("a late hello arrives", when=self.network.listener(other) is not None)
                    self.network.late_handshake(handshake, other)

    async def begin(self, member_id: int) -> SimulatedNode:
        """Start a member's process under the judge's eyes."""
        self.judge.restarted(member_id)
        self.lives[member_id] += 1
        self.begun_s[member_id] = self.loop.time()
        node = await self.start(member_id)
        last_term = node.core._state.log.last_term
        self.probes.begun(member_id, node.status(), last_term)
        transport = self.members[member_id].transport
        assert transport is not None
        self.handshakes.setdefault(member_id, []).append(transport.handshake)
        return node

    async def _supervise(self) -> None:
        while True:
            for member_id, member in list(self.members.items()):
                if member.node is None and self.loop.time() >= self.start_at_s[member_id]:
                    await self._try(member_id)
            await asyncio.sleep(SUPERVISE_S)

    async def _try(self, member_id: int) -> None:
        """Start a member's process; that it cannot is a finding, unless its log was damaged."""
        rotten = member_id in self.rotten
        try:
            await self.begin(member_id)
        except Exception as error:  # noqa: BLE001  # whatever keeps a member from starting is a finding
            if not rotten or not isinstance(error, Damaged):
                self.judge.violate("a member starts on what its disk holds", f"member {member_id}: {error!r}")
                self.start_at_s[member_id] = NEVER_S
                return
            self.processes["refused"] += 1
            self.probes.hit("a damaged log is refused")
            self.wipe(member_id, RESTART_S)  # what its operator is told to do
        else:
            if rotten:
                self.judge.violate("a damaged log is refused", f"member {member_id} started")
        self.rotten.discard(member_id)

    async def end(self) -> None:
        """Stop everything; AssertionError when an exception went astray."""
        self._supervisor.cancel()
        await asyncio.gather(self._supervisor, return_exceptions=True)
        await self.stop_all()


class Nemesis:
    """Strikes each fault at its time and lifts it at its end."""

    def __init__(self, cluster: FaultyCluster, rng: random.Random) -> None:
        self._cluster = cluster
        self._network = cluster.network
        self._rng = rng
        first, second, *_ = cluster.members
        self._fair = replace(cluster.network.conditions(first, second))
        """The weather before any fault, the same on all links."""
        self._cuts: Counter[tuple[int, int]] = Counter()
        """How many faults block each link now."""
        self.injected: Counter[str] = Counter()
        """Faults by class that found something to strike."""
        self.spans_s: list[tuple[float, float]] = []
        """When each of them began and was to end, in the loop's time."""

    async def run(self, faults: Sequence[Fault]) -> None:
        """Carry out a schedule; returns when the last fault has been lifted."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(self._carry_out(fault))

    async def _carry_out(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_s)
        self.injected[fault.kind] += 1
        now_s = self._cluster.loop.time()
        self.spans_s.append((now_s, now_s + fault.for_s))
        await _INJECTORS[fault.kind](self, fault)

    # ---- network

    def cut(self, links: Sequence[tuple[int, int]]) -> None:
        for link in links:
            self._cuts[link] += 1
            if self._cuts[link] == 1:
                self._network.block(*link)

    def repair(self, links: Sequence[tuple[int, int]]) -> None:
        for link in links:
            self._cuts[link] -= 1
            if self._cuts[link] == 0:
                self._network.unblock(*link)

    async def _cut(self, fault: Fault) -> None:
        self.cut(fault.links)
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            self.repair(fault.links)

    async def _flap(self, fault: Fault) -> None:
        end_s = self._cluster.loop.time() + fault.for_s
        while self._cluster.loop.time() < end_s:
            await self._cut(fault._replace(for_s=self._rng.uniform(0.5, 1) * fault.detail))
            await asyncio.sleep(self._rng.uniform(0.5, 1) * fault.detail)

    async def _isolate_leader(self, fault: Fault) -> None:
        leaders = [node.member_id for node in self._cluster.running if node.is_leader]
        if leaders:
            leader = self._rng.choice(leaders)
            others = [other for other in self._cluster.members if other != leader]
            out = [(leader, other) for other in others] if fault.detail != "in" else []
            into = [(other, leader) for other in others] if fault.detail != "out" else []
            await self._cut(fault._replace(links=out + into))

    async def _weather(self, fault: Fault) -> None:
        """Delays, losses, repetitions. Where two faults meet the later rules, and any end is fair weather."""
        conditions = [self._network.conditions(*link) for link in fault.links]
        try:
            for link in conditions:
                for name, value in fault.detail.items():
                    setattr(link, name, value)
            await asyncio.sleep(fault.for_s)
        finally:
            for link in conditions:
                for name in fault.detail:
                    setattr(link, name, getattr(self._fair, name))

    async def _reset(self, fault: Fault) -> None:
        for source, target in fault.links:
            self._network.disconnect(source, target)

    async def _late_handshake(self, fault: Fault) -> None:
        for member_id in fault.members:
            self._cluster.late_handshake(member_id)

    # ---- processes

    async def _crash(self, fault: Fault) -> None:
        cluster = self._cluster
        up = [member_id for member_id in fault.members if cluster.members[member_id].node is not None]
        if fault.detail == "in-commit":
            for member_id in up:
                files = cluster.members[member_id].files
                first = files.calls + self._rng.randrange(1, 60)
                cluster.cutting.add(member_id)
                cluster.inject_disk_fault(member_id, power_cut(first, at_sync=self._rng.random() < 0.7))
            await asyncio.sleep(self._rng.uniform(0, 0.3))
        for member_id in up:
            cluster.kill(member_id, fault.for_s * self._rng.random(), power=fault.detail != "kill")

    async def _comeback(self, fault: Fault) -> None:
        """A member misses a change of leader, comes back, and loses power in the midst of catching up."""
        cluster, (member_id,) = self._cluster, fault.members
        others = [other for other in cluster.members if other != member_id]
        links = [(member_id, other) for other in others] + [(other, member_id) for other in others]
        self.cut(links)
        try:
            await asyncio.sleep(fault.for_s / 2)
            for leader in [node.member_id for node in cluster.running if node.is_leader]:
                cluster.kill(leader, 0.0, power=False)
            await asyncio.sleep(fault.for_s / 2)
        finally:
            self.repair(links)
        if cluster.members[member_id].node is None or member_id in cluster.disks:
            return
        calls, at_sync = fault.detail
        files = cluster.members[member_id].files
        cluster.cutting.add(member_id)
        disk = cluster.inject_disk_fault(member_id, power_cut(files.calls + calls, at_sync=at_sync))
        await asyncio.sleep(1.0)
        if disk is not None and cluster.disks.get(member_id) is disk:
            cluster.kill(member_id, 0.0, power=True)

    async def _stop(self, fault: Fault) -> None:
        cluster, (member_id,) = self._cluster, fault.members
        if cluster.members[member_id].node is not None and member_id not in cluster.disks:
            cluster.start_at_s[member_id] = cluster.loop.time() + fault.for_s
            leads = cluster.members[member_id].running.is_leader
            cluster.probes.hit("a leader is stopped in good order", when=leads)
            await cluster.stop(member_id)
            cluster.processes["stopped"] += 1

    async def _pause(self, fault: Fault) -> None:
        cluster = self._cluster
        nodes = [cluster.members[member_id].node for member_id in fault.members]
        paused = [node for node in nodes if node is not None and not node.paused]
        links = [(other, node.member_id) for node in paused for other in cluster.members]
        links = [(source, target) for source, target in links if source != target]
        led = {node.member_id: node.term for node in paused if node.is_leader}
        cluster.probes.hit("a leader is paused", when=bool(led))
        for node in paused:
            node.pause()
        self.cut(links)  # what arrives waits in the sockets
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            self.repair(links)
            for node in paused:
                terms = [other.term for other in cluster.running]
                newer = max(terms, default=0) > led.get(node.member_id, 1 << 62)
                cluster.probes.hit("a paused leader finds another", when=newer)
                node.resume()

    # ---- disks

    async def _slow_disk(self, fault: Fault) -> None:
        cluster = self._cluster
        for member_id in fault.members:
            cluster.sync_s[member_id] = fault.detail
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            for member_id in fault.members:
                cluster.sync_s[member_id] = 0.0

    async def _hung_disk(self, fault: Fault) -> None:
        leaders = [node.member_id for node in self._cluster.running if node.is_leader]
        self._cluster.probes.hit("a leader's disk hangs", when=fault.members[0] in leaders)
        self._cluster.hung_until_s[fault.members[0]] = self._cluster.loop.time() + fault.for_s

    async def _io_error(self, fault: Fault) -> None:
        """The disk fails for good: the process must be gone as soon as that shows."""
        cluster, (member_id,) = self._cluster, fault.members
        if cluster.members[member_id].node is None or member_id in cluster.disks:
            return
        life = cluster.lives[member_id]
        after, operations = fault.detail
        disk = cluster.inject_disk_fault(
            member_id, io_error(cluster.members[member_id].files.calls + after, operations)
        )
        assert disk is not None, "the process runs and no power is going"
        await asyncio.sleep(fault.for_s)
        alive = cluster.members[member_id].node is not None and cluster.lives[member_id] == life
        if disk.injected and alive:
            cluster.judge.violate("a failed disk ends its process", f"member {member_id} lives on")
        if alive and cluster.disks.get(member_id) is disk:
            cluster.repair(member_id)

    async def _no_space(self, fault: Fault) -> None:
        cluster, (member_id,) = self._cluster, fault.members
        if cluster.members[member_id].node is None or member_id in cluster.disks:
            return
        disk = cluster.inject_disk_fault(member_id, no_space)
        await asyncio.sleep(fault.for_s)
        if cluster.disks.get(member_id) is disk:
            cluster.repair(member_id)

    async def _wipe(self, fault: Fault) -> None:
        if len(self._cluster.members) > 2:
            self._cluster.wipe(fault.members[0], fault.for_s)

    async def _rot(self, fault: Fault) -> None:
        """A bit of the newest record flips while the process is away: the start must refuse the log."""
        cluster, (member_id,) = self._cluster, fault.members
        if cluster.members[member_id].node is None or member_id in cluster.disks:
            return
        cluster.kill(member_id, fault.for_s, power=False)
        share, bit = fault.detail
        cluster.members[member_id].files.damage(_newest_segment(cluster, member_id), flip(share, bit))
        cluster.rotten.add(member_id)


def _newest_segment(cluster: FaultyCluster, member_id: int) -> str:
    """The segment of a member's log that holds its newest record."""
    files = cluster.members[member_id].files
    names = [name for name in files.list(LOG_DIRECTORY) if name.endswith(".wal")]
    return next(
        path
        for path in (f"{LOG_DIRECTORY}/{name}" for name in reversed(names))
        if any(files.open(path).pread(SEGMENT_BYTES_MAX, SECTOR_BYTES))
    )


_INJECTORS = {
    "delay": Nemesis._weather,
    "drop": Nemesis._weather,
    "duplicate": Nemesis._weather,
    "reset": Nemesis._reset,
    "late-hello": Nemesis._late_handshake,
    "partition": Nemesis._cut,
    "one-way": Nemesis._cut,
    "isolate-leader": Nemesis._isolate_leader,
    "bridge": Nemesis._cut,
    "flapping": Nemesis._flap,
    "crash": Nemesis._crash,
    "comeback": Nemesis._comeback,
    "stop": Nemesis._stop,
    "pause": Nemesis._pause,
    "slow-disk": Nemesis._slow_disk,
    "hung-disk": Nemesis._hung_disk,
    "io-error": Nemesis._io_error,
    "no-space": Nemesis._no_space,
    "wipe": Nemesis._wipe,
    "rot": Nemesis._rot,
}

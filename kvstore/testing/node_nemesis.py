"""Injects a schedule of faults into a simulated cluster, and heals each at its end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from kvstore.testing.disks import FaultyDisk, SlowLogWriter, flip, io_error, no_space, power_cut
from kvstore.testing.fault_schedule import Fault
from kvstore.testing.probes import NodeProbes
from kvstore.testing.simulation import DATA_DIRECTORY, SimulatedCluster, SimulatedNode
from kvstore.testing.simulation_judge import Judge
from raft.node.membership import REMOVED_REASON
from raft.storage import Damaged, MemoryFiles
from raft.storage.directory import LOG_NAME
from raft.storage.memory_files import Fault as DiskFault
from raft.storage.records import SECTOR_BYTES
from raft.storage.wal import LOG_USED_UP, Log
from raft.transport.transport_protocol import Handshake

SUPERVISE_S = 0.01
"""How often the supervisor looks for ended processes, in virtual time."""

RESTART_S = 0.5
"""A process that failed by itself is restarted after this."""

NEVER_S = float("inf")

LOG_DIRECTORY = f"{DATA_DIRECTORY}/{LOG_NAME}"

SEGMENT_BYTES_MAX = 1 << 20
"""More than any segment of a simulated log holds."""


class FaultyCluster(SimulatedCluster):
    """A cluster with disks that can be slow, hung, full or faulty, and a supervisor for its processes."""

    judge: Judge
    probes: NodeProbes

    def prepare(self, judge: Judge) -> None:
        """Initialize what faults change. Called once, before the first start."""
        self.judge = judge
        self.probes = judge.probes
        self.begun_s = dict.fromkeys(self.members, 0.0)
        """When each member's newest incarnation started."""
        self.sync_s = dict.fromkeys(self.members, 0.0)
        """Longest sync of each member's disk; 0.0 for at once."""
        self.hung_until_s = dict.fromkeys(self.members, 0.0)
        self.start_at_s = dict.fromkeys(self.members, 0.0)
        """When a process that is down may be started."""
        self.lives: Counter[int] = Counter()
        """Incarnations of each member so far."""
        self.wiped: set[int] = set()
        self.corrupted: set[int] = set()
        """Members whose log is corrupt and that have not been restarted since."""
        self.handshakes: dict[int, list[Handshake]] = {}
        """The handshake of each incarnation of a member, oldest first."""
        self.disks: dict[int, FaultyDisk] = {}
        """The fault injected into each member's disk, while its process lives."""
        self.losing_power: set[int] = set()
        """Members whose disk faults with a power cut: the process is killed at it."""
        self.processes: Counter[str] = Counter()
        """How processes ended."""
        self.bootstrap_members = tuple(self.members)
        """The members the cluster was bootstrapped with; faults are drawn for them."""
        self.may_leave: set[int] = set()
        """Members whose removal was requested: they may stop because of it."""
        self._supervisor = self.loop.create_task(self._supervise(), name="supervisor")

    def enlist(self, member_id: int) -> None:
        """Create another member, which the supervisor starts. It takes part once a change (`change`) adds
        it."""
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
            log, loop=self.loop, fatal=fatal, on_space=on_space, duration_s=duration_s, draw=self.rng.random
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
        log_full = disk is not None and disk.log_full_calls > 0 and reason.endswith(LOG_USED_UP)
        if disk is None or not (disk.fatal_calls or log_full):
            self.judge.violate("no member stops by itself", f"member {member_id}: {reason}")
        self.processes["gave up"] += 1
        self.probes.hit("a failed disk ends a process", when=disk is not None and disk.fatal_calls > 0)
        self.loop.call_soon(self._bury, member_id, self.lives[member_id])

    def _bury(self, member_id: int, life: int) -> None:
        if self.members[member_id].node is not None and self.lives[member_id] == life:
            self.kill(member_id, RESTART_S, power=member_id in self.losing_power)

    def kill(self, member_id: int, down_s: float, *, power: bool) -> None:
        if self.members[member_id].node is not None:
            self._note_death(member_id, power=power)
            self.crash(member_id, power=power)
            self.probes.down([node.member_id for node in self.running], len(self.members))
            self.processes["power" if power else "kill"] += 1
        self.disks.pop(member_id, None)
        self.losing_power.discard(member_id)
        self.start_at_s[member_id] = max(self.start_at_s[member_id], self.loop.time() + down_s)

    def _note_death(self, member_id: int, *, power: bool) -> None:
        member, disk = self.members[member_id], self.disks.get(member_id)
        writer = member.writer
        assert isinstance(writer, SlowLogWriter)
        self.probes.hit("one sync covers several jobs", when=writer.jobs_per_sync_max > 1)
        self.probes.died(
            member_id,
            power=power,
            leading=member.running.is_leader,
            syncing=writer.busy,
            amid_write=member_id in self.losing_power and disk is not None and disk.fatal_calls > 0,
            age_s=self.loop.time() - self.begun_s[member_id],
        )

    def wipe(self, member_id: int, down_s: float) -> None:
        self.kill(member_id, down_s, power=False)
        self.members[member_id].files = MemoryFiles()
        self.wiped.add(member_id)

    def inject_disk_fault(self, member_id: int, fault: DiskFault) -> FaultyDisk | None:
        """Inject a disk fault from now on; None if the member is down."""
        self._finish_power_cut(member_id)
        node = self.members[member_id].node
        if node is None:
            return None
        disk = FaultyDisk(fault, log_directory=LOG_DIRECTORY, backend_path=lambda: node.backend_path)
        self.disks[member_id] = self.members[member_id].files.fault = disk
        return disk

    def _finish_power_cut(self, member_id: int) -> None:
        """Kill a process that met its power cut in a callback, where the loop caught the exception."""
        disk = self.disks.get(member_id)
        if disk is not None and disk.fatal_calls and member_id in self.losing_power:
            self.kill(member_id, RESTART_S, power=True)

    def repair(self, member_id: int) -> None:
        self._finish_power_cut(member_id)
        self.disks.pop(member_id, None)
        self.members[member_id].files.fault = None

    def late_handshake(self, member_id: int) -> None:
        """Deliver the handshake of the member's previous incarnation, if there is one, to its peers."""
        for handshake in self.handshakes.get(member_id, [])[:-1][-1:]:
            for other in self.members:
                if other != member_id:
                    self.probes.hit("a late handshake arrives", when=self.network.listener(other) is not None)
                    self.network.late_handshake(handshake, other)

    async def begin(self, member_id: int) -> SimulatedNode:
        """Start a member's process and record its incarnation."""
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
                    await self._restart(member_id)
            await asyncio.sleep(SUPERVISE_S)

    async def _restart(self, member_id: int) -> None:
        """Start a member's process; a failure is a violation, unless its log was corrupted."""
        corrupted = member_id in self.corrupted
        try:
            await self.begin(member_id)
        except Exception as error:  # noqa: BLE001  # any error at a start is a violation
            if not corrupted or not isinstance(error, Damaged):
                self.judge.violate("a member starts on what its disk holds", f"member {member_id}: {error!r}")
                self.start_at_s[member_id] = NEVER_S
                return
            self.processes["refused"] += 1
            self.probes.hit("a damaged log is refused")
            self.wipe(member_id, RESTART_S)  # as the operator's manual says
        else:
            if corrupted:
                self.judge.violate("a damaged log is refused", f"member {member_id} started")
        self.corrupted.discard(member_id)

    async def end(self) -> None:
        """Stop everything; AssertionError after an uncaught exception."""
        self._supervisor.cancel()
        await asyncio.gather(self._supervisor, return_exceptions=True)
        await self.stop_all()


class Nemesis:
    """Injects each fault at its time and heals it at its end."""

    def __init__(self, cluster: FaultyCluster, rng: random.Random) -> None:
        self._cluster = cluster
        self._network = cluster.network
        self._rng = rng
        first, second, *_ = cluster.members
        self._normal = replace(cluster.network.conditions(first, second))
        """The conditions before any fault, the same on all links."""
        self._blocks: Counter[tuple[int, int]] = Counter()
        """How many faults block each link now."""
        self.fault_counts: Counter[str] = Counter()
        """Faults begun, by class."""
        self.spans_s: list[tuple[float, float]] = []
        """When each of them began and was due to end, in the loop's time."""

    async def run(self, faults: Sequence[Fault]) -> None:
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(self._inject(fault))

    async def _inject(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_s)
        self.fault_counts[fault.kind] += 1
        now_s = self._cluster.loop.time()
        self.spans_s.append((now_s, now_s + fault.for_s))
        await _INJECTORS[fault.kind](self, fault)

    # ---- network

    def block(self, links: Sequence[tuple[int, int]]) -> None:
        for link in links:
            self._blocks[link] += 1
            if self._blocks[link] == 1:
                self._network.block(*link)

    def unblock(self, links: Sequence[tuple[int, int]]) -> None:
        for link in links:
            self._blocks[link] -= 1
            if self._blocks[link] == 0:
                self._network.unblock(*link)

    async def _partition(self, fault: Fault) -> None:
        self.block(fault.links)
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            self.unblock(fault.links)

    async def _flap(self, fault: Fault) -> None:
        end_s = self._cluster.loop.time() + fault.for_s
        while self._cluster.loop.time() < end_s:
            await self._partition(fault._replace(for_s=self._rng.uniform(0.5, 1) * fault.detail))
            await asyncio.sleep(self._rng.uniform(0.5, 1) * fault.detail)

    async def _isolate_leader(self, fault: Fault) -> None:
        leaders = [node.member_id for node in self._cluster.running if node.is_leader]
        if leaders:
            leader = self._rng.choice(leaders)
            others = [other for other in self._cluster.members if other != leader]
            out = [(leader, other) for other in others] if fault.detail != "in" else []
            into = [(other, leader) for other in others] if fault.detail != "out" else []
            await self._partition(fault._replace(links=out + into))

    async def _degrade(self, fault: Fault) -> None:
        """Delay, loss, duplication. On a link with two faults the later one applies, and the first end heals
        both."""
        conditions = [self._network.conditions(*link) for link in fault.links]
        try:
            for link in conditions:
                for name, value in fault.detail.items():
                    setattr(link, name, value)
            await asyncio.sleep(fault.for_s)
        finally:
            for link in conditions:
                for name in fault.detail:
                    setattr(link, name, getattr(self._normal, name))

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
                cluster.losing_power.add(member_id)
                cluster.inject_disk_fault(member_id, power_cut(first, at_sync=self._rng.random() < 0.7))
            await asyncio.sleep(self._rng.uniform(0, 0.3))
        for member_id in up:
            cluster.kill(member_id, fault.for_s * self._rng.random(), power=fault.detail != "kill")

    async def _comeback(self, fault: Fault) -> None:
        """A member misses a change of leader, comes back, and loses power while it catches up."""
        cluster, (member_id,) = self._cluster, fault.members
        others = [other for other in cluster.members if other != member_id]
        links = [(member_id, other) for other in others] + [(other, member_id) for other in others]
        self.block(links)
        try:
            await asyncio.sleep(fault.for_s / 2)
            for leader in [node.member_id for node in cluster.running if node.is_leader]:
                cluster.kill(leader, 0.0, power=False)
            await asyncio.sleep(fault.for_s / 2)
        finally:
            self.unblock(links)
        if cluster.members[member_id].node is None or member_id in cluster.disks:
            return
        calls, at_sync = fault.detail
        files = cluster.members[member_id].files
        cluster.losing_power.add(member_id)
        disk = cluster.inject_disk_fault(member_id, power_cut(files.calls + calls, at_sync=at_sync))
        await asyncio.sleep(1.0)
        if disk is not None and cluster.disks.get(member_id) is disk:
            cluster.kill(member_id, 0.0, power=True)

    async def _stop(self, fault: Fault) -> None:
        cluster, (member_id,) = self._cluster, fault.members
        if cluster.members[member_id].node is not None and member_id not in cluster.disks:
            cluster.start_at_s[member_id] = cluster.loop.time() + fault.for_s
            leads = cluster.members[member_id].running.is_leader
            cluster.probes.hit("a leader is stopped cleanly", when=leads)
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
        self.block(links)  # what arrives waits in the sockets
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            self.unblock(links)
            for node in paused:
                terms = [other.term for other in cluster.running]
                newer = max(terms, default=0) > led.get(node.member_id, 1 << 62)
                cluster.probes.hit("a paused leader resumes in a later term", when=newer)
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
        """The disk fails for good: the process must end at the first failed call."""
        cluster, (member_id,) = self._cluster, fault.members
        if cluster.members[member_id].node is None or member_id in cluster.disks:
            return
        life = cluster.lives[member_id]
        after, operations = fault.detail
        disk = cluster.inject_disk_fault(
            member_id, io_error(cluster.members[member_id].files.calls + after, operations)
        )
        assert disk is not None, "the process runs, and no power cut is due"
        await asyncio.sleep(fault.for_s)
        alive = cluster.members[member_id].node is not None and cluster.lives[member_id] == life
        if disk.fatal_calls and alive:
            cluster.judge.violate("a failed disk ends its process", f"member {member_id} still runs")
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
        """A bit of the newest record flips while the process is down: the start must refuse the log."""
        cluster, (member_id,) = self._cluster, fault.members
        if cluster.members[member_id].node is None or member_id in cluster.disks:
            return
        cluster.kill(member_id, fault.for_s, power=False)
        share, bit = fault.detail
        cluster.members[member_id].files.damage(_newest_segment(cluster, member_id), flip(share, bit))
        cluster.corrupted.add(member_id)


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
    "delay": Nemesis._degrade,
    "drop": Nemesis._degrade,
    "duplicate": Nemesis._degrade,
    "reset": Nemesis._reset,
    "late-handshake": Nemesis._late_handshake,
    "partition": Nemesis._partition,
    "one-way": Nemesis._partition,
    "isolate-leader": Nemesis._isolate_leader,
    "bridge": Nemesis._partition,
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

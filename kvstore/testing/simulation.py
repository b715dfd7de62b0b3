"""Whole members on a virtual-time loop: real node, real core, real log, on a fake network and disk.

Every choice (delays, what a crash loses, timers) comes from one seed, so a seed repeats a run.
A crash is a power cut of one member: its process ends at any point, and its disk keeps an arbitrary part of
the un-synced writes.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from kvstore.engine import Engine, Member
from kvstore.testing.services import MemberServices
from kvstore.testing.simulated_connection import SimulatedConnection
from raft.core import RaftCore
from raft.core.confchange import ConfChange
from raft.core.types import ConfState
from raft.node import MemberOptions, MemberStorage, Node, NodeConfig, NodeError, StateMachine, assemble
from raft.storage import (
    Bootstrap,
    InlineBackground,
    InlineLogWriter,
    MemoryBackendOpener,
    MemoryFiles,
    open_member,
)
from raft.storage.memory_backend import MemoryBackend
from raft.storage.memory_files import MemoryFile, MemoryLock, PowerCut
from raft.storage.storage_protocol import Row
from raft.storage.wal import Log
from raft.transport.memory_transport import MemoryTransport, Network

logger = logging.getLogger(__name__)

CLUSTER_ID = 0xC1
DATA_DIRECTORY = "/data"
SEGMENT_BYTES = 64 * 1024
"""Small, so that segments are rolled often, and cheap to hold in memory."""
POLL_S = 0.01
"""How often, in virtual time, a condition is polled."""


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311  # simulation must be repeatable, not unguessable


class LedgerMachine:
    """Records every command ever applied, in order. The outcome of a command is its position.

    The command of a membership change that removes member 3 must read `remove 3`.
    """

    def __init__(self) -> None:
        self.applied: list[bytes] = []
        self._saved = 0
        """How many of `applied` have been drained for the backend."""
        self._loading: dict[bytes, bytes] = {}

    def apply(self, index: int, term: int, commands: Sequence[bytes], wanted: bool) -> Sequence[object]:
        first = len(self.applied)
        self.applied.extend(commands)
        return range(first, first + len(commands)) if wanted else ()

    def apply_change(self, index: int, term: int, command: bytes, fits: bool) -> tuple[bool, object]:
        return fits, self.apply(index, term, [command], True)[0]

    def peer_urls(self, member_id: int) -> tuple[str, ...] | None:
        return ()  # ids find peers in memory

    def is_removed(self, member_id: int) -> bool:
        return b"remove %d" % member_id in self.applied

    def drain_changes(self) -> list[Row]:
        rows: list[Row] = [
            (position.to_bytes(8, "big"), self.applied[position])
            for position in range(self._saved, len(self.applied))
        ]
        self._saved = len(self.applied)
        return rows

    def pending_change_bytes(self) -> int:
        return sum(map(len, self.applied[self._saved :]))

    def fresh(self) -> LedgerMachine:
        return LedgerMachine()

    def replace(self, loaded: LedgerMachine) -> None:
        self.applied, self._saved = loaded.applied, loaded._saved

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        self._loading.update(rows)

    def load_done(self) -> None:
        self.applied = [self._loading[key] for key in sorted(self._loading)]
        self._saved = len(self.applied)
        self._loading = {}


class SimulatedEngine(Engine):
    """The product's state machine, for members that find each other in memory."""

    def peer_urls(self, member_id: int) -> tuple[str, ...] | None:
        return ()  # ids find peers in memory

    def fresh(self) -> SimulatedEngine:
        return SimulatedEngine()


def _bootstrap_member(member_id: int) -> Member:
    """As the store lists it. Its addresses name it; no connection is made to them."""
    name = f"node{member_id}"
    return Member(member_id, name, (f"http://{name}:2380",), (f"http://{name}:2379",))


class _ProcessFiles:
    """The file system as one process sees it. After the process has ended, every access raises PowerCut."""

    def __init__(self, files: MemoryFiles) -> None:
        self._files = files
        self._life = files.life

    def _alive(self) -> MemoryFiles:
        if self._files.life != self._life:
            raise PowerCut("this process has ended")
        return self._files

    def open(self, path: str, *, create: bool = False) -> MemoryFile:
        return self._alive().open(path, create=create)

    def exists(self, path: str) -> bool:
        return self._alive().exists(path)

    def list(self, directory: str) -> list[str]:
        return self._alive().list(directory)

    def make_directory(self, path: str) -> None:
        self._alive().make_directory(path)

    def rename(self, source: str, target: str) -> None:
        self._alive().rename(source, target)

    def unlink(self, path: str) -> None:
        self._alive().unlink(path)

    def sync_directory(self, path: str) -> None:
        self._alive().sync_directory(path)

    def lock(self, path: str) -> MemoryLock:
        return self._alive().lock(path)


@dataclass(slots=True)
class SimulatedMember:
    member_id: int
    files: MemoryFiles
    node: SimulatedNode | None = None
    """None while the process is down."""
    machine: StateMachine | None = None
    transport: MemoryTransport | None = None
    writer: InlineLogWriter | None = None
    failures: list[str] = field(default_factory=list)
    """Reasons given to `fatal`, by all its processes."""

    @property
    def running(self) -> SimulatedNode:
        assert self.node is not None, f"member {self.member_id} is down"
        return self.node


class SimulatedNode(Node):
    """A member whose process can be paused, as by SIGSTOP."""

    paused = False
    _paused_at_s = 0.0
    """When the current pause began; valid while `paused`."""
    _earlier_pauses_s = 0.0
    """Length of all pauses before that."""
    after_iteration: Callable[[RaftCore], None] | None = None
    """Called after each loop iteration."""

    @property
    def core(self) -> RaftCore:
        return self._core

    @property
    def backend_path(self) -> str:
        """The file of the backend in use, as disk faults name it; files beside it are snapshots."""
        state = self._checkpointer.backend
        assert isinstance(state, MemoryBackend)
        return state.opened_as

    def ask(self, action: Callable[[RaftCore], None]) -> None:
        self._inbox.post(lambda: action(self._core))

    @property
    def failed(self) -> bool:
        """This process has failed and no longer answers."""
        return not self._inbox.open

    def _iterate(self) -> None:
        if not self.paused:
            super()._iterate()
            if self.after_iteration is not None and self._inbox.open:
                self.after_iteration(self._core)

    @property
    def paused_s(self) -> float:
        """Length of all pauses of this process: time in which it could do nothing."""
        return self._earlier_pauses_s + (self._loop.time() - self._paused_at_s if self.paused else 0.0)

    def pause(self) -> None:
        self.paused, self._paused_at_s = True, self._loop.time()

    def resume(self) -> None:
        self._earlier_pauses_s = self.paused_s
        self.paused = False
        self._iterate()


class SimulatedCluster:
    """Members 1 to `size` on one network. Create it inside a virtual-time loop, then `start_all`."""

    def __init__(
        self,
        *,
        seed: int,
        size: int = 3,
        machine: Callable[[], StateMachine] = LedgerMachine,
        config: Callable[[int], NodeConfig] = lambda member_id: NodeConfig(
            member_id=member_id, cluster_id=CLUSTER_ID
        ),
    ) -> None:
        self.rng = seeded(seed)
        self.segment_bytes = SEGMENT_BYTES
        """Of logs created from now on."""
        self.loop = asyncio.get_running_loop()
        self.network = Network(
            self.loop, seeded(self.rng.getrandbits(64)), delay_min_s=0.0002, delay_max_s=0.001
        )
        self.loop.set_exception_handler(self._on_stray_exception)
        self.stray: list[BaseException] = []
        """Exceptions uncaught in the loop, except those of ended processes."""
        self._machine = machine
        self._config = config
        self._voters = tuple(range(1, size + 1))
        self.members = {member_id: SimulatedMember(member_id, MemoryFiles()) for member_id in self._voters}
        self.services: dict[int, MemberServices] = {}
        """The services of each running process; empty unless the machine is the product's engine."""
        self._bootstrap_voters: dict[int, tuple[int, ...]] = {}
        """Members that joined later, with the voters of the cluster at that time."""

    def _on_stray_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        if isinstance(error, PowerCut):
            return  # a timer of a dead process met the disk of the next one
        self.stray.append(error if isinstance(error, BaseException) else RuntimeError(context["message"]))
        loop.default_exception_handler(context)

    # ---- processes

    async def start_all(self) -> None:
        for member_id in self._voters:
            await self.start(member_id)

    async def start(self, member_id: int) -> SimulatedNode:
        member = self.members[member_id]
        assert member.node is None
        rng = seeded(self.rng.getrandbits(64))
        files = _ProcessFiles(member.files)
        directory = await open_member(
            files,
            DATA_DIRECTORY,
            cluster_id=CLUSTER_ID,
            member_id=member_id,
            bootstrap=Bootstrap(conf=ConfState(voters=self._voters)),
            open_state=MemoryBackendOpener(files),
            background=InlineBackground(),
            segment_bytes=self.segment_bytes,
            new_disk_id=lambda: rng.getrandbits(64),
        )
        node: SimulatedNode | None = None

        def fatal(reason: str) -> None:
            if node is not None:
                node.fail(reason)

        def on_space(available: bool) -> None:
            if node is not None:
                node.on_log_space(available)

        member.writer = self.make_writer(member_id, directory.log, fatal, on_space)
        member.machine = self.make_machine(member_id)
        member.transport = self.network.transport()
        options = MemberOptions(
            config=self._config(member_id),
            incarnation=rng.getrandbits(64),
            rng=rng,
            fatal=lambda reason: self.on_failure(member_id, reason),
            bootstrap_voters=self._bootstrap_voters.get(member_id),
        )
        storage = MemberStorage(
            recovered=directory.recovered,
            checkpoint=await directory.state.mark(),
            log=member.writer,
            backend=directory.state,
            snapshot_store=directory.snapshot_store,
        )
        node = member.node = assemble(options, storage, member.transport, member.machine, SimulatedNode)
        self.serve(member_id, node)
        await node.start()
        return node

    def serve(self, member_id: int, node: SimulatedNode) -> None:
        """Let a member serve clients. Called before it starts, with `members[member_id].machine` set."""
        engine = self.engine_of(member_id)
        if engine is not None:
            self.services[member_id] = MemberServices(
                node, engine, cluster_id=CLUSTER_ID, rng=seeded(self.rng.getrandbits(64))
            )

    def ended(self, member_id: int) -> None:
        services = self.services.pop(member_id, None)
        if services is not None:
            services.stop()

    def engine_of(self, member_id: int) -> Engine | None:
        machine = self.members[member_id].machine
        return machine if isinstance(machine, Engine) else None

    def services_of(self, member_id: int) -> MemberServices | None:
        node = self.members[member_id].node
        return None if node is None or node.failed else self.services.get(member_id)

    def paused(self, member_id: int) -> bool:
        """Whether a member's process is paused: it accepts requests and answers later."""
        node = self.members[member_id].node
        return node is not None and node.paused

    def connect(self, *member_ids: int, timeout_s: float = 5.0) -> SimulatedConnection:
        """A client's connection to these members, or to all; only with `machine=SimulatedEngine`."""
        return SimulatedConnection(self, member_ids or tuple(self.members), timeout_s=timeout_s)

    def make_writer(
        self, member_id: int, log: Log, fatal: Callable[[str], None], on_space: Callable[[bool], None]
    ) -> InlineLogWriter:
        """The log writer of a process; a simulation may make a slower one."""
        return InlineLogWriter(log, loop=self.loop, fatal=fatal, on_space=on_space)

    def make_machine(self, member_id: int) -> StateMachine:
        """A new state machine for a process; a simulation may wrap it."""
        kind = self._machine
        if isinstance(kind, type) and issubclass(kind, SimulatedEngine):
            return kind(members=map(_bootstrap_member, self._voters))
        return self._machine()

    def on_failure(self, member_id: int, reason: str) -> None:
        """A process of the member failed by itself, or was killed."""
        self.members[member_id].failures.append(reason)

    async def stop(self, member_id: int) -> None:
        member = self.members[member_id]
        node, member.node = member.running, None
        await node.stop()
        self.ended(member_id)
        member.files.restart()

    def crash(
        self, member_id: int, *, power: bool = True, choose: Callable[[int], int] | None = None
    ) -> None:
        """Kill a member's process; with `power`, its disk also loses what it had not synced.

        `choose` decides how much of it, as in `MemoryFiles.crash`; by default it is drawn at random.
        """
        member = self.members[member_id]
        node, member.node = member.running, None
        self.network.crash(member_id)
        if power:
            member.files.crash(choose or self.rng.randrange)
        else:
            member.files.restart()
        node.fail("killed")
        self.ended(member_id)

    def power_cut(self) -> None:
        """A power cut of every running member at once, as `crash` is of one."""
        for node in self.running:
            self.crash(node.member_id)

    def partition(self, *groups: Iterable[int]) -> None:
        """Silently drop messages between members of different groups, until `heal`.

        Clients still reach every member. Members in no group are unaffected.
        """
        self.network.partition(*groups)

    def heal(self) -> None:
        self.network.heal()

    async def stop_all(self) -> None:
        for member_id, member in self.members.items():
            if member.node is not None:
                await self.stop(member_id)
        assert not self.stray, self.stray

    # ---- status and requests

    @property
    def running(self) -> list[SimulatedNode]:
        return [member.node for member in self.members.values() if member.node is not None]

    def leader(self) -> Node | None:
        """The leader that a majority of its voters follows, if there is one. Removed members and learners do
        not
        count."""
        for node in self.running:
            if node.is_leader:
                voters = node.core.conf.voters
                voting = [other for other in self.running if other.member_id in voters]
                followers = [other for other in voting if other.leader == node.member_id]
                if len(followers) * 2 > len(voters) and all(f.term == node.term for f in followers):
                    return node
        return None

    async def wait_for_leader(self, timeout_s: float = 10.0) -> Node:
        await self.wait_until(lambda: self.leader() is not None, timeout_s, "a leader")
        found = self.leader()
        assert found is not None
        return found

    async def wait_until(
        self, condition: Callable[[], bool], timeout_s: float = 10.0, what: str = "the condition"
    ) -> None:
        """Wait in virtual time; AssertionError, naming `what`, when it does not hold within `timeout_s`."""
        end_s = self.loop.time() + timeout_s
        while not condition():
            if self.loop.time() >= end_s:
                raise AssertionError(f"{what} did not come within {timeout_s} s: {self.describe()}")
            await asyncio.sleep(POLL_S)

    def describe(self) -> str:
        return "; ".join(
            f"{n.member_id}: term {n.term} leader {n.leader} applied {n.applied}" for n in self.running
        )

    def propose(self, member_id: int, command: bytes) -> asyncio.Future[object]:
        """Propose through a member; the future returns the outcome or raises the NodeError."""
        future, on_result = self._answer()
        self.members[member_id].running.propose(command, on_result)
        return future

    def change(self, member_id: int, change: ConfChange, command: bytes) -> asyncio.Future[object]:
        """Request a membership change from a member; the future is as of `propose`."""
        future, on_result = self._answer()
        self.members[member_id].running.membership.change(change, command, on_result)
        return future

    def add(self, member_id: int) -> None:
        """Create a member that can be started once a change has added it. Ids are never reused."""
        leader = self.leader()
        assert leader is not None, "joining needs a cluster with a leader"
        assert member_id not in self.members
        voters = leader.status().conf.voters
        self._bootstrap_voters[member_id] = voters
        self.members[member_id] = SimulatedMember(member_id, MemoryFiles())

    def _answer(self) -> tuple[asyncio.Future[object], Callable[[object, NodeError | None], None]]:
        future: asyncio.Future[object] = self.loop.create_future()

        def on_result(outcome: object, error: NodeError | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(outcome)
            else:
                future.set_exception(error)

        return future, on_result

    def read_barrier(self, member_id: int) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self.loop.create_future()

        def on_result(error: NodeError | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.members[member_id].running.read_barrier(on_result)
        return future

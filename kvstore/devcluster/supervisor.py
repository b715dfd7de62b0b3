"""Starts the members of a local cluster, keeps watch over them, and does faults to them.

Rules of this file: a member's process is started, signalled and awaited here and nowhere else. A
fault is done at once and its effect shows in `statuses`; nothing here restarts what has ended,
because a developer who killed a member wants it dead.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kvstore.devcluster.cluster_status import NodeStatus, StatusProbe
from kvstore.devcluster.dialers import process_of
from kvstore.devcluster.plan import ClusterError, ClusterPlan, NodePlan, child_environment, free_ports
from kvstore.devcluster.proxy import Partition, PeerProxy

STOP_TIMEOUT_S = 5.0
"""Members stop within 3 s of SIGTERM; after this they are killed."""

READY_TIMEOUT_S = 60.0
"""A fresh cluster elects in about a second; replaying a large log on a busy machine takes longer."""

POLL_INTERVAL_S = 0.1
LOG_TAIL_LINES = 5


@dataclass(slots=True)
class _Child:
    """One member's process, as long as it is the newest of that member."""

    process: asyncio.subprocess.Process
    watcher: asyncio.Task[None]
    """Waits for the end of the process."""
    state: str = "running"
    """running or paused; then killed, stopped or exited (code)."""
    asked: str = ""
    """What an end would be called because we asked for it; empty when it would be the member's own."""

    @property
    def alive(self) -> bool:
        return self.state in ("running", "paused")


class Supervisor:
    """A running local cluster. Use `start`, then faults and `statuses`, then `stop`."""

    def __init__(self, plan: ClusterPlan, *, on_change: Callable[[], None] = lambda: None) -> None:
        self.plan = plan
        self.partition_state = Partition()
        self._on_change = on_change
        """Called whenever a process has started or ended."""
        self._children: dict[int, _Child] = {}
        self._listen_peer_ports: dict[int, int] = {}
        """Where each member really listens for peers."""
        self._proxies: dict[int, PeerProxy] = {}
        self._probes: dict[int, StatusProbe] = {}
        self._watchers: dict[asyncio.Task[None], None] = {}
        """Watchers of every process not yet ended, newest children's and older ones'."""

    @property
    def pids(self) -> dict[int, int]:
        """Process id of every member ever started, 0 once it has ended."""
        return {number: child.process.pid if child.alive else 0 for number, child in self._children.items()}

    async def start(self) -> None:
        """Start proxies and members; raises ClusterError when a port is taken. Does not wait for a leader."""
        self.plan.check_ports()
        hidden = free_ports(len(self.plan.nodes)) if self.plan.proxied else []
        for node in self.plan.nodes:
            if not self.plan.proxied:
                self._listen_peer_ports[node.number] = node.peer_port
                continue
            target = self._listen_peer_ports[node.number] = hidden.pop()
            proxy = self._proxies[node.number] = PeerProxy(
                number=node.number,
                listen_port=node.peer_port,
                target_port=target,
                partition=self.partition_state,
                who_dials=self._who_dials,
            )
            await proxy.start()
        for node in self.plan.nodes:
            self._probes[node.number] = StatusProbe(node.client_address)
            await self._spawn(node)

    async def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> list[NodeStatus]:
        """Wait until every living member knows the leader; raises ClusterError when one ends or time does."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            for number, child in self._children.items():
                if not child.alive and not child.asked:
                    raise ClusterError(f"node{number} {child.state}: {self.last_words(number)}")
            statuses = await self.statuses()
            if all(status.leader_id for status in statuses if status.process == "running"):
                return statuses
            if loop.time() > deadline:
                waiting = ", ".join(status.name for status in statuses if not status.leader_id)
                raise ClusterError(f"after {timeout_s:.0f} s these nodes know no leader: {waiting}")
            await asyncio.sleep(POLL_INTERVAL_S)

    async def stop(self) -> None:
        """Stop every member, politely for STOP_TIMEOUT_S, then the proxies. May be called twice."""
        for number, child in self._children.items():
            if child.alive:
                self._signal(number, signal.SIGTERM, asked="stopped")
                self._signal(number, signal.SIGCONT)  # a paused process hears nothing until it goes on
        if self._watchers:
            await asyncio.wait(list(self._watchers), timeout=STOP_TIMEOUT_S)
        for number, child in self._children.items():
            if child.alive:
                self._signal(number, signal.SIGKILL)
        if self._watchers:
            await asyncio.wait(list(self._watchers))
        for proxy in self._proxies.values():
            await proxy.stop()
        for probe in self._probes.values():
            await probe.close()
        self._proxies.clear()
        self._probes.clear()

    async def kill(self, number: int) -> None:
        """SIGKILL a member and wait until it is gone."""
        child = self._living(number)
        self._signal(number, signal.SIGKILL, asked="killed")
        await asyncio.wait([child.watcher])

    def pause(self, number: int) -> None:
        """SIGSTOP a member: it is silent, its sockets stay."""
        self._living(number).state = "paused"
        self._signal(number, signal.SIGSTOP)

    def resume(self, number: int) -> None:
        """SIGCONT a paused member."""
        self._living(number).state = "running"
        self._signal(number, signal.SIGCONT)

    async def restart(self, number: int) -> None:
        """Stop a member if it lives, then start it on its data."""
        node = self.plan.node(number)
        child = self._children.get(number)
        if child is not None and child.alive:
            self._signal(number, signal.SIGTERM, asked="stopped")
            self._signal(number, signal.SIGCONT)
            done, _ = await asyncio.wait([child.watcher], timeout=STOP_TIMEOUT_S)
            if not done:
                await self.kill(number)
        await self._spawn(node)

    def partition(self, groups: Iterable[Iterable[int]]) -> None:
        """Let only members of one group hear one another; those not named form a group of their own."""
        self._need_proxies()
        sides = [list(group) for group in groups]
        named = [number for side in sides for number in side]
        for number in named:
            self.plan.node(number)
        if len(set(named)) != len(named):
            raise ClusterError("a node can be in one group of a partition only")
        rest = [node.number for node in self.plan.nodes if node.number not in named]
        self.partition_state.set_groups([*sides, rest])

    def isolate(self, number: int) -> None:
        self.partition([[number]])

    def heal(self) -> None:
        """End the partition: what was held back flows again."""
        self._need_proxies()
        self.partition_state.heal()

    async def statuses(self) -> list[NodeStatus]:
        """Ask every living member for its status and return one row per member, in order."""
        return list(await asyncio.gather(*(self._status(node) for node in self.plan.nodes)))

    async def resolve(self, who: str) -> int:
        """Return the number of the member meant by `2`, `node2` or `leader`."""
        if who == "leader":
            leaders = [status for status in await self.statuses() if status.role == "leader"]
            if not leaders:
                raise ClusterError("there is no leader at the moment")
            return max(leaders, key=lambda status: status.term).number
        text = who.removeprefix("node")
        if not text.isdigit():
            raise ClusterError(f"{who!r} is neither a node's number nor 'leader'")
        return self.plan.node(int(text)).number

    def last_words(self, number: int) -> str:
        """Return the end of a member's log, in one line."""
        try:
            lines = self.plan.log_file(self.plan.node(number)).read_text(errors="replace").splitlines()
        except OSError as error:
            return str(error)
        return " | ".join(line for line in lines[-LOG_TAIL_LINES:] if line.strip()) or "it said nothing"

    def launch(self, node: NodePlan) -> tuple[list[str], dict[str, str]]:
        """Return the command line and the environment that a member is started with, now."""
        return self.plan.command(node, self._listen_peer_ports[node.number]), child_environment()

    async def _spawn(self, node: NodePlan) -> None:
        command, environment = self.launch(node)
        log_file = self.plan.log_file(node)
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the supervisor, which stops members in order
            )
        watcher = asyncio.get_running_loop().create_task(self._watch(node.number, process))
        self._watchers[watcher] = None
        watcher.add_done_callback(self._watchers.pop)
        self._children[node.number] = _Child(process, watcher)
        self._on_change()

    async def _watch(self, number: int, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        child = self._children[number]
        assert child.process is process, "a member is started again only after its process has ended"
        child.state = child.asked or f"exited ({code})"
        self._on_change()

    def _living(self, number: int) -> _Child:
        self.plan.node(number)
        child = self._children.get(number)
        if child is None or not child.alive:
            raise ClusterError(f"node{number} is not running")
        return child

    def _signal(self, number: int, signal_number: int, *, asked: str = "") -> None:
        child = self._children[number]
        if asked:
            child.asked = asked
        try:
            os.kill(child.process.pid, signal_number)
        except ProcessLookupError:
            return  # it has just ended; its watcher will say so

    def _need_proxies(self) -> None:
        if not self.plan.proxied:
            raise ClusterError("this cluster was started without proxies, so it cannot be partitioned")

    def _who_dials(self, port: int, listen_port: int) -> int | None:
        numbers = {child.process.pid: number for number, child in self._children.items() if child.alive}
        pid = process_of(port, listen_port, numbers)
        return None if pid is None else numbers[pid]

    async def _status(self, node: NodePlan) -> NodeStatus:
        child = self._children.get(node.number)
        known = NodeStatus(
            number=node.number,
            name=node.name,
            client_address=node.client_address,
            process="stopped" if child is None else child.state,
            pid=child.process.pid if child is not None and child.alive else 0,
            unreachable_from=tuple(self.partition_state.unreachable_from(node.number)),
        )
        probe = self._probes.get(node.number)
        if child is None or child.state != "running" or probe is None:
            return known
        answer = await probe.ask()
        if answer is None:
            return known
        return NodeStatus(
            number=known.number,
            name=known.name,
            client_address=known.client_address,
            process=known.process,
            pid=known.pid,
            unreachable_from=known.unreachable_from,
            answered=True,
            member_id=answer.header.member_id,
            leader_id=answer.leader,
            term=answer.raftTerm,
            raft_index=answer.raftIndex,
            applied_index=answer.raftAppliedIndex,
            database_bytes=answer.dbSize,
            version=answer.version,
            errors=tuple(answer.errors),
        )

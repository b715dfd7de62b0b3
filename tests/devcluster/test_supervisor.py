"""A supervisor over stand-ins for members: real processes, real sockets, real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kvstore.devcluster import control
from kvstore.devcluster.plan import HOST, ClusterError, ClusterPlan, Running, prepare
from kvstore.devcluster.supervisor import Supervisor

pytestmark = pytest.mark.asyncio

FAKE_NODE = str(Path(__file__).with_name("fake_node.py"))
DEADLINE_S = 20.0


def plan_in(directory: Path, *server_arguments: str, nodes: int = 3, proxied: bool = True) -> ClusterPlan:
    plan = prepare(directory, nodes=nodes, free=True, proxied=proxied, server_arguments=server_arguments)
    return replace(plan, python_arguments=(FAKE_NODE,))


@asynccontextmanager
async def running(plan: ClusterPlan) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(plan)
    try:
        await supervisor.start()
        await supervisor.wait_ready(DEADLINE_S)
        yield supervisor
    finally:
        await supervisor.stop()


async def until(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110  another process changes it
            await asyncio.sleep(0.01)


def heard(plan: ClusterPlan, number: int) -> list[str]:
    """Names of the members that this one has heard from, in order."""
    lines = plan.log_file(plan.node(number)).read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith("heard ")]


async def test_a_cluster_comes_up_shows_itself_and_goes_down(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    async with running(plan) as supervisor:
        statuses = await supervisor.statuses()
        assert [status.role for status in statuses] == ["leader", "follower", "follower"]
        assert {status.process for status in statuses} == {"running"}
        assert [(status.term, status.raft_index, status.database_bytes) for status in statuses] == [
            (2, 30, 20480)
        ] * 3
        assert await supervisor.resolve("leader") == 1
        pids = supervisor.pids
        assert all(pids.values())
    assert set(supervisor.pids.values()) == {0}
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    plan.check_ports()


async def test_kill_restart_pause_and_resume(tmp_path: Path) -> None:
    async with running(plan_in(tmp_path)) as supervisor:
        first_pid = supervisor.pids[2]
        await supervisor.kill(2)
        assert (await supervisor.statuses())[1].process == "killed"
        with pytest.raises(ClusterError, match="node2 is not running"):
            await supervisor.kill(2)
        await supervisor.restart(2)
        await supervisor.wait_ready(DEADLINE_S)
        assert supervisor.pids[2] not in (0, first_pid)
        supervisor.pause(3)
        status = (await supervisor.statuses())[2]
        assert (status.process, status.answered) == ("paused", False)
        supervisor.resume(3)
        assert (await supervisor.wait_ready(DEADLINE_S))[2].answered
        await supervisor.restart(1)
        await supervisor.wait_ready(DEADLINE_S)


async def test_a_partition_between_processes_is_silence_and_heals(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    async with running(plan) as supervisor:
        await until(lambda: all(len(set(heard(plan, number))) == 2 for number in (1, 2, 3)))
        supervisor.partition([[1, 2], [3]])
        statuses = await supervisor.statuses()
        assert [status.unreachable_from for status in statuses] == [(3,), (3,), (1, 2)]
        counted = heard(plan, 1).count("node2")
        await until(lambda: heard(plan, 1).count("node2") > counted + 10)  # what was on its way has come
        before = [heard(plan, 1).count("node3"), heard(plan, 3)]
        counted = heard(plan, 1).count("node2")
        await until(lambda: heard(plan, 1).count("node2") > counted + 20)
        assert [heard(plan, 1).count("node3"), heard(plan, 3)] == before
        await supervisor.restart(3)  # its new connections are silent as well
        counted = heard(plan, 1).count("node2")
        await until(lambda: heard(plan, 1).count("node2") > counted + 20)
        assert [heard(plan, 1).count("node3"), heard(plan, 3)] == before
        supervisor.heal()
        await until(lambda: heard(plan, 1).count("node3") > before[0])
        await until(lambda: len(heard(plan, 3)) > len(before[1]))


async def test_isolating_partitions_one_member_and_partitions_replace_one_another(tmp_path: Path) -> None:
    async with running(plan_in(tmp_path)) as supervisor:
        supervisor.isolate(1)
        assert [status.unreachable_from for status in await supervisor.statuses()] == [(2, 3), (1,), (1,)]
        supervisor.partition([[2]])
        assert [status.unreachable_from for status in await supervisor.statuses()] == [(2,), (1, 3), (2,)]
        with pytest.raises(ClusterError, match="one group"):
            supervisor.partition([[1], [1, 2]])
        with pytest.raises(ClusterError, match="no node 9"):
            supervisor.isolate(9)


async def test_without_proxies_members_talk_directly_and_cannot_be_partitioned(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, proxied=False)
    async with running(plan) as supervisor:
        await until(lambda: set(heard(plan, 1)) == {"node2", "node3"})
        with pytest.raises(ClusterError, match="without proxies"):
            supervisor.isolate(1)
        with pytest.raises(ClusterError, match="without proxies"):
            supervisor.heal()


async def test_a_member_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "--fail=the data directory belongs to another cluster")
    supervisor = Supervisor(plan)
    try:
        await supervisor.start()
        with pytest.raises(ClusterError, match=r"exited \(1\): Error: the data directory belongs"):
            await supervisor.wait_ready(DEADLINE_S)
    finally:
        await supervisor.stop()


async def test_a_stubborn_member_is_killed_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore.devcluster.supervisor.STOP_TIMEOUT_S", 0.2)
    async with running(plan_in(tmp_path, "--stubborn", nodes=1)) as supervisor:
        pid = supervisor.pids[1]
        supervisor.pause(1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_member_that_dies_by_itself_is_told_apart(tmp_path: Path) -> None:
    async with running(plan_in(tmp_path, nodes=1)) as supervisor:
        os.kill(supervisor.pids[1], signal.SIGKILL)
        await until(lambda: supervisor.pids[1] == 0)
        assert (await supervisor.statuses())[0].process == "exited (-9)"


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    node = plan.nodes[1]
    for use, port in (("clients", node.client_port), ("peers", node.peer_port)):
        complaint = rf"port {port} \({use} of node2\) is taken by another process"
        with socket.create_server((HOST, port)), pytest.raises(ClusterError, match=complaint):
            await Supervisor(plan).start()


async def test_the_control_port_does_what_the_commands_ask(tmp_path: Path) -> None:
    async with running(plan_in(tmp_path)) as supervisor:
        server = control.ControlServer(supervisor)
        await server.start()
        how = Running(control_port=server.port, control_secret=server.secret)
        try:
            rows = [control.status_from(row) for row in await control.ask(how, "status")]
            assert rows == await supervisor.statuses()
            assert await control.ask(how, "partition", "1,2|node3") == "the network is split"
            assert supervisor.partition_state.unreachable_from(3) == [1, 2]
            await control.ask(how, "heal")
            await control.ask(how, "isolate", "2")
            assert supervisor.partition_state.unreachable_from(2) == [1, 3]
            await control.ask(how, "pause", "2")
            await control.ask(how, "resume", "2")
            assert await control.ask(how, "kill", "leader") == "node1 killed"
            with pytest.raises(ClusterError, match="no leader"):
                await control.ask(how, "kill", "leader")
            assert await control.ask(how, "restart", "1") == "node1 started"
            with pytest.raises(ClusterError, match="neither"):
                await control.ask(how, "kill", "somebody")
            with pytest.raises(ClusterError, match="no such request"):
                await control.ask(how, "explode")
            with pytest.raises(ConnectionError, match="not the supervisor of this cluster"):
                await control.ask(replace(how, control_secret="a guess"), "down")  # noqa: S106  not a secret
            assert not server.stop_asked.is_set()
            await control.ask(how, "down")
            assert server.stop_asked.is_set()
        finally:
            server.close()

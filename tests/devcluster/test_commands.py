"""The commands as a user runs them, each in a process of its own, on a cluster of stand-ins."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kvstore.devcluster import display, plan
from kvstore.devcluster.cluster_command import cluster
from kvstore.devcluster.cluster_status import NodeStatus

ROOT = Path(__file__).parents[2]
FAKE_CLUSTER = str(Path(__file__).with_name("run_fake_cluster.py"))
DEADLINE_S = 30.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        pause.wait(0.02)


def call(directory: Path, *arguments: str) -> Result:
    """Run one command in this process; a running loop is not needed, and it starts in a tenth of the time."""
    verb, *rest = arguments
    return CliRunner().invoke(cluster, [verb, f"--directory={directory}", *rest])


def state(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / plan.STATE_FILE).read_text())
    return found


@contextmanager
def foreground(directory: Path, *flags: str, stdout: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A cluster in the foreground of another process, which is stopped at the end."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / "output").open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, FAKE_CLUSTER, str(directory), *flags],
            stdout=file if stdout is None else stdout,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def output(directory: Path) -> str:
    return (directory.parent / "output").read_text()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "home" / ".cluster"


def test_a_session_from_up_to_down(directory: Path) -> None:
    with foreground(directory) as process:
        until(lambda: "node3 running" in output(directory))
        assert "cluster of 3 nodes is up: 127.0.0.1:" in output(directory)
        shown = call(directory, "status")
        assert shown.exit_code == 0
        assert re.search(r"node1 +running +\d+ +127\.0\.0\.1:\d+ +leader +2 +30", shown.output)
        assert call(directory, "kill", "leader").output == "node1 killed\n"
        assert re.search(r"node1 +killed +- ", call(directory, "status").output)
        until(lambda: "node1 killed" in output(directory))
        assert call(directory, "restart", "1").output == "node1 started\n"
        assert call(directory, "pause", "node2").output == "node2 paused\n"
        assert re.search(r"node2 +paused", call(directory, "status").output)
        until(lambda: "node2 paused" in output(directory))
        assert call(directory, "resume", "2").output == "node2 resumed\n"
        assert call(directory, "partition", "1,2|3").exit_code == 0
        assert re.search(r"node3 .* 1,2$", call(directory, "status").output, re.MULTILINE)
        assert call(directory, "heal").exit_code == 0
        assert call(directory, "isolate", "2").exit_code == 0
        refused = call(directory, "kill", "7")
        assert refused.exit_code == 1
        assert refused.output == "Error: there is no node 7; this cluster has nodes 1 to 3\n"
        logged = call(directory, "logs", "1")
        assert "ready" in logged.output.splitlines()
        assert "node3 | ready" in call(directory, "logs").output
        pids = list(state(directory)["running"]["pids"].values())
        assert all(alive(pid) for pid in pids)
        assert call(directory, "down").output == "cluster stopped\n"
        assert process.wait(DEADLINE_S) == 0
        assert not any(alive(pid) for pid in pids)
    gone = call(directory, "status")
    assert gone.exit_code == 1
    assert "no cluster runs in" in gone.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_everything(directory: Path, number: int) -> None:
    with foreground(directory) as process:
        until(lambda: "is up" in output(directory))
        pids = list(state(directory)["running"]["pids"].values())
        process.send_signal(number)
        assert process.wait(DEADLINE_S) == 0
        assert len(pids) == 3
        assert not any(alive(pid) for pid in pids)
    assert output(directory).endswith("cluster stopped\n")


def test_a_second_cluster_in_the_same_directory_is_refused(directory: Path) -> None:
    with foreground(directory):
        until(lambda: "is up" in output(directory))
        refused = call(directory, "up")
        assert refused.exit_code == 1
        assert refused.output == f"Error: a cluster already runs in {directory}; stop it with: down\n"


def test_members_that_lost_their_supervisor_are_found_and_stopped(directory: Path) -> None:
    with foreground(directory) as process:
        until(lambda: "is up" in output(directory))
        pids = list(state(directory)["running"]["pids"].values())
        process.kill()
        process.wait(DEADLINE_S)
        lost = call(directory, "status")
        assert lost.exit_code == 1
        assert "gone without a word" in lost.output
        assert "3 nodes were killed" in call(directory, "down").output
        until(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n", b'{"error": "wrong secret"}\n', b"[]\n", b"\xff\n", b""]
)
def test_a_stranger_on_the_old_control_port_is_not_taken_for_the_supervisor(
    directory: Path, answer: bytes
) -> None:
    made = plan.prepare(directory, nodes=1, free=True)
    with socket.create_server(("127.0.0.1", 0)) as stranger:

        def reply() -> None:
            while True:
                try:
                    connection, _ = stranger.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        answering = threading.Thread(target=reply)
        answering.start()
        try:
            port = stranger.getsockname()[1]
            plan.save(made, plan.Running(supervisor_pid=1, control_port=port))
            refused = call(directory, "status")
            assert (refused.exit_code, refused.output.count("\n")) == (1, 1)
            assert "has gone without a word" in refused.output
            assert call(directory, "down").exit_code == 0
            assert "no cluster runs" in call(directory, "status").output
        finally:
            stranger.shutdown(socket.SHUT_RDWR)
            answering.join(DEADLINE_S)


def test_a_member_that_cannot_start_ends_the_cluster_with_its_own_words(directory: Path) -> None:
    with foreground(directory, "--fail=no luck") as process:
        assert process.wait(DEADLINE_S) == 1
    assert re.search(r"^Error: node\d exited \(1\): Error: no luck$", output(directory), re.MULTILINE)
    assert set(state(directory)["running"]["pids"].values()) <= {0}


def test_logs_can_be_followed(directory: Path) -> None:
    log = directory / "node1" / "log"
    log.parent.mkdir(parents=True)
    log.write_text("before\n")
    plan.save(plan.prepare(directory, nodes=1, free=True), plan.Running())
    follower = subprocess.Popen(
        [sys.executable, str(ROOT / "cluster.py"), "logs", "1", "-f", f"--directory={directory}"],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "before\n"
        with log.open("a") as file:
            file.write("after\n")
        assert follower.stdout.readline() == "after\n"
    finally:
        follower.kill()
        follower.communicate()


def test_on_a_terminal_the_table_is_live(directory: Path) -> None:
    pytest.importorskip("rich")
    ours, theirs = pty.openpty()
    with foreground(directory, stdout=theirs) as process:
        os.close(theirs)
        seen = b""
        while b"Ctrl-C stops the cluster" not in seen or b"leader" not in seen:
            seen += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        try:
            while chunk := os.read(ours, 4096):
                seen += chunk
        except OSError:
            pass  # how a terminal ends
        assert process.wait(DEADLINE_S) == 0
    os.close(ours)
    assert b"cluster stopped" in seen


def test_data_without_a_plan_is_not_touched(directory: Path) -> None:
    (directory / "node1" / "data").mkdir(parents=True)
    refused = call(directory, "up")
    assert refused.exit_code == 1
    assert "belongs to a cluster that" in refused.output
    assert len(refused.output.splitlines()) == 1


def test_a_cluster_keeps_its_size_and_ports(directory: Path) -> None:
    made = plan.prepare(directory, nodes=3, free=True)
    plan.save(made, plan.Running())
    assert len(plan.prepare(directory, nodes=5, free=True).nodes) == 5  # no data yet: nothing to keep
    made.data_directory(made.nodes[0]).mkdir(parents=True)
    assert plan.prepare(directory, nodes=None, free=False) == made
    refused = call(directory, "up", "--nodes", "5")
    assert refused.exit_code == 1
    assert "holds a cluster of 3 nodes, not 5" in refused.output


def test_a_port_that_is_taken_is_not_recorded(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((plan.HOST, 0)) as other:
        monkeypatch.setattr(plan, "CLIENT_PORT", other.getsockname()[1])
        for _ in range(2):
            refused = call(directory, "up", "--nodes", "1")
            assert refused.exit_code == 1
            assert refused.output.startswith(f"Error: port {plan.CLIENT_PORT} (clients of node1) is taken by")
            assert refused.output.endswith("or start this cluster with --free-ports\n")
            assert plan.load(directory) is None
    recorded = plan.prepare(directory, nodes=3, free=False)
    plan.save(recorded, plan.Running())
    assert plan.prepare(directory, nodes=None, free=False) == recorded
    moved = plan.prepare(directory, nodes=None, free=True)
    assert moved.nodes != recorded.nodes, "no data names its ports"
    assert len(moved.nodes) == 3


def test_the_backend_is_private_and_a_broken_one_is_refused(directory: Path) -> None:
    plan.save(plan.prepare(directory, nodes=1, free=True), plan.Running())
    file = directory / plan.STATE_FILE
    assert file.stat().st_mode & 0o077 == 0
    file.write_text('{"format": 99}')
    assert call(directory, "status").output.startswith(f"Error: {file} has format 99")
    file.write_text('{"format": 1')
    assert "cannot be read" in call(directory, "status").output


def test_usual_ports_are_etcds() -> None:
    nodes = plan.usual_nodes(3)
    assert [node.client_port for node in nodes] == [2379, 22379, 32379]
    assert [node.peer_port for node in nodes] == [2380, 22380, 32380]
    assert max(node.metrics_port for node in plan.usual_nodes(plan.NODES_MAX)) < 65536


def test_a_command_line_is_etcds(tmp_path: Path) -> None:
    made = plan.prepare(tmp_path, nodes=3, free=False, server_arguments=("--log-level=debug",))
    command = made.command(made.nodes[1], 4444)
    assert command[1:4] == ["-m", "kvstore", "server"]
    assert "--listen-client-urls=http://127.0.0.1:22379" in command
    assert "--listen-peer-urls=http://127.0.0.1:4444" in command
    assert "--initial-advertise-peer-urls=http://127.0.0.1:22380" in command
    members = "node1=http://127.0.0.1:2380,node2=http://127.0.0.1:22380,node3=http://127.0.0.1:32380"
    assert f"--initial-cluster={members}" in command
    assert command[-1] == "--log-level=debug"


def test_plain_lines_tell_changes_once() -> None:
    first = NodeStatus(
        number=1, name="node1", client_address="a:1", process="running", pid=7, unreachable_from=()
    )
    lines = display.PlainLines()
    assert lines.news([first]) == ["node1 running, pid 7, no answer"]
    assert lines.news([first]) == []
    leads = NodeStatus(
        number=1,
        name="node1",
        client_address="a:1",
        process="running",
        pid=7,
        unreachable_from=(2,),
        answered=True,
        member_id=5,
        leader_id=5,
        term=3,
        database_bytes=1_500_000,
    )
    assert lines.news([leads]) == ["node1 running, pid 7, leader, term 3, partitioned from node2"]
    header, row = display.plain_table([leads]).splitlines()
    assert header.split()[:3] == ["node", "process", "pid"]
    assert row.split() == ["node1", "running", "7", "a:1", "leader", "3", "0", "0", "1.5", "MB", "2"]

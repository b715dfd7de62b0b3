"""The commands on real members: what a user does in the first five minutes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0

_Found = TypeVar("_Found")

pytestmark = pytest.mark.timeout(180)


class Commands:
    """Runs `cluster.py` in a directory of its own, as a shell would."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "cluster.py"), *arguments],
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def succeed(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def fail(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 1, done.stdout + done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    def rows(self) -> dict[str, list[str]]:
        """Cells of `status` by node, as far as spaces tell them apart."""
        lines = self.succeed("status").splitlines()[1:]
        return {line.split()[0]: line.split()[1:] for line in lines}

    def leader(self) -> str | None:
        leaders = [name for name, cells in self.rows().items() if cells[3] == "leader"]
        return leaders[0] if len(leaders) == 1 else None

    def key_value(self, *arguments: str, partitioned: str = "") -> subprocess.CompletedProcess[str]:
        state = json.loads((self.home / ".cluster" / "cluster.json").read_text())
        endpoints = ",".join(
            f"127.0.0.1:{node['client_port']}"
            for node in state["nodes"]
            if f"node{node['number']}" != partitioned
        )
        return subprocess.run(
            [sys.executable, "-m", "kvstore", f"--endpoints={endpoints}", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )


def until(condition: Callable[[], _Found]) -> _Found:
    """Return what `condition` returns once that is true of it."""
    deadline = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        pause.wait(0.1)
    return found


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    made = Commands(tmp_path)
    yield made
    made.run("down")


def test_the_first_five_minutes(commands: Commands) -> None:
    assert "cluster of 3 nodes is up" in commands.succeed("up", "--free-ports")
    assert commands.key_value("put", "greeting", "hi").stdout == "OK\n"
    first = until(commands.leader)
    assert commands.succeed("kill", "leader") == f"{first} killed\n"
    second = until(commands.leader)
    assert second != first
    assert commands.key_value("get", "greeting").stdout == "greeting\nhi\n"
    commands.succeed("restart", first.removeprefix("node"))
    until(lambda: commands.rows()[first][3] == "follower")
    assert commands.succeed("isolate", "leader") == f"{second} is partitioned from all others\n"
    until(lambda: any(cells[3] == "leader" for name, cells in commands.rows().items() if name != second))
    assert commands.key_value("put", "greeting", "again", partitioned=second).stdout == "OK\n"
    commands.succeed("heal")
    until(lambda: [cells[3] for cells in commands.rows().values()].count("follower") == 2)
    assert "ready to serve client requests" in commands.succeed("logs", "1")
    assert commands.succeed("down") == "cluster stopped\n"
    assert "cluster of 3 nodes is up" in commands.succeed("up")
    assert commands.key_value("get", "greeting").stdout == "greeting\nagain\n"


def test_data_that_cannot_be_used_is_refused_in_one_line(commands: Commands) -> None:
    commands.succeed("up", "--free-ports", "--nodes", "1")
    commands.succeed("down")
    data = commands.home / ".cluster" / "node1" / "data"
    (data / "wal").rename(commands.home / "wal")
    before = sorted(path.name for path in data.iterdir())
    complaint = commands.fail("up")
    assert "the log is missing" in complaint.split("exited", 1)[1]
    assert sorted(path.name for path in data.iterdir()) == before
    (commands.home / "wal").rename(data / "wal")
    state = commands.home / ".cluster" / "cluster.json"
    plan = json.loads(state.read_text())
    plan["token"] = "another"  # noqa: S105  a cluster token is no secret
    state.write_text(json.dumps(plan))
    commands.succeed("up")
    assert [cells[0] for cells in commands.rows().values()] == ["running"], "data with its own token is used"


def test_a_taken_port_is_named(commands: Commands, tmp_path: Path) -> None:
    commands.succeed("up", "--free-ports", "--nodes", "1")
    other = Commands(tmp_path / "other")
    (tmp_path / "other" / ".cluster").mkdir(parents=True)
    shutil.copy(commands.home / ".cluster" / "cluster.json", tmp_path / "other" / ".cluster")
    complaint = other.fail("up")
    assert re.fullmatch(
        r"Error: port \d+ \(clients of node1\) is taken by another process;"
        r" end that process, or start this cluster with --free-ports\n",
        complaint,
    )
    up = other.succeed("up", "--free-ports")
    other.succeed("down")
    assert "cluster of 1 nodes is up" in up
    shutil.copy(commands.home / ".cluster" / "cluster.json", tmp_path / "other" / ".cluster")
    assert "or start another cluster with --free-ports and another --directory\n" in other.fail("up")

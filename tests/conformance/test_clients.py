"""Third-party clients, as published, work through every member and through the death of a leader.

Each runs in an environment of its own. Its script asserts, and prints one line per group of calls that
passed; in the end it prints "all passed".
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.clusters import Cluster, Member

HERE = Path(__file__).parent
SCRIPTS = HERE / "scripts"
SECONDS_MAX = 90


class Client(NamedTuple):
    """One third-party client."""

    variable: str
    """Names where it is installed."""
    command: Callable[[str], list[str]]
    """From the value of the variable to the command up to the mode."""
    takes_all_endpoints: bool
    """Else it takes one port, and stays with that member."""


CLIENTS = {
    "aetcd": Client("KVSTORE_AETCD_PYTHON", lambda found: [found, str(SCRIPTS / "aetcd_calls.py")], False),
    "etcd3": Client("KVSTORE_ETCD3_PYTHON", lambda found: [found, str(SCRIPTS / "etcd3_calls.py")], False),
    "node": Client("KVSTORE_NODE_MODULES", lambda _: ["node", str(SCRIPTS / "node_calls.js")], True),
    "go": Client("KVSTORE_GO_CLIENT", lambda found: [found], True),
}


class Running:
    """A client's program."""

    def __init__(self, name: str, mode: str, cluster: Cluster, member: Member) -> None:
        client = CLIENTS[name]
        found = os.environ.get(client.variable)
        if not found:
            pytest.skip(f"needs {client.variable}; .ci/run shows how {name} is installed")
        where = ",".join(cluster.endpoints) if client.takes_all_endpoints else str(member.client_port)
        prefix = f"{name}-{mode}-{member.name}/"
        self.process = subprocess.Popen(
            [*client.command(found), mode, where, prefix],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"NODE_PATH": found},
        )
        self.said: list[str] = []

    def lines(self) -> Iterator[str]:
        """What it prints, as it prints it; a program that hangs is killed."""
        assert self.process.stdout is not None
        timer = threading.Timer(SECONDS_MAX, self.process.kill)
        timer.start()
        with self.process:  # closes its pipes in the end
            try:
                for line in self.process.stdout:
                    self.said.append(line)
                    yield line.rstrip("\n")
            finally:
                timer.cancel()
                self.process.kill()

    def answer(self) -> None:
        """Tell it to go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("go on\n")
        self.process.stdin.flush()

    def passed(self) -> bool:
        return "all passed\n" in self.said


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS_MAX)
@pytest.mark.parametrize(
    ("name", "member"),
    [
        (name, member)
        for name in CLIENTS
        for member in ((0,) if CLIENTS[name].takes_all_endpoints else (0, 1, 2))
    ],
)
def test_every_call(cluster: Cluster, name: str, member: int) -> None:
    running = Running(name, "calls", cluster, cluster.members[member])
    for _ in running.lines():
        pass
    assert running.passed(), "".join(running.said)


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS_MAX)
@pytest.mark.parametrize("name", CLIENTS)
def test_the_leader_dies(cluster: Cluster, name: str) -> None:
    leader = cluster.leader()
    follower = next(one for one in cluster.members if one is not leader)
    running = Running(name, "failover", cluster, follower)
    killed = False
    try:
        for line in running.lines():
            if line == "KILL":
                leader.kill()
                killed = True
                running.answer()
    finally:
        if killed:
            leader.start()
            cluster.wait_ready()
    assert killed
    assert running.passed(), "".join(running.said)

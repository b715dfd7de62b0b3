"""lease, lock and elect: etcdctl and our command line, against us and against etcd, say the same."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.clusters import Cluster

PATIENCE_S = 60.0

Command = list[str]


@pytest.fixture(params=["etcdctl", "kvstore"])
def command(request: pytest.FixtureRequest, cluster: Cluster, etcdctl: Path) -> Command:
    """A command line with the endpoint of a member that may well be no leader."""
    program = [str(etcdctl)] if request.param == "etcdctl" else [sys.executable, "-m", "kvstore"]
    return [*program, f"--endpoints={cluster.endpoints[1]}", "--command-timeout=20s"]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A lock or an election of this test alone."""
    return re.sub(r"\W", "-", request.node.name)


def plain(text: str) -> str:
    """Without what differs from run to run: ids, times left, revisions; without etcdctl's log lines."""
    lines = [line for line in text.splitlines() if line and not line.startswith('{"level"')]
    text = "\n".join(lines)
    text = re.sub(r"\b[0-9a-f]{12,16}\b|\b\d{12,20}\b", "ID", text)
    text = re.sub(r"remaining\(\d+s\)|(?<=\"ttl\":)2\d\d|(?<=\"TTL\" : )2\d\d", "LEFT", text)
    return re.sub(r'(revision":|raft_term":|"Revision" : |"RaftTerm" : )\d+', r"\1N", text)


def run(command: Command, *words: str) -> tuple[int, str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCDCTL_")}
    done = subprocess.run(
        [*command, *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=environment
    )
    return done.returncode, plain(done.stdout), plain(done.stderr)


def granted(command: Command, ttl: int = 300) -> str:
    done = subprocess.run([*command, "lease", "grant", str(ttl)], capture_output=True, text=True, check=True)
    return done.stdout.split()[1]


HEADER = '"ClusterID" : ID\n"MemberID" : ID\n"Revision" : N\n"RaftTerm" : N\n'
JSON_HEADER = '"cluster_id":ID,"member_id":ID,"revision":N,"raft_term":N'
NOT_FOUND = "etcdserver: requested lease not found"


def test_leases_look_as_in_etcdctl(command: Command, name: str) -> None:
    lease = granted(command)
    assert run(command, "put", f"--lease={lease}", f"{name}/a", "1") == (0, "OK", "")
    expected = {
        f"lease timetolive {lease}": "lease ID granted with TTL(300s), LEFT",
        f"lease timetolive {lease} --keys": "lease ID granted with TTL(300s), LEFT, "
        f"attached keys([{name}/a])",
        f"-w json lease timetolive {lease}": f'{{{JSON_HEADER},"id":ID,"ttl":LEFT,"granted-ttl":300,'
        '"keys":null}',
        f"-w fields lease timetolive {lease} --keys": f'{HEADER}"ID" : ID\n"TTL" : LEFT\n"GrantedTTL" : 300\n'
        f'"Key" : "{name}/a"',
        "lease timetolive 1234": "lease ID already expired",
        f"lease keep-alive --once {lease}": "lease ID keepalived with TTL(300)",
        f"-w json lease keep-alive --once {lease}": f'{{{JSON_HEADER},"ID":ID,"TTL":300}}',
        f"lease revoke {lease}": "lease ID revoked",
        "lease keep-alive 1234": "lease ID expired or revoked.",
        "-w json lease grant 100": f'{{{JSON_HEADER},"ID":ID,"TTL":100,"Error":""}}',
        "-w fields lease grant -- -5": f'{HEADER}"ID" : ID\n"TTL" : 2',
    }
    found = {line: run(command, *line.split()) for line in expected}
    assert found == {line: (0, text, "") for line, text in expected.items()}
    assert run(command, "get", f"{name}/a") == (0, "", "")
    code, out, _ = run(command, "lease", "list")
    assert code == 0
    assert re.fullmatch(r"found \d+ leases(\nID)+", out)


def test_lease_errors_are_etcdctls(command: Command) -> None:
    expected = {
        "lease revoke 1234": (1, f"failed to revoke lease ({NOT_FOUND})"),
        "lease keep-alive --once 1234": (2, NOT_FOUND),
        "lease grant 99999999999": (1, "failed to grant lease (etcdserver: too large lease TTL)"),
        "lease grant x": (128, 'bad TTL (strconv.ParseInt: parsing "x": invalid syntax)'),
        "lease revoke zz": (
            128,
            'bad lease ID arg (strconv.ParseInt: parsing "zz": invalid syntax), expecting ID in Hex',
        ),
        "lease timetolive": (128, "lease timetolive command needs lease ID as argument"),
        "put --lease=1234 a b": (1, NOT_FOUND),
        "lock": (128, "lock takes a lock name argument and an optional command to execute"),
        "elect e": (128, "no proposal argument but -l not set"),
        "elect -l e v": (128, "proposal given but -l is set"),
    }
    found = {line: run(command, *line.split()) for line in expected}
    assert found == {line: (code, "", f"Error: {text}") for line, (code, text) in expected.items()}


def test_a_command_runs_under_the_lock(command: Command, name: str) -> None:
    script = 'echo "$ETCD_LOCK_KEY $ETCD_LOCK_REV"; exit 7'
    code, out, err = run(command, "lock", name, "--", "sh", "-c", script)
    assert (code, err) == (7, "Error: exit status 7")
    assert re.fullmatch(rf"{name}/ID \d+", out)
    assert run(command, "lock", name, "no-such-command")[::2] == (
        1,
        'Error: exec: "no-such-command": executable file not found in $PATH',
    )
    assert run(command, "get", "--prefix", f"{name}/") == (0, "", "")


class Running:
    """A command that lasts until it is interrupted, with what it printed so far."""

    def __init__(self, command: Command, path: Path, *words: str) -> None:
        self._path = path
        with path.open("wb") as out:
            self.process = subprocess.Popen([*command, *words], stdout=out, stderr=subprocess.STDOUT)

    def said(self) -> str:
        return self._path.read_text()

    def until(self, condition: Callable[[str], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition(self.said()):
            assert time.monotonic() < deadline, f"{what}: {self.said()!r}"
            time.sleep(0.05)

    def interrupt(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


def test_contenders_follow_one_another(command: Command, name: str, tmp_path: Path, cluster: Cluster) -> None:
    holder = Running(command, tmp_path / "holder", "lock", name)
    holder.until(lambda said: said.count("\n") == 2, "the key and its value")
    waiter = Running(command, tmp_path / "waiter", "lock", name)
    left = Running(command, tmp_path / "left", "lock", name)
    listing = ["get", "--prefix", f"{name}/", "--keys-only"]
    deadline = time.monotonic() + PATIENCE_S
    while run(command, *listing)[1].count(name) < 3:
        assert time.monotonic() < deadline, "three in the queue"
    assert (waiter.said(), left.said()) == ("", "")
    assert left.interrupt(signal.SIGTERM) == 1
    assert plain(left.said()) == "Error: context canceled"
    assert holder.interrupt() == 0
    waiter.until(lambda said: said.count("\n") == 2, "the lock")
    assert plain(waiter.said()) == f"{name}/ID"
    (key,) = run(command, *listing)[1].splitlines()
    assert key == f"{name}/ID"
    lease = waiter.said().splitlines()[0].rpartition("/")[2]
    assert run(command, "lease", "revoke", lease)[0] == 0
    assert waiter.process.wait(PATIENCE_S) == 1
    assert plain(waiter.said()).endswith("Error: session expired")


def test_an_election_is_listened_to(command: Command, name: str, tmp_path: Path) -> None:
    leader = Running(command, tmp_path / "leader", "elect", name, "first")
    leader.until(lambda said: said.endswith("first\n"), "elected")
    listener = Running(command, tmp_path / "listener", "elect", "-l", name)
    listener.until(lambda said: said.endswith("first\n"), "told of the leader")
    follower = Running(command, tmp_path / "follower", "-w", "fields", "elect", name, "second")
    assert leader.interrupt() == 0
    follower.until(lambda said: '"Value" : "second"' in said, "elected next")
    listener.until(lambda said: said.endswith("second\n"), "told of the next")
    assert plain(listener.said()) == f"{name}/ID\nfirst\n{name}/ID\nsecond"
    assert follower.interrupt() == 0
    assert listener.interrupt() == 0

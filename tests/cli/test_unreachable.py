"""An endpoint that cannot be reached: each verb says why, at once where waiting is in vain."""

import select
import socket
import subprocess
import sys

import pytest

PATIENCE_S = 60.0

UNKNOWN = "kvstore.onion:1"

LIMITED = {
    "get a": "Error: {}",
    "put a 1": "Error: {}",
    "del a": "Error: {}",
    "lock l": "Error: {}",
    "elect e v": "Error: {}",
    "make-mirror {endpoint}": "Error: {}",
    "snapshot save backup": "Error: {}",
    "member list": "Error: {}",
    "alarm list": "Error: {}",
    "move-leader 1": "Error: {}",
    "compaction 1": "Error: {}",
    "lease grant 5": "Error: failed to grant lease ({})",
    "lease list": "Error: {}",
    "defrag": "Failed to defragment etcd member[{endpoint}] ({})",
    "endpoint status": "Failed to get the status of endpoint {endpoint} ({})",
    "endpoint hashkv": "Failed to get the hash of endpoint {endpoint} ({})",
    "endpoint health": "{endpoint} is unhealthy: failed to commit proposal: {}",
    "endpoint --cluster status": "Error: {}",
}
"""Verbs with a time limit, and the first line that they end with."""

ENDLESS = ["watch a", "elect -l e", "lease keep-alive 1"]


@pytest.fixture
def dead():
    """An endpoint whose port no process listens on, as long as the fixture holds it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def words(line, endpoint):
    return [*line.replace("{endpoint}", endpoint).split(), f"--endpoints={endpoint}"]


def first_line(done):
    return (done.err + done.out).decode().splitlines()[0]


@pytest.mark.parametrize("line", LIMITED)
def test_a_refused_connection_is_named_when_time_is_up(line, dead, ours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = ours([*words(line, dead), "--command-timeout=200ms"])
    why = f"context deadline exceeded: last error: connection refused ({dead})"
    assert done.code == 1
    assert first_line(done) == LIMITED[line].format(why, endpoint=dead)


@pytest.mark.parametrize("line", [*LIMITED, *ENDLESS])
def test_an_unknown_name_is_refused_at_once(line, ours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = ours([*words(line, UNKNOWN), "--command-timeout=1h"])
    assert done.code == (2 if line == "lease keep-alive 1" else 1)
    expected = LIMITED.get(line, "Error: {}").format(f"no such host ({UNKNOWN})", endpoint=UNKNOWN)
    assert first_line(done) == expected


@pytest.mark.parametrize("line", [*LIMITED, *ENDLESS])
def test_a_port_that_cannot_be_is_refused_at_once(line, ours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = ours([*words(line, "127.0.0.1:99999"), "--command-timeout=1h"])
    assert done.code in {1, 2}
    assert 'endpoint "127.0.0.1:99999": address 99999: invalid port' in first_line(done)


def test_one_bad_endpoint_does_not_hide_the_others(dead, ours):
    for verb in ("status", "health", "hashkv"):
        done = ours(["endpoint", verb, f"--endpoints=h:x,{UNKNOWN},{dead}", "--command-timeout=200ms"])
        said = (done.out + done.err).decode()
        assert all(text in said for text in ("invalid port", "no such host", "connection refused")), verb


@pytest.mark.parametrize("line", ENDLESS)
def test_what_waits_for_ever_says_what_for(line, dead):
    command = [sys.executable, "-m", "kvstore", *words(line, dead), "--command-timeout=100ms"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            readable, _, _ = select.select([process.stderr], [], [], PATIENCE_S)
            assert readable
            said = process.stderr.readline().decode()
            assert process.poll() is None
        finally:
            process.kill()
    assert said == f"Warning: not connected after 100ms, still trying: connection refused ({dead})\n"

"""`watch`, ours and the real etcdctl's, on the same etcd: same output, errors and exit codes.

A watch that goes on is ended from outside: etcdctl after a moment, ours as soon as it has printed
as much, or when it does not.
"""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

MOMENT_S = 10.0
"""For etcdctl to print what there is to print."""

PATIENCE_S = 20.0

HISTORY = [
    ["put", "a", "1"],
    ["put", "b", '"x\ny'],
    ["put", "a", "2"],
    ["del", "a"],
    ["put", "c", "3"],
    ["put", "d", "4"],
    ["compaction", "4"],
]

# arguments, standard input, environment
STEPS = [
    (["watch", "--prefix", "", "--rev", "4", "--prev-kv"], "", {}),
    (["watch", "--prefix", "", "--rev", "4", "--prev-kv", "-w", "json"], "", {}),
    (["watch", "--prefix", "", "--rev", "4", "--prev-kv", "-w", "fields"], "", {}),
    (["watch", "--prefix", "", "--rev", "4", "-w", "protobuf"], "", {}),
    (["watch", "a", "--rev", "4", "-w", "table"], "", {}),
    (["watch", "a", "--rev", "4", "--hex"], "", {}),
    (["watch", "--rev=4", "a", "c"], "", {}),
    (["watch", "--rev", "4", "a", "--", "sh", "-c", "env | grep ETCD_WATCH | sort"], "", {}),
    (["watch", "--rev", "4", "a", "--", "false"], "", {}),
    (["watch", "--rev", "4", "a", "--", "no-such-command", "x y"], "", {}),
    (["watch", "a", "--rev", "1"], "", {}),
    (["watch", "a", "--rev", "1", "-w", "json"], "", {}),
    (["watch", "a", "--rev", "1", "-w", "fields"], "", {}),
    (["watch", "b", "a"], "", {}),
    (["watch", "zz", "--progress-notify", "-w", "json"], "", {}),
    (["watch"], "", {}),
    (["watch", "--"], "", {}),
    (["watch", "a", "--"], "", {}),
    (["watch", "a", "b", "--prefix"], "", {}),
    (["watch", "b", "--rev", "4"], "", {"ETCDCTL_WATCH_KEY": "a"}),
    (["watch", "b"], "", {"ETCDCTL_WATCH_RANGE_END": "a"}),
    (["watch", "--rev", "4"], "", {"ETCDCTL_WATCH_KEY": "a", "ETCDCTL_WATCH_RANGE_END": "d"}),
    (["watch", "--rev", "4", "--", "echo", "hi"], "", {"ETCDCTL_WATCH_KEY": "a"}),
    (["watch", "b", "--rev", "4", "--", "echo", "hi"], "", {"ETCDCTL_WATCH_KEY": "a"}),
    (["watch", "-i"], "watch a --rev 4\n", {}),
    (["watch", "-i"], "watch a --rev 5 -- echo again\nfoo\n\nwatch\nwatch a b --prefix\n", {}),
    (["watch", "-i"], "watch --rev 6 --prefix c\n", {}),
    (["watch", "-i"], "watch c --\n", {}),
    (["watch", "-i"], "watch c --nonsense\n", {}),
]


def _with_endpoint(command, endpoint):
    at = command.index("--") if "--" in command else len(command)
    return [*command[:at], f"--endpoints={endpoint}", *command[at:]]


def spawn(command, stdin, environment, endpoint):
    process = subprocess.Popen(
        _with_endpoint(command, endpoint),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    process.stdin.write(stdin.encode())
    process.stdin.flush()
    for stream in (process.stdout, process.stderr):
        os.set_blocking(stream.fileno(), False)
    return process


def follow(process, enough):
    """What it prints and how it ends, or 'goes on' if it was ended when `enough(out, err)`."""
    out = err = b""
    while True:
        ended = process.poll() is not None
        out += process.stdout.read() or b""
        err += process.stderr.read() or b""
        if ended:
            code = process.returncode
            break
        if enough(out, err):
            process.send_signal(signal.SIGKILL)
            process.wait()
            code = "goes on"
            break
        time.sleep(0.02)
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()
    return code, out, _said(err)


def _said(err):
    """Without log lines and pages of usage."""
    lines = [line for line in err.splitlines() if not line.startswith(b"{")]
    return b"\n".join(line for line in lines if re.match(rb"Error|watch was|Invalid|command", line))


def plain(outcome):
    """Progress comes as often as time passes: repeated lines count once there."""
    code, out, err = outcome
    if b"progress notify" in out:
        out = b"\n".join(dict.fromkeys(out.splitlines()))
    return code, out, err


@pytest.mark.slow
def test_every_watch_looks_the_same(
    ours, etcd_folder, etcdctl, start_etcd, free_ports, tmp_path, monkeypatch
):
    ports = free_ports(2)
    endpoint = f"127.0.0.1:{ports[0]}"
    with start_etcd(tmp_path / "etcd", *ports, "--experimental-watch-progress-notify-interval=200ms"):
        for line in HISTORY:
            assert etcdctl([*line, f"--endpoints={endpoint}"]).code == 0
        theirs_running = [
            spawn([str(etcd_folder / "etcdctl"), *args], stdin, env, endpoint) for args, stdin, env in STEPS
        ]
        end = time.monotonic() + MOMENT_S
        theirs = [follow(process, lambda *_: time.monotonic() > end) for process in theirs_running]
        differences = []
        for (args, stdin, env), wanted in zip(STEPS, theirs, strict=True):
            if wanted[0] != "goes on":
                with monkeypatch.context() as patched:
                    for name, text in env.items():
                        patched.setenv(name, text)
                    done = ours(_with_endpoint(args, endpoint), stdin.encode())
                own = done.code, done.out, _said(done.err)
                if own != wanted:
                    differences.append(f"{env} {args} {stdin!r}\n  etcdctl: {wanted}\n  ours:    {own}")
                continue
            process = spawn([sys.executable, "-m", "kvstore", *args], stdin, env, endpoint)
            deadline = time.monotonic() + PATIENCE_S

            def enough(out, err, wanted=wanted, deadline=deadline):
                same = plain((0, out, _said(err)))[1:] == plain((0, *wanted[1:]))[1:]
                return same or time.monotonic() > deadline

            own = follow(process, enough)
            if plain(own) != plain(wanted):
                differences.append(f"{env} {args} {stdin!r}\n  etcdctl: {wanted}\n  ours:    {own}")
    assert not differences, "\n".join(differences)
    assert {code for code, _, _ in theirs} == {1, 4, 5, 128, "goes on"}

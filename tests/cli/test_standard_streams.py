"""Standard streams that are closed, full, or whose reader has gone: as with etcdctl, or better."""

import os
import signal
import subprocess
import sys

import pytest

PATIENCE_S = 60.0

NO_VALUE = b"Error: put command needs 1 argument and input from stdin or 2 arguments\n"


@pytest.fixture(scope="module")
def endpoint(make_member, tmp_path_factory):
    """A member that holds the key `a`, and a value under `big` that fills any pipe."""
    folder = tmp_path_factory.mktemp("streams")
    member = make_member(folder / "data")
    with member.run(log=folder / "log"):
        flag = f"--endpoints={member.endpoint}"
        assert kvstore("put", "a", "1", flag).returncode == 0
        assert kvstore("put", "big", flag, stdin=b"x" * 1_000_000).returncode == 0
        yield flag


def command(*words):
    return [sys.executable, "-m", "kvstore", *words]


def kvstore(*words, closed="", stdin=b"", first=""):
    """Run the command; `closed` is the shell's way to close a stream, `first` what it does before."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("ETCD")}
    return subprocess.run(
        ["/bin/sh", "-c", f'{first} exec "$@" {closed}', "sh", *command(*words)],
        input=stdin,
        capture_output=True,
        check=False,
        env=environment,
        timeout=PATIENCE_S,
    )


def result(done):
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["put", "b", "2"], 0),
        (["get", "a"], 0),
        (["get", "none"], 0),
        (["endpoint", "status"], 0),
        (["version"], 0),
        (["--help"], 0),
        (["put", "--help"], 0),
        (["put"], 128),
        (["no-such-command"], 1),
    ],
)
def test_closed_outputs(words, code, closed, endpoint):
    done = kvstore(*words, endpoint, closed=closed)
    assert (done.returncode, done.stdout) == (code, b"")
    assert code or done.stderr == b""


def test_what_is_sent_is_not_what_is_printed(endpoint):
    """With its output closed, the first connection would have got the output's number."""
    assert result(kvstore("put", "c", "3", endpoint, closed=">&-")) == (0, b"", b"")
    assert result(kvstore("get", "c", endpoint)) == (0, b"c\n3\n", b"")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["put", "a"], 128, NO_VALUE),
        (["txn"], 3, b"Error: EOF\n"),
        (["watch", "-i"], 3, b"Error: error reading watch request line: EOF\n"),
    ],
)
def test_a_closed_input_is_at_its_end(words, code, text, endpoint):
    assert result(kvstore(*words, endpoint, closed="<&-")) == (code, b"", text)


def test_a_command_under_a_lock_has_all_three(endpoint):
    script = "import os, sys; print(os.readlink('/dev/fd/0'), os.readlink('/dev/fd/1'), file=sys.stderr)"
    done = kvstore("lock", "l", endpoint, "--", sys.executable, "-c", script, closed="<&- >&-")
    assert result(done) == (0, b"", b"/dev/null /dev/null\n")


@pytest.mark.parametrize(
    "words", [["get", "big"], ["get", "big", "-w", "json"], ["put", "d", "4"], ["--help"]]
)
def test_a_reader_that_has_gone_ends_it_by_the_signal(words, endpoint):
    with subprocess.Popen(
        command(*words, endpoint), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE_S) == -signal.SIGPIPE


def test_a_reader_of_errors_that_has_gone_does_too(endpoint):
    with subprocess.Popen(command("put", endpoint), stderr=subprocess.PIPE) as process:
        process.stderr.close()
        assert process.wait(PATIENCE_S) == -signal.SIGPIPE


def test_a_reader_that_has_seen_enough_gives_back_the_lock(endpoint):
    with subprocess.Popen(command("lock", "m", endpoint), stdout=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.wait(PATIENCE_S) == -signal.SIGPIPE
    assert kvstore("get", "--prefix", "m/", endpoint).stdout == b""


FULL = "ulimit -f 0;"
"""No file may grow: stands for a disk that is full."""


def test_a_file_that_takes_no_more_is_named(endpoint, tmp_path):
    done = kvstore("get", "a", endpoint, closed=f">{tmp_path}/out", first=FULL)
    assert result(done) == (6, b"", b"Error: write /dev/stdout: file too large\n")


@pytest.mark.parametrize(("words", "code"), [(["put"], 128), (["get", "--no-such-flag"], 1)])
def test_a_code_survives_that_nothing_can_be_said(words, code, endpoint, tmp_path):
    assert kvstore(*words, endpoint, closed=f"2>{tmp_path}/err", first=FULL).returncode == code
    assert (tmp_path / "err").read_bytes() == b""

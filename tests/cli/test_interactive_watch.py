"""`watch -i` ends when it must, not when the next line is typed."""

import signal
import subprocess
import sys
import time

import pytest

from kvstore.cli.exit_codes import ExitCode

PATIENCE_S = 30.0


@pytest.fixture
def watching(make_member, ours, tmp_path):
    """The running command, which watches the key `a`, and a way to put it until it has printed something."""
    member = make_member(tmp_path / "data")
    with member.run(log=tmp_path / "log"), open(tmp_path / "said", "wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "kvstore", "watch", "-i", f"--endpoints={member.endpoint}"],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
        )

        def put_until(text):
            deadline = time.monotonic() + PATIENCE_S
            while text not in (tmp_path / "said").read_bytes():
                assert time.monotonic() < deadline, (tmp_path / "said").read_bytes()
                assert ours(["put", "a", "1", f"--endpoints={member.endpoint}"]).code == 0
                time.sleep(0.05)

        try:
            yield process, put_until
        finally:
            process.kill()
            process.stdin.close()
            process.wait(PATIENCE_S)


def test_a_command_that_fails_ends_it_at_once(watching):
    process, put_until = watching
    process.stdin.write(b"watch a -- false\n")
    process.stdin.flush()
    put_until(b'command ["false"] error (exit status 1)')
    assert process.wait(PATIENCE_S) == ExitCode.ERROR


def test_an_interrupt_ends_it_at_once(watching):
    process, put_until = watching
    process.stdin.write(b"watch a\nwatch a -- echo told\n")
    process.stdin.flush()
    put_until(b"told")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == -signal.SIGINT

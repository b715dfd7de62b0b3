"""A whole server on a disk that fails stops and says why; what it acknowledged is there afterwards."""

import contextlib
import shutil
import signal
import subprocess
import time

import pytest

from tests.storage.faults.injection import strace_works

PATIENCE_S = 60.0
WRITES_MAX = 2000

pytestmark = pytest.mark.skipif(not strace_works(), reason="strace is not here, or may not trace")


@contextlib.contextmanager
def under_strace(member, log, injection):
    """Run the member with one system call made to fail, until it ends or the block does."""
    with open(log, "wb") as lines:
        strace = ["strace", "-f", "-qq", "-e", "trace=none", "-e", "signal=none"]
        strace += [
            "-e",
            f"trace={injection.partition(':')[0]}",
            "-e",
            f"inject={injection}",
            "-o",
            f"{log}.trace",
        ]
        process = subprocess.Popen([*strace, *member.command()], stdout=lines, stderr=lines)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while b"ready to serve client requests" not in log.read_bytes():
            assert time.monotonic() < deadline, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)


def write_until_it_fails(ours, member):
    """Numbers written one by one; those acknowledged."""
    for number in range(WRITES_MAX):
        done = ours(
            [f"--endpoints={member.endpoint}", "--command-timeout=5s", "put", f"k{number:04}", str(number)]
        )
        if done.code:
            return number
    return WRITES_MAX


def read_back(ours, member):
    done = ours([f"--endpoints={member.endpoint}", "get", "--prefix", "k", "--keys-only"])
    assert done.code == 0, done.err
    return [line.decode() for line in done.out.splitlines() if line]


@pytest.mark.parametrize(
    ("injection", "said"),
    [
        ("fdatasync:error=EIO:when=40+", "outcome is unknown"),
        ("pwrite64:error=ENOSPC:when=70+", ""),
        ("fdatasync:signal=KILL:when=40", ""),
    ],
)
def test_what_was_acknowledged_survives(injection, said, make_member, ours, tmp_path):
    member = make_member(tmp_path / "data")
    with under_strace(member, tmp_path / "log", injection) as process:
        acknowledged = write_until_it_fails(ours, member)
        assert acknowledged < WRITES_MAX, "the fault was never met"
        process.wait(PATIENCE_S)
    assert process.returncode != 0
    text = (tmp_path / "log").read_text()
    assert said in text
    assert "Traceback" not in text
    assert acknowledged > 3
    with member.run(log=tmp_path / "again"):
        found = read_back(ours, member)
    assert found[:acknowledged] == [f"k{number:04}" for number in range(acknowledged)]
    assert len(found) <= acknowledged + 1, "more than the one write whose outcome was unknown"


def test_a_flipped_bit_in_a_stored_value_is_refused_in_one_line(make_member, ours, tmp_path):
    member = make_member(tmp_path / "data")
    with member.run(log=tmp_path / "log"):
        assert (
            ours([f"--endpoints={member.endpoint}", "put", "k", "a value to be found on the disk"]).code == 0
        )
    state = tmp_path / "data" / "state.db"
    content = state.read_bytes()
    shutil.copyfile(state, tmp_path / "copy")
    at = content.rindex(b"found on the disk")
    state.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    refused = member.refuse()
    assert refused.returncode != 0
    assert refused.stderr.count("\n") == 1
    assert "was changed" in refused.stderr
    assert "add it again as a new member" in refused.stderr
    shutil.copyfile(tmp_path / "copy", state)
    with member.run(log=tmp_path / "again"):
        assert b"found on the disk" in ours([f"--endpoints={member.endpoint}", "get", "k"]).out

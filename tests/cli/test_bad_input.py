"""What cannot work is refused in one clear line with an exit code, and nothing is lost by it."""

import fcntl
import hashlib
import os
import socket
import sqlite3
from pathlib import Path

import pytest
from crc32c import crc32c

from kvstore.cli.main import run
from raft.storage.backend_check import row_checksum

MAX_REQUEST_BYTES = 1_572_864


@pytest.fixture(scope="module")
def home(make_member, tmp_path_factory):
    """A member that has run, holds a key, and is stopped."""
    folder = tmp_path_factory.mktemp("home")
    member = make_member(folder / "data")
    with member.run(log=folder / "log"):
        assert run(["put", "kept", "safe", f"--endpoints={member.endpoint}"]) == 0
    return member


def digest(folder: Path):
    """What lies in the data directory, byte for byte."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def only_line(done, *, code=1):
    """The one line of a refusal; log lines of a server that got further are JSON and do not count."""
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith('{"level"')]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    assert done.stdout == ""
    return lines[0].removeprefix("Error: ")


@pytest.fixture
def untouched(home):
    """Sees that a refusal changed no byte."""
    before = digest(home.data_dir)
    assert any(name.startswith("wal/") for name in before)
    yield
    assert digest(home.data_dir) == before


@pytest.mark.usefixtures("untouched")
class TestRefusals:
    def test_broken_url(self, home):
        done = home.refuse("--listen-client-urls=nonsense")
        assert only_line(done, code=2) == (
            'invalid value "nonsense" for flag -listen-client-urls:'
            " URL scheme must be http, https, unix, or unixs: nonsense"
        )

    @pytest.mark.parametrize("which", ["client_port", "peer_port"])
    def test_taken_port(self, home, which):
        with socket.create_server(("127.0.0.1", getattr(home, which))):
            line = only_line(home.refuse())
        assert str(getattr(home, which)) in line
        assert "in use" in line

    def test_half_a_toml(self, home, tmp_path):
        path = tmp_path / "half.toml"
        path.write_text('name = "a"\ndata-dir = "')
        done = home.refuse(f"--config-file={path}")
        assert only_line(done).startswith(f"{path}: not valid TOML: Unterminated string (at ")

    def test_a_locked_data_directory(self, home, make_member, tmp_path):
        # another process holds the lock; on other ports, so that only the lock is in the way
        other = make_member(home.data_dir)
        with open(home.data_dir / "lock", "rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            line = only_line(other.refuse("--initial-cluster=", f"--log-outputs={tmp_path}/log"))
        assert line.startswith(f"{home.data_dir}: ")
        assert "another process" in line


def test_flags_of_a_first_start_are_not_read_at_a_later_one(home, ours, tmp_path):
    flags = ("--name=b", "--initial-cluster=c=nonsense", "--initial-cluster-token=other", "--proxy=on")
    with home.run(*flags, log=tmp_path / "log"):
        assert ours(["get", "kept", f"--endpoints={home.endpoint}"]).out == b"kept\nsafe\n"
        listed = ours(["member", "list", f"--endpoints={home.endpoint}"]).out
    assert b", started, b, " in listed, "the name is published at every start"
    lines = (tmp_path / "log").read_text()
    assert "--proxy is ignored since the member is already initialized" in lines
    with home.run("--discovery=http://127.0.0.1:1/x", "--initial-cluster=", log=tmp_path / "again"):
        assert ours(["get", "kept", f"--endpoints={home.endpoint}"]).out == b"kept\nsafe\n"


def test_another_kind_of_bootstrap_makes_no_data_directory(make_member, tmp_path):
    done = make_member(tmp_path / "data").refuse("--discovery=http://127.0.0.1:1/x", "--initial-cluster=")
    assert only_line(done) == (
        "--discovery is not supported and cannot be ignored. There is no discovery service."
    )
    assert not (tmp_path / "data").exists()


def test_two_servers_on_one_directory(home, make_member, tmp_path):
    with home.run(log=tmp_path / "log"):
        line = only_line(make_member(home.data_dir).refuse("--initial-cluster="))
    assert str(home.data_dir) in line


def test_a_data_directory_that_is_none(make_member, tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    assert str(path) in only_line(make_member(path).refuse())
    assert path.read_text() == "precious"


def test_a_data_directory_that_cannot_be_read(make_member, tmp_path):
    if os.geteuid() == 0:  # root reads everything; a file in the way stands in for the missing right
        (tmp_path / "in-the-way").write_text("")
        path = tmp_path / "in-the-way" / "data"
    else:
        path = tmp_path / "data"
        path.mkdir(mode=0o000)
    assert str(path) in only_line(make_member(path).refuse())


def test_a_directory_of_something_else(make_member, tmp_path):
    for name in ("member/wal/0.wal", "member/snap/db"):
        (tmp_path / "etcd" / name).parent.mkdir(parents=True)
        (tmp_path / "etcd" / name).write_text("an etcd's")
    before = digest(tmp_path / "etcd")
    member = make_member(tmp_path / "etcd")
    assert str(tmp_path / "etcd") in only_line(member.refuse())
    assert digest(tmp_path / "etcd") == before


def newer_log(folder):
    """Raise the version in the header of every segment: bytes 8 and 9, under the sector's CRC."""
    for path in (folder / "wal").glob("*.wal"):
        with path.open("rb+") as file:
            sector = bytearray(file.read(512))
            sector[8:10] = (999).to_bytes(2, "little")
            sector[-4:] = crc32c(bytes(sector[:-4])).to_bytes(4, "little")
            file.seek(0)
            file.write(sector)


def newer_state(folder):
    with sqlite3.connect(folder / "state.db") as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()


def newer_snapshot(folder):
    with sqlite3.connect(folder / "state.db") as connection:
        (row,) = connection.execute("SELECT value FROM rows WHERE key = ?", (b"s",)).fetchone()
        value = b"\x63" + row[1:]
        connection.execute(
            "UPDATE rows SET value = ?, sum = ? WHERE key = x'73'", (value, row_checksum(b"s", value))
        )
    connection.close()


def test_a_state_of_a_newer_version(make_member, tmp_path):
    member = make_member(tmp_path / "data")
    with member.run(log=tmp_path / "log"):
        pass
    newer_snapshot(tmp_path / "data")
    before = digest(tmp_path / "data")
    assert only_line(member.refuse()) == f"{tmp_path / 'data'}: backend of version 63, known is 1"
    assert digest(tmp_path / "data") == before


@pytest.mark.parametrize("age", [newer_log, newer_state])
def test_data_of_a_newer_version(age, make_member, tmp_path):
    member = make_member(tmp_path / "data")
    with member.run(log=tmp_path / "log"):
        pass
    age(tmp_path / "data")
    before = digest(tmp_path / "data")
    assert "format version 999 is not known to this program" in only_line(member.refuse())
    assert digest(tmp_path / "data") == before


def test_after_all_this_nothing_is_lost(home, ours, tmp_path):
    with home.run(log=tmp_path / "log"):
        at = f"--endpoints={home.endpoint}"
        assert ours(["get", "kept", at]).out == b"kept\nsafe\n"
        # requests that cannot be: etcd's exact texts
        empty = ours(["put", "", "x", at])
        assert (empty.code, empty.err) == (1, b"Error: etcdserver: key is not provided\n")
        future = ours(["get", "kept", "--rev=999", at])
        assert (future.code, future.err) == (
            1,
            b"Error: etcdserver: mvcc: required revision is a future revision\n",
        )
        large = ours(["put", "kept", at], b"x" * (MAX_REQUEST_BYTES + 1))
        assert (large.code, large.err) == (1, b"Error: etcdserver: request is too large\n")
        larger = ours(["put", "kept", at], b"x" * (MAX_REQUEST_BYTES + 600 * 1024))
        assert larger.code == 1
        assert larger.err.count(b"\n") == 1
        assert ours(["get", "kept", "-w", "fields", at]).out.count(b'"Version" : 1\n') == 1

"""A real etcd and etcdctl to compare with, when they are at hand, and our command in this process."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvstore.cli.main import run
from kvstore.devcluster import plan

START_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: bytes
    err: bytes


def _run_ours(args, stdin=b""):
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), "utf-8", "surrogateescape")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(args)
    finally:
        sys.stdin = before
    out.flush()
    err.flush()
    return Outcome(int(code), out.buffer.getvalue(), err.buffer.getvalue())


@pytest.fixture
def ours(monkeypatch):
    """Runs our command in this process: `ours(["get", "a"], b"stdin") -> Outcome`."""
    for name in list(os.environ):
        if name.startswith("ETCD"):
            monkeypatch.delenv(name)
    return _run_ours


@pytest.fixture(scope="session")
def etcd_folder():
    """The folder that holds etcd and etcdctl."""
    folder = os.environ.get("KVSTORE_ETCD_BIN_DIR")
    if folder is None:
        found = shutil.which("etcdctl")
        folder = str(Path(found).parent) if found else None
    if folder is None or not (Path(folder) / "etcd").exists():
        pytest.skip("no etcd at hand: name its folder in KVSTORE_ETCD_BIN_DIR")
    version = subprocess.run([f"{folder}/etcdctl", "version"], capture_output=True, text=True, check=False)
    if not version.stdout.startswith("etcdctl version: 3.5."):
        pytest.skip(f"etcdctl 3.5 is wanted in KVSTORE_ETCD_BIN_DIR, {folder} has {version.stdout!r}")
    return Path(folder)


@pytest.fixture(scope="session")
def free_ports():
    """`free_ports(n)` gives ports that were free a moment ago."""
    return plan.free_ports


@pytest.fixture(scope="session")
def etcdctl(etcd_folder):
    """Runs the real etcdctl: `etcdctl(["get", "a"], b"stdin") -> Outcome`; without its log lines."""

    def run_theirs(args, stdin=b""):
        done = subprocess.run(
            [str(etcd_folder / "etcdctl"), *args],
            input=stdin,
            capture_output=True,
            check=False,
            env=_clean_environment(),
            timeout=START_PATIENCE_S,
        )
        errors = [line for line in done.stderr.splitlines(keepends=True) if not line.startswith(b'{"level"')]
        return Outcome(done.returncode, done.stdout, b"".join(errors))

    return run_theirs


@pytest.fixture(scope="session")
def start_etcd(etcd_folder):
    """`with start_etcd(path, client_port, peer_port):` runs an etcd of its own."""

    @contextlib.contextmanager
    def start(path, client_port, peer_port, *flags):
        client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
        command = [
            str(etcd_folder / "etcd"),
            *("--name", "a", "--data-dir", str(path)),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"a={peer}", "--unsafe-no-fsync"),
            *flags,
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + START_PATIENCE_S
            probe = [str(etcd_folder / "etcdctl"), f"--endpoints={client}", "get", "x"]
            while subprocess.run(probe, capture_output=True, check=False).returncode:
                assert time.monotonic() < deadline, "etcd does not start"
                assert process.poll() is None, "etcd ended"
            yield
        finally:
            process.terminate()
            process.wait(START_PATIENCE_S)

    return start


@dataclass
class Member:
    """A `kvstore server` of its own, alone in its cluster."""

    data_dir: Path
    client_port: int
    peer_port: int
    process: subprocess.Popen | None = None

    @property
    def endpoint(self):
        return f"127.0.0.1:{self.client_port}"

    def command(self, *extra):
        client, peer = f"http://{self.endpoint}", f"http://127.0.0.1:{self.peer_port}"
        return [
            *(sys.executable, "-m", "kvstore", "server", "--name=a", f"--data-dir={self.data_dir}"),
            *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
            *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
            # alone, it need not wait long for others before it leads
            *(f"--initial-cluster=a={peer}", "--heartbeat-interval=20", "--election-timeout=100", *extra),
        ]

    def refuse(self, *extra):
        """Start it, expecting that it ends by itself."""
        return subprocess.run(
            self.command(*extra),
            capture_output=True,
            text=True,
            check=False,
            env=_clean_environment(),
            timeout=START_PATIENCE_S,
        )

    @contextlib.contextmanager
    def run(self, *extra, log):
        """Start it, wait until it serves, and see that it ends."""
        with open(log, "ab") as lines:
            command = self.command(*extra)
            self.process = subprocess.Popen(command, stdout=lines, stderr=lines, env=_clean_environment())
        try:
            deadline = time.monotonic() + START_PATIENCE_S
            while b"ready to serve client requests" not in Path(log).read_bytes():
                assert self.process.poll() is None, Path(log).read_text()
                assert time.monotonic() < deadline, Path(log).read_text()
                time.sleep(0.01)
            yield self
        finally:
            if self.process.poll() is None:
                self.process.terminate()
            self.process.wait(START_PATIENCE_S)


def _clean_environment():
    return {name: text for name, text in os.environ.items() if not name.startswith("ETCD")}


@pytest.fixture(scope="session")
def make_member(free_ports):
    """`make_member(data_dir)` describes a member on free ports."""

    def make(data_dir):
        return Member(data_dir, *free_ports(2))

    return make

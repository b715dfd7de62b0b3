"""The cluster whose data directories the archive holds: where it listens, how it is started, what it holds.

Members record the peer URLs of all members, so these cannot be chosen anew at each run. They lie on
loopback addresses of their own, which no other test and no other program uses. Two runs on one machine
alternate: the one that has bound the port of the address LOCK_HOST may use the others.
"""

from __future__ import annotations

import errno
import json
import re
import socket
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import clusters
from bench.clusters import Cluster, Member
from kvstore.devcluster.plan import free_ports
from tests.compatibility.baseline import check_code
from tests.compatibility.calls import until
from tests.compatibility.observation import Observation

DATA = Path(__file__).with_name("data")
ARCHIVE = DATA / "three-members.tar.xz"
FACTS = DATA / "three-members.json"

PEER_PORT = 24_801
"""Below the ports that systems give to outgoing connections."""
MOVED_PORT = 24_802
"""Where the second member is found since its peer URL was changed."""
LOCK_HOST = "127.82.97.254"
ADDRESSES_SECONDS_MAX = 60.0
"""How long to wait for another run on this machine, which takes some ten seconds."""

TOKEN = "three-members"  # noqa: S105  names a cluster, guards nothing
FLAGS = ("--snapshot-count=20", "--snapshot-catchup-entries=20")
"""The log is compacted after a few entries, so that it begins with a snapshot mark."""

PROGRAM = (sys.executable, "-m", "kvstore", "server")

KEPT = re.compile(r"lock|wal|state(-[0-9a-f]{16})?\.db(-wal|-shm)?")
"""What is in a data directory after a start: docs/format.md says of everything else that it is deleted."""


def peer_url(index: int, port: int = PEER_PORT) -> str:
    return f"http://127.82.97.{index + 1}:{port}"


BOOTSTRAP = f"one={peer_url(0)},two={peer_url(1)}"
"""The cluster begins with two members; the third is added."""

OWN_FLAGS: dict[str, dict[str, str]] = {
    "one": {"initial-cluster": BOOTSTRAP, "initial-cluster-state": "new", "listen-peer-urls": peer_url(0)},
    "two": {
        "initial-cluster": BOOTSTRAP,
        "initial-cluster-state": "new",
        "listen-peer-urls": f"{peer_url(1)},{peer_url(1, MOVED_PORT)}",
    },
    "three": {
        "initial-cluster": f"{BOOTSTRAP},three={peer_url(2)}",
        "initial-cluster-state": "existing",
        "listen-peer-urls": peer_url(2),
    },
}
"""Each member is started with the same flags every time, as an operator's unit file would do it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What stands beside the archive, as the code that wrote the directories said it."""

    commit: str
    """Of that code."""
    revision: int
    """The newest that a client got in a reply before the members were killed."""
    applied: int
    """The log index of the leader at that time."""
    checkpoints: dict[str, int]
    """Member to the log index of its backend. All are lower than `applied`: the rest is in the log alone."""
    lock: str
    """Name of a lock that is held, with another lease queued behind."""
    election: str
    expiring: str
    """A key whose lease lasts for seconds only; it was there at `revision`."""
    found: Observation
    """At `revision`, after that code started again on these very directories."""


def read_facts() -> Facts:
    return Facts(**json.loads(FACTS.read_text()))


def unpack(folder: Path) -> None:
    """Put the three data directories into `folder`."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")


@contextmanager
def addresses() -> Iterator[None]:
    """The recorded addresses, for this run alone. Raises OSError where a system has no such addresses."""

    def bound() -> bool:
        try:
            lock.bind((LOCK_HOST, PEER_PORT))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        return True

    with socket.socket() as lock:
        until("another run on this machine ends", bound, ADDRESSES_SECONDS_MAX)
        yield


def three_members(folder: Path, code: Path = clusters.ROOT) -> Cluster:
    """The members over the data directories in `folder`, to run `code`; none is started."""
    check_code(code, folder)
    count = len(OWN_FLAGS)
    ports = free_ports(2 * count)
    members = [
        _member(index, folder, code, client=ports[index], metrics=ports[count + index])
        for index in range(count)
    ]
    return Cluster(label="archived", program=(), folder=folder, members=members)


def _member(index: int, folder: Path, code: Path, *, client: int, metrics: int) -> Member:
    name, own = list(OWN_FLAGS.items())[index]
    flags: dict[str, Any] = {
        **own,
        "name": name,
        "data-dir": folder / name,
        "initial-cluster-token": TOKEN,
        "initial-advertise-peer-urls": peer_url(index),
        "listen-client-urls": f"http://127.0.0.1:{client}",
        "advertise-client-urls": f"http://127.0.0.1:{client}",
        "listen-metrics-urls": f"http://127.0.0.1:{metrics}",
    }
    return Member(
        name=name,
        client_port=client,
        peer_port=PEER_PORT,
        advertised_peer_port=PEER_PORT,
        data_dir=folder / name,
        log=folder / f"{name}.log",
        source=code,
        command=[*PROGRAM, *(f"--{flag}={value}" for flag, value in flags.items()), *FLAGS],
    )

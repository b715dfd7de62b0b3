"""What runs where: ports, directories, command lines, and the file that remembers them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
NODES_MAX = 6
"""The usual ports step by 10000 from the second member on, so a seventh would need port 72379."""

CLIENT_PORT = 2379
PEER_PORT = 2380
METRICS_PORT = 2381
"""etcd's usual ports; its multi-member examples put the digit of the member before them."""

STATE_FILE = "cluster.json"
STATE_FORMAT = 1


class ClusterError(Exception):
    """Something the user can act on; its text is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    number: int
    """Counts from 1; what the commands call it."""
    client_port: int
    peer_port: int
    """Where the other members reach it: the proxy's port, or its own without a proxy."""
    metrics_port: int
    host: str = HOST
    """Another one only where the member has a network of its own."""

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def client_address(self) -> str:
        return f"{self.host}:{self.client_port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    directory: Path
    nodes: tuple[NodePlan, ...]
    token: str
    """Random, made with the directory: no member of another local cluster has the same cluster id."""
    proxied: bool = True
    """Whether peer connections run through the supervisor, so that partitions are possible."""
    server_arguments: tuple[str, ...] = ()
    """Further flags for every member."""
    python_arguments: tuple[str, ...] = field(default=("-m", "kvstore", "server"))
    """The interpreter's arguments: what it runs."""

    @property
    def endpoints(self) -> str:
        return ",".join(node.client_address for node in self.nodes)

    def node(self, number: int) -> NodePlan:
        for node in self.nodes:
            if node.number == number:
                return node
        raise ClusterError(f"there is no node {number}; this cluster has nodes 1 to {len(self.nodes)}")

    def data_directory(self, node: NodePlan) -> Path:
        return self.directory / node.name / "data"

    def log_file(self, node: NodePlan) -> Path:
        return self.directory / node.name / "log"

    def command(self, node: NodePlan, listen_peer_port: int) -> list[str]:
        """Return the command line of a member that listens for peers on `listen_peer_port`."""
        client_url = f"http://{node.client_address}"
        members = ",".join(f"{other.name}=http://{other.host}:{other.peer_port}" for other in self.nodes)
        return [
            sys.executable,
            *self.python_arguments,
            f"--name={node.name}",
            f"--data-dir={self.data_directory(node)}",
            f"--listen-client-urls={client_url}",
            f"--advertise-client-urls={client_url}",
            f"--listen-peer-urls=http://{node.host}:{listen_peer_port}",
            f"--initial-advertise-peer-urls=http://{node.host}:{node.peer_port}",
            f"--initial-cluster={members}",
            f"--initial-cluster-token={self.token}",
            "--initial-cluster-state=new",
            f"--listen-metrics-urls=http://{node.host}:{node.metrics_port}",
            "--log-format=console",
            *self.server_arguments,
        ]

    def check_ports(self) -> None:
        """Raise ClusterError naming the first port that another process holds, and the way out."""
        for node in (one for one in self.nodes if one.host == HOST):
            uses = (("clients", node.client_port), ("peers", node.peer_port), ("metrics", node.metrics_port))
            for use, port in uses:
                with socket.socket() as trial:
                    trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    try:
                        trial.bind((HOST, port))
                        trial.listen()  # binding alone tolerates a listener on every address
                    except OSError as error:
                        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                            raise
                        raise ClusterError(
                            f"port {port} ({use} of {node.name}) is taken by another process;"
                            f" {self._way_out()}"
                        ) from error

    def _way_out(self) -> str:
        if any(self.data_directory(node).exists() for node in self.nodes):
            return "end that process, or start another cluster with --free-ports and another --directory"
        return "end that process, or start this cluster with --free-ports"


def child_environment() -> dict[str, str]:
    """Return the environment in which a child finds this very package, wherever it is started from."""
    root = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{inherited}" if inherited else root}


def usual_nodes(count: int) -> tuple[NodePlan, ...]:
    """Return members on etcd's usual ports: 2379, 22379, 32379 for clients and so on."""
    steps = [0 if number == 1 else number * 10000 for number in range(1, count + 1)]
    return tuple(
        NodePlan(
            number=number,
            client_port=CLIENT_PORT + step,
            peer_port=PEER_PORT + step,
            metrics_port=METRICS_PORT + step,
        )
        for number, step in enumerate(steps, start=1)
    )


def free_nodes(count: int) -> tuple[NodePlan, ...]:
    ports = free_ports(3 * count)
    return tuple(
        NodePlan(number=number, client_port=ports.pop(), peer_port=ports.pop(), metrics_port=ports.pop())
        for number in range(1, count + 1)
    )


FREE_PORTS = range(10_000, 32_000)
"""Where free ports are looked for: below those that systems give to outgoing connections (from 32,768
on Linux), one of which could otherwise take a port between the choice and its use."""

FREE_PORT_TRIES_MAX = 1000
"""Ports tried for each one wanted; so many taken ones in a row mean that something else is wrong."""


def free_ports(count: int) -> list[int]:
    """Return distinct ports without a listener at this moment; raises ClusterError without any."""
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        for _ in range(count * FREE_PORT_TRIES_MAX):
            port = secrets.choice(FREE_PORTS)
            with contextlib.suppress(OSError):
                held.enter_context(socket.create_server((HOST, port)))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise ClusterError(f"no free port between {FREE_PORTS.start} and {FREE_PORTS.stop}")


def prepare(
    directory: Path,
    *,
    nodes: int | None,
    free: bool,
    proxied: bool = True,
    server_arguments: tuple[str, ...] = (),
) -> ClusterPlan:
    """Return the plan of the cluster in `directory`, making it when there is none.

    A cluster with data keeps its size, ports and token for as long as its directory lives. Raises
    ClusterError when another size is asked for, or data is there that no plan explains.
    """
    recorded = load(directory)
    strays = sorted(directory.glob("node*/data"))
    if recorded is not None and (strays or (not free and nodes in (None, len(recorded[0].nodes)))):
        plan, _ = recorded
        if nodes is not None and nodes != len(plan.nodes):
            raise ClusterError(
                f"{directory} holds a cluster of {len(plan.nodes)} nodes, not {nodes};"
                " use another --directory, or remove this one"
            )
        return replace(plan, proxied=proxied, server_arguments=server_arguments)
    if strays:
        raise ClusterError(
            f"{strays[0]} belongs to a cluster that {directory / STATE_FILE} no longer describes;"
            " use another --directory, or remove this one"
        )
    count = nodes or (3 if recorded is None else len(recorded[0].nodes))
    return ClusterPlan(
        directory=directory,
        nodes=free_nodes(count) if free else usual_nodes(count),
        token=f"local-{secrets.token_hex(8)}",
        proxied=proxied,
        server_arguments=server_arguments,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """How to reach and recognise the processes of a cluster that runs, or ran."""

    supervisor_pid: int = 0
    control_port: int = 0
    control_secret: str = ""
    """A user who can read the plan file may steer the cluster."""
    pids: dict[int, int] = field(default_factory=dict)
    """Process id of each member started, by number; 0 once it has ended."""


def save(plan: ClusterPlan, running: Running) -> None:
    """Write the plan file, whole or not at all, readable by its user only."""
    plan.directory.mkdir(parents=True, exist_ok=True)
    state = {
        "format": STATE_FORMAT,
        "token": plan.token,
        "proxied": plan.proxied,
        "nodes": [asdict(node) for node in plan.nodes],
        "running": asdict(running),
    }
    scratch = plan.directory / f"{STATE_FILE}.new"
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(state, file, indent=2)
    os.replace(scratch, plan.directory / STATE_FILE)


def load(directory: Path) -> tuple[ClusterPlan, Running] | None:
    """Read the plan file; None when there is none. Raises ClusterError when it cannot be used."""
    path = directory / STATE_FILE
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if state["format"] != STATE_FORMAT:
            raise ClusterError(f"{path} has format {state['format']}, this program knows {STATE_FORMAT}")
        nodes = tuple(NodePlan(**node) for node in state["nodes"])
        running = dict(state["running"])
        running["pids"] = {int(number): pid for number, pid in running["pids"].items()}
        plan = ClusterPlan(
            directory=directory, nodes=nodes, token=state["token"], proxied=bool(state["proxied"])
        )
        return plan, Running(**running)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ClusterError(f"{path} cannot be read: {error}") from error

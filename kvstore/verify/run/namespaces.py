"""Network namespaces for the members: one each, joined by a bridge in a namespace of the run.

The process of the run leaves the host's network for a new, empty namespace, the hub, and starts clients
there. It has no uplink and no route. A member's namespace has no name; a keeper process holds it open, which
ends with the run's process, and members are killed with it, so the kernel removes everything even after a
crash.

A partition is real loss, in one direction: the sender's neighbour table has a wrong Ethernet address for the
receiver, and the bridge silently delivers its frames to an unconnected port. That port counts the lost
frames, which is the evidence. This needs veth pairs and a bridge, and no packet filter. Frames cannot be
delayed here, so slow links need relays.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kvstore.devcluster.plan import ClusterError, ClusterPlan, NodePlan
from kvstore.verify.run.cluster_under_test import ClusterUnderTest

TOOLS = ("ip", "bridge", "nsenter", "setpriv", "unshare")
TOOL_TIMEOUT_S = 20.0
"""For a command that takes milliseconds, on a machine that is very busy."""

CLONE_NEWNET = 0x40000000
"""From linux/sched.h; `os.unshare` came with Python 3.12."""

NETWORKS = ("auto", "relay", "namespaces")
RELAYS_ONLY = frozenset({"slow-links", "slow-election", "reset-links"})
"""Nemeses that make links slow or reset connections, which only relays can."""

PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
HUB = "kvhub"
LOST = "kvlost"
"""The bridge's port that leads nowhere."""

HUB_NUMBER = 254
"""The hub's number among the addresses; members have their own."""

LOST_ADDRESS = "02:ff:00:00:00:00"


def address(number: int) -> str:
    """From a block set aside for documentation: it collides with nothing real."""
    return f"192.0.2.{number}"


def _ethernet(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


def why_not() -> str:
    """Why namespaces cannot be used here; empty when they can. Leaves nothing behind."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"{', '.join(absent)} not installed"
    trial = (
        "ip link add kv1 type veth peer name kv2 && ip link add kv3 type bridge && ip link set kv1 master kv3"
    )
    try:
        done = subprocess.run(  # noqa: S603  a fixed command
            ["unshare", "--net", "--", "sh", "-c", trial],  # noqa: S607  wherever the system has it
            capture_output=True,
            text=True,
            timeout=TOOL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "making a namespace took too long"
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["refused"])[-1]


def choose(network: str, nemeses: Sequence[str]) -> tuple[str, str]:
    """How links are partitioned in a run, `relay` or `namespaces`, and why it is not namespaces.

    Raises ValueError when namespaces are asked for and cannot be used.
    """
    if network == "relay":
        return "relay", ""
    relays = sorted(RELAYS_ONLY & set(nemeses))
    why = f"{', '.join(relays)} need relays" if relays else why_not()
    if why and network == "namespaces":
        raise ValueError(f"no network of namespaces: {why}")
    return ("relay", why) if why else ("namespaces", "")


def enter_hub() -> None:
    """Take this thread, and whatever it starts from now on, into a new network; there is no way back.

    To be called before anything opens a socket or starts a thread. Raises OSError.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot leave the machine's network")
    for name in PROXY_VARIABLES:
        os.environ.pop(name, None)  # gRPC would ask them for members, whose addresses are not of this machine
    _run(["ip", "link", "set", "lo", "up"])


def _run(command: Sequence[str], text: str = "") -> None:
    try:
        subprocess.run(  # noqa: S603  commands of this file, without a shell
            command, input=text, text=True, capture_output=True, timeout=TOOL_TIMEOUT_S, check=True
        )
    except subprocess.CalledProcessError as error:
        raise ClusterError(f"{' '.join(command)}: {error.stderr.strip()}") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{' '.join(command)} took too long") from None


class Fabric:
    """Namespaces of some members around the hub, this process's own namespace."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = list(numbers)
        self._keepers: dict[int, subprocess.Popen[bytes]] = {}
        """By member: the process that holds its namespace open."""
        self._unreachable: dict[int, frozenset[int]] = {}
        """By sender: the receivers that its frames do not reach."""

    def build(self) -> None:
        """Make everything. Raises ClusterError."""
        commands = [
            # without snooping and IPv6 addresses nothing here says a word of its own, to be counted as lost
            f"link add {HUB} type bridge mcast_snooping 0",
            f"link set {HUB} addrgenmode none",
            f"link set {HUB} address {_ethernet(HUB_NUMBER)} up",
            f"addr add {address(HUB_NUMBER)}/24 dev {HUB}",
            f"link add {LOST} type veth peer name {LOST}-end",
            f"link set {LOST} addrgenmode none",
            f"link set {LOST}-end up",
            f"link set {LOST} master {HUB} up",
        ]
        for number in self.numbers:
            keeper = self._keepers[number] = self._keep()
            name, mac = f"kv{number}", _ethernet(number)
            commands += [
                f"link add {name} type veth peer name eth0 address {mac} netns {keeper.pid}",
                f"link set {name} master {HUB} up",
                f"neigh replace {address(number)} lladdr {mac} dev {HUB} nud permanent",
            ]
        _run(["ip", "-batch", "-"], "\n".join(commands))
        quiet = ["flood", "off", "mcast_flood", "off", "bcast_flood", "off", "learning", "off"]
        # It counts what was misdirected and nothing else.
        _run(["bridge", "link", "set", "dev", LOST, *quiet])
        _run(["bridge", "fdb", "add", LOST_ADDRESS, "dev", LOST, "master", "static"])
        for number in self.numbers:
            others = [one for one in (*self.numbers, HUB_NUMBER) if one != number]
            self._batch(
                number,
                [
                    "link set lo up",
                    f"addr add {address(number)}/24 dev eth0",
                    "link set eth0 up",
                    *(_neighbour(other, _ethernet(other)) for other in others),
                ],
            )
            self._unreachable[number] = frozenset()

    def _keep(self) -> subprocess.Popen[bytes]:
        """A process in a namespace of its own, which ends with ours."""
        keeper = subprocess.Popen(
            ["unshare", "--net", "--", "cat"],  # noqa: S607  wherever the system has it
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        ours = os.readlink("/proc/thread-self/ns/net")
        deadline = time.monotonic() + TOOL_TIMEOUT_S
        while os.readlink(f"/proc/{keeper.pid}/ns/net") == ours:
            if time.monotonic() > deadline:
                raise ClusterError("making a namespace took too long")
            time.sleep(0.005)
        return keeper

    def inside(self, number: int) -> list[str]:
        """What starts a program in a member's namespace, to be killed when the thread that starts it ends."""
        path = f"/proc/{self._keepers[number].pid}/ns/net"
        return ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={path}", "--"]

    def _batch(self, number: int, commands: Sequence[str]) -> None:
        _run([*self.inside(number), "ip", "-batch", "-"], "\n".join(commands))

    def set_blocked(self, links: frozenset[tuple[int, int]]) -> None:
        """Lose the frames of these links, (sender, receiver), and of no other."""
        for sender in self.numbers:
            unreachable = frozenset(receiver for one, receiver in links if one == sender)
            changed = sorted(unreachable ^ self._unreachable[sender])
            if changed:
                ends = {one: LOST_ADDRESS if one in unreachable else _ethernet(one) for one in changed}
                self._batch(sender, [_neighbour(one, end) for one, end in ends.items()])
                self._unreachable[sender] = unreachable

    def lost(self) -> int:
        """Frames that went nowhere so far."""
        for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
            name, _, counts = line.partition(":")
            if name.strip() == LOST:
                return int(counts.split()[9])  # the second half of the columns counts what was sent
        return 0

    def remove(self) -> None:
        """Take everything down; the processes inside must have ended. May be called twice."""
        for keeper in self._keepers.values():
            keeper.kill()
            keeper.communicate()
        if self._keepers:
            _run(["ip", "-force", "-batch", "-"], f"link del {HUB}\nlink del {LOST}\n")
        self._keepers.clear()


def _neighbour(number: int, ethernet: str) -> str:
    return f"neigh replace {address(number)} lladdr {ethernet} dev eth0 nud permanent"


def spread(nodes: Sequence[NodePlan]) -> tuple[NodePlan, ...]:
    """The same members, each at an address of its own."""
    return tuple(replace(node, host=address(node.number)) for node in nodes)


class NamespacedCluster(ClusterUnderTest):
    """Members with a namespace each; partitions of `partition_state` lose frames instead of holding
    connections."""

    held_called = "frames lost"

    def __init__(self, plan: ClusterPlan) -> None:
        super().__init__(replace(plan, nodes=spread(plan.nodes), proxied=False))
        self._fabric = Fabric(self.numbers)
        self._lost_before = 0
        """Frames lost before the present partition."""
        self.partition_state.register(self)

    async def start(self) -> None:
        self._fabric.build()
        await super().start()

    async def stop(self) -> None:
        await super().stop()
        self._fabric.remove()

    def launch(self, node: NodePlan) -> tuple[list[str], dict[str, str]]:
        command, environment = super().launch(node)
        return [*self._fabric.inside(node.number), *command], environment

    def partition_changed(self) -> None:
        """Called by `partition_state` at every change."""
        self._lost_before = self._fabric.lost()
        self._fabric.set_blocked(self.partition_state.blocked_links)

    def held_links(self) -> int:
        return self._fabric.lost() - self._lost_before if self.partition_state.active else 0

    def _need_proxies(self) -> None:
        """Nothing stands between members but the kernel."""

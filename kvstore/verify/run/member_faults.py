"""Members leave, come back empty, and come back damaged."""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path

import grpc.aio

from kvstore.devcluster.plan import ClusterError
from kvstore.verify.run.cluster_under_test import ClusterUnderTest, Wrapping
from kvstore.verify.run.nemesis_runner import FaultMissedError, Field
from kvstore.wire import rpc_pb2

CHANGE_TIMEOUT_S = 20.0
"""For one change of membership to be accepted: etcd refuses some while a member is not yet caught up."""

RETRY_S = 0.3
REFUSAL_TIMEOUT_S = 15.0
"""For a damaged member to say that it will not start."""

FLIP_PROBABILITIES = (1e-3, 1e-4, 1e-5)
"""Probability that a bit is flipped, as in Jepsen's tests of etcd."""

TRUNCATE_BYTES_MAX = 1024


async def remove(cluster: ClusterUnderTest, number: int) -> None:
    """Remove a member from the cluster, asking the others until one agrees. Raises ClusterError."""
    others = [other for other in cluster.alive if other != number]
    listed = await _ask(cluster, others, "Cluster/MemberList", rpc_pb2.MemberListRequest())
    port = cluster.plan.node(number).peer_port
    ids = [one.ID for one in listed.members if any(url.endswith(f":{port}") for url in one.peerURLs)]
    for member_id in ids:
        await _ask(cluster, others, "Cluster/MemberRemove", rpc_pb2.MemberRemoveRequest(ID=member_id))


async def join_anew(cluster: ClusterUnderTest, number: int) -> None:
    """Add a removed member again, with an empty directory, and start it. Raises ClusterError."""
    node = cluster.plan.node(number)
    others = [other for other in cluster.alive if other != number]
    url = f"http://{node.host}:{node.peer_port}"
    added = await _ask(cluster, others, "Cluster/MemberAdd", rpc_pb2.MemberAddRequest(peerURLs=[url]))
    names = {f"http://{other.host}:{other.peer_port}": other.name for other in cluster.plan.nodes}
    initial = ",".join(f"{names[u]}={u}" for one in added.members for u in one.peerURLs)
    data = cluster.data_of(number)
    if data.exists():
        data.rename(data.with_name(f"data.left-{time.monotonic_ns()}"))
    wrapping = cluster.wrappings.setdefault(number, Wrapping())
    wrapping.flags |= {"initial-cluster": initial, "initial-cluster-state": "existing"}
    await cluster.restart(number)


async def _ask(
    cluster: ClusterUnderTest,
    numbers: list[int],
    method: str,
    request: rpc_pb2.MemberAddRequest | rpc_pb2.MemberRemoveRequest | rpc_pb2.MemberListRequest,
) -> rpc_pb2.MemberListResponse:
    """The answer of the first member that gives one. A refusal is asked again: the cluster may need time."""
    deadline = time.monotonic() + CHANGE_TIMEOUT_S
    said = "no member is alive"
    while time.monotonic() < deadline:
        for number in numbers:
            try:
                reply: rpc_pb2.MemberListResponse = await cluster.call(number, method, request)
            except grpc.aio.AioRpcError as error:
                said = f"{error.code().name} {error.details()}"
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    raise FaultMissedError(f"{method} is not served") from None
                if "not found" in said or "already" in said:  # done by an earlier attempt of unknown outcome
                    return await _listed(cluster, numbers)
                continue
            return reply
        await asyncio.sleep(RETRY_S)
    raise ClusterError(f"{method}: {said}")


async def _listed(cluster: ClusterUnderTest, numbers: list[int]) -> rpc_pb2.MemberListResponse:
    for number in numbers:
        try:
            reply: rpc_pb2.MemberListResponse = await cluster.call(
                number, "Cluster/MemberList", rpc_pb2.MemberListRequest(linearizable=True)
            )
        except grpc.aio.AioRpcError:
            continue
        return reply
    raise ClusterError("no member lists the members")


class Members:
    """The cluster shrinks by one member, the leader often, and grows again by an empty one."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.nodes: tuple[int, ...] = ()
        self._removed = False

    def prepare(self) -> None:
        """Nothing to prepare."""

    async def begin(self) -> str:
        number = await self.field.pick()
        self.nodes, self._removed = (number,), False
        await remove(self.field.cluster, number)
        self._removed = True
        self.field.cluster.may_end[number] = True
        return f"removed node{number}"

    async def end(self) -> str:
        cluster = self.field.cluster
        if not self._removed:
            raise FaultMissedError("no member was removed")
        self._removed = False
        (number,) = self.nodes
        if number in cluster.alive:
            await cluster.kill(number)
        await join_anew(cluster, number)
        cluster.may_end[number] = False
        return f"node{number} was removed and has joined anew"


class Corruption:
    """A minority is killed and its files are damaged: flipped bits, or a shorter end.

    A member that starts all the same must be none the worse for it; one that refuses joins anew.
    """

    def __init__(self, field: Field) -> None:
        self.field = field
        self.nodes: tuple[int, ...] = ()
        self._damage: dict[int, str] = {}

    def prepare(self) -> None:
        """Nothing to prepare."""

    async def begin(self) -> str:
        field = self.field
        chosen = field.minority()
        self.nodes, self._damage = tuple(chosen), {}
        for number in chosen:
            await field.cluster.kill(number)
            self._damage[number] = damage(field.cluster.data_of(number), field.rng)
            field.cluster.may_end[number] = True
            await field.cluster.restart(number)
        return "; ".join(f"node{number}: {what}" for number, what in self._damage.items())

    async def end(self) -> str:
        cluster = self.field.cluster
        said = []
        for number in self._damage:
            if await self._refused(number):
                said.append(f"node{number} refused to start: {cluster.last_words(number)[-160:]}")
                await remove(cluster, number)
                await join_anew(cluster, number)
            else:
                said.append(f"node{number} started")
            cluster.may_end[number] = False
        self._damage = {}
        if not said:
            raise FaultMissedError("nothing was damaged")
        return "; ".join(said)

    async def _refused(self, number: int) -> bool:
        cluster = self.field.cluster
        deadline = time.monotonic() + REFUSAL_TIMEOUT_S
        while time.monotonic() < deadline:
            if number not in cluster.alive:
                return True
            status = next(one for one in await cluster.statuses() if one.number == number)
            if status.leader_id:
                return False
            await asyncio.sleep(0.1)
        return number not in cluster.alive


def damage(directory: Path, rng: random.Random) -> str:
    """Flip bits in, or shorten, one file of a member that does not run; what was done."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size > 0)
    if not files:
        raise FaultMissedError(f"{directory} holds nothing")
    chosen = rng.choice([path for path in files if path.suffix != ".lock"] or files)
    size = chosen.stat().st_size
    if rng.random() < 0.3:
        removed = rng.randint(1, min(TRUNCATE_BYTES_MAX, size))
        os.truncate(chosen, size - removed)
        return f"{chosen.name} truncated by {removed} bytes"
    used = _used_bytes(chosen, size)
    flips = max(1, round(used * 8 * rng.choice(FLIP_PROBABILITIES)))
    with chosen.open("r+b") as file:
        for _ in range(flips):
            position = rng.randrange(used)
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ (1 << rng.randrange(8))]))
    return f"{flips} bits flipped in {chosen.name}"


def _used_bytes(path: Path, size: int) -> int:
    """How far into the file anything but zeros has been written: a log is zero-filled ahead of need."""
    content = path.read_bytes()
    return max(1, min(size, len(content.rstrip(b"\0"))))

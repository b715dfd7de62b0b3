"""A leader that was paused while another took over answers no waiting read with what it still remembers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import grpc.aio
import pytest

from bench import clusters, rpc
from bench.proxy import Proxies
from kvstore.wire import rpc_pb2

PAUSES = int(os.environ.get("KVSTORE_PAUSES", "20"))
CONTROL_PAUSES_MAX = 20
READS = 1000
SILENCE_SECONDS = 0.5
READ_BYTES_MIN = 20  # of one request on the wire, headers compressed: a lower bound
TAKE_OVER_SECONDS_MAX = 20.0
ANSWER_SECONDS_MAX = 20.0
KEY = b"pause/key"


def waiting_bytes(port: int) -> int:
    """Bytes that have arrived for a port's connections and that their process has not read."""
    total = 0
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rsplit(":", 1)[1], 16) == port:
                total += int(fields[4].split(":")[1], 16)
    return total


async def put_somewhere(stores: list[rpc.Store], value: bytes) -> None:
    """Until one of the members acknowledges the value."""
    deadline = time.monotonic() + TAKE_OVER_SECONDS_MAX
    while True:
        for store in stores:
            try:
                await store.put(rpc_pb2.PutRequest(key=KEY, value=value), timeout=1)
            except grpc.aio.AioRpcError as error:
                if time.monotonic() > deadline:
                    pytest.fail(f"no leader was elected: {error.details()}")
            else:
                return


async def read(store: rpc.Store) -> bytes | None:
    """What the member answers; None for a refusal."""
    try:
        reply = await store.range(rpc_pb2.RangeRequest(key=KEY), timeout=ANSWER_SECONDS_MAX)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return None
        raise
    return reply.kvs[0].value if reply.kvs else b""


async def one_pause(cluster: clusters.Cluster, proxies: Proxies, number: int) -> list[bytes | None]:
    """Pause the leader, let another commit, send the reads, resume; returns the answers that are stale.

    In every other pause the leader is also isolated until the first read is answered or a while has passed:
    then no message of the new leader can reach the old one first, and only the confirmation of leadership
    prevents a stale answer.
    """
    await asyncio.to_thread(cluster.wait_ready)
    leader = cluster.leader()
    old, new, newer = (b"%d-%s" % (number, word) for word in (b"old", b"new", b"newer"))
    async with rpc.Store(leader.endpoint) as paused:
        others = [rpc.Store(member.endpoint) for member in cluster.members if member is not leader]
        reads: list[asyncio.Future[bytes | None]] = []
        await put_somewhere([paused], old)
        leader.signal(signal.SIGSTOP)
        try:
            if number % 2:
                proxies.isolate(cluster.members.index(leader))
            await put_somewhere(others, new)
            reads += [asyncio.ensure_future(read(paused)) for _ in range(READS)]
            deadline = time.monotonic() + ANSWER_SECONDS_MAX
            while waiting_bytes(leader.client_port) < READS * READ_BYTES_MIN:
                assert time.monotonic() < deadline, "the reads do not reach the paused leader's sockets"
                await asyncio.wait(reads, timeout=clusters.POLL_SECONDS)
            assert not any(one.done() for one in reads)
            await put_somewhere(others, newer)
        finally:
            leader.signal(signal.SIGCONT)
            if reads:
                await asyncio.wait(reads, timeout=SILENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            proxies.heal()
        answers = await asyncio.gather(*reads)
        for store in others:
            await store.close()
    return [answer for answer in answers if answer not in (None, new, newer)]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_paused_leader_answers_nothing_stale(tmp_path: Path) -> None:
    cluster = clusters.ours(tmp_path)
    with Proxies(cluster) as proxies, cluster:
        for number in range(PAUSES):
            stale = asyncio.run(one_pause(cluster, proxies, number))
            assert stale == [], f"pause {number}: {len(stale)} of {READS} reads are stale: {set(stale)}"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_without_the_quorum_check_it_does(tmp_path: Path) -> None:
    program = [sys.executable, str(Path(__file__).parent / "without_quorum_check.py"), "server"]
    cluster = clusters.Cluster(label="unsafe", program=program, folder=tmp_path)
    with Proxies(cluster) as proxies, cluster:
        for number in range(CONTROL_PAUSES_MAX):
            stale = asyncio.run(one_pause(cluster, proxies, number))
            if stale:
                assert set(stale) == {b"%d-old" % number}
                return
    pytest.fail(f"{CONTROL_PAUSES_MAX} pauses without the quorum check and no stale read: the judge is blind")

"""The tour behind `make demo`: instances of a booking service race for seats while the leader dies.

Every seat is wanted by several instances at once. A booking is one transaction that creates the
seat's key if it does not exist, so the store itself decides who gets it. Half way the leader is
killed with SIGKILL. At the end every acknowledged booking is read back through every member, and
the tour ends with exit code 1 if one is missing, changed, or held twice.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from kvstore.client import RANGE, TXN, Connection, parse_endpoints
from kvstore.devcluster.plan import ClusterError, ClusterPlan, prepare
from kvstore.devcluster.supervisor import Supervisor
from kvstore.errors import KVError, OutcomeUnknown, ServiceError
from kvstore.interrupts import run_undoing
from kvstore.wire import rpc_pb2

SEATS = 400
INSTANCES = 4
"""Instances of the booking service that race for every seat."""
KILL_AT_SEAT = SEATS // 2
CALL_TIMEOUT_S = 10.0
"""Longer than any failover, so that an instance waits for the new leader rather than give up."""
CATCH_UP_TIMEOUT_S = 30.0


@dataclass(slots=True)
class Bookings:
    """What was acknowledged to the instances."""

    holders: dict[int, list[str]] = field(default_factory=dict)
    """Seat -> every instance whose booking was acknowledged; more than one is a double booking."""
    acknowledged_at_s: list[float] = field(default_factory=list)
    """Monotonic times of acknowledgements, ascending."""
    unknown: int = 0
    """Calls that ended without telling whether the booking was made."""
    refused: int = 0
    """Calls that certainly booked nothing, for want of a leader."""
    half_way: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the first instance asks for seat KILL_AT_SEAT."""


@click.command()
def demo() -> None:
    """A tour that ends by itself: a race for seats, a killed leader, everything read back."""
    with tempfile.TemporaryDirectory(prefix="kvstore-demo-") as directory:
        try:
            sound = run_undoing(_tour(prepare(Path(directory), nodes=3, free=True, proxied=False)))
        except (ClusterError, KVError) as error:
            raise click.ClickException(str(error)) from error
    sys.exit(0 if sound else 1)


async def _tour(plan: ClusterPlan) -> bool:
    cluster = Supervisor(plan)
    try:
        begun_s = time.monotonic()
        await cluster.start()
        await cluster.wait_ready()
        click.echo(f"three members are up and agree on a leader: {time.monotonic() - begun_s:.1f} s")
        bookings = Bookings()
        victim, killed_s = await _race(cluster, bookings)
        _report(bookings, victim, killed_s)
        survivors = [node.client_address for node in plan.nodes if node.number != victim]
        sound = True
        for address in survivors:
            sound = await _read_back(address, bookings) and sound
        await cluster.restart(victim)
        await _caught_up(cluster, victim)
        returned = plan.node(victim).client_address
        click.echo(f"node{victim} is back on its old data and has caught up")
        sound = await _read_back(returned, bookings) and sound
        click.echo("no seat is booked twice and no booking is lost" if sound else "THE STORE IS WRONG")
        return sound
    finally:
        await cluster.stop()


async def _race(cluster: Supervisor, bookings: Bookings) -> tuple[int, float]:
    """Let the instances book every seat; kill the leader half way. Who was killed, and when."""
    endpoints = cluster.plan.endpoints
    async with asyncio.TaskGroup() as group:
        for number in range(INSTANCES):
            group.create_task(_instance(f"instance-{number}", endpoints, number, bookings))
        await bookings.half_way.wait()
        victim = await cluster.resolve("leader")
        killed_s = time.monotonic()
        await cluster.kill(victim)
    return victim, killed_s


async def _instance(name: str, endpoints: str, first: int, bookings: Bookings) -> None:
    """One instance of the service: try every seat one after the other, and believe only acknowledgements."""
    addresses = list(parse_endpoints(endpoints))
    async with Connection(addresses[first % 3 :] + addresses[: first % 3], timeout_s=CALL_TIMEOUT_S) as kv:
        for seat in range(SEATS):
            if seat == KILL_AT_SEAT:
                bookings.half_way.set()
            try:
                reply = await kv.call(TXN, _booking(seat, name))
            except OutcomeUnknown:
                bookings.unknown += 1
            except ServiceError:
                bookings.refused += 1
            else:
                bookings.acknowledged_at_s.append(time.monotonic())
                if reply.succeeded:
                    bookings.holders.setdefault(seat, []).append(name)


def _key(seat: int) -> bytes:
    return b"seats/%04d" % seat


def _booking(seat: int, name: str) -> rpc_pb2.TxnRequest:
    """Create the seat's key if it does not exist."""
    key = _key(seat)
    absent = rpc_pb2.Compare(
        result=rpc_pb2.Compare.EQUAL, target=rpc_pb2.Compare.CREATE, key=key, create_revision=0
    )
    put = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=name.encode()))
    return rpc_pb2.TxnRequest(compare=[absent], success=[put])


def _report(bookings: Bookings, victim: int, killed_s: float) -> None:
    times = bookings.acknowledged_at_s
    gap_s = _gap_around(times, killed_s)
    click.echo(f"{INSTANCES} instances raced for {SEATS} seats; node{victim} led and was killed with SIGKILL")
    click.echo(
        f"{len(times)} calls answered in {times[-1] - times[0]:.1f} s,"
        f" {bookings.unknown} of unknown outcome, {bookings.refused} refused"
    )
    click.echo(
        f"{len(bookings.holders)} bookings acknowledged; silence around the kill {gap_s * 1000:.0f} ms"
    )


def _gap_around(times: Sequence[float], moment_s: float) -> float:
    """The longest time without an acknowledgement that begins within a second of the kill."""
    gaps = [
        later - earlier
        for earlier, later in itertools.pairwise(times)
        if moment_s - 1 <= earlier <= moment_s + 1
    ]
    return max(gaps, default=0.0)


async def _read_back(address: str, bookings: Bookings) -> bool:
    """Hold every acknowledged booking against a linearizable read through one member."""
    async with Connection(parse_endpoints(address), timeout_s=CALL_TIMEOUT_S) as kv:
        reply = await kv.call(RANGE, rpc_pb2.RangeRequest(key=b"seats/", range_end=b"seats0"))
    found = {pair.key: pair for pair in reply.kvs}
    wrong = 0
    for seat, holders in bookings.holders.items():
        pair = found.get(_key(seat))
        if pair is None or len(holders) > 1 or pair.value.decode() != holders[0] or pair.version != 1:
            wrong += 1
            click.echo(f"  seat {seat}: acknowledged to {holders}, the store says {pair}", err=True)
    click.echo(f"read back through {address}: {len(bookings.holders)} bookings, {wrong} wrong")
    return wrong == 0


async def _caught_up(cluster: Supervisor, number: int) -> None:
    """Wait until a member has applied what the others have; raises ClusterError when it does not."""
    deadline_s = time.monotonic() + CATCH_UP_TIMEOUT_S
    while True:
        statuses = await cluster.statuses()
        goal = max(status.applied_index for status in statuses)
        if next(s for s in statuses if s.number == number).applied_index >= goal > 0:
            return
        if time.monotonic() > deadline_s:
            raise ClusterError(f"node{number} has not caught up within {CATCH_UP_TIMEOUT_S:.0f} s")
        await asyncio.sleep(0.05)

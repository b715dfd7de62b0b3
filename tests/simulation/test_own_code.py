"""Seats are booked while the cluster breaks, and no seat is ever booked twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kvstore.client import PUT, RANGE, TXN, Caller
from kvstore.errors import OutcomeUnknown, Unavailable
from kvstore.testing import SimulatedCluster, SimulatedConnection, SimulatedEngine, run_virtual
from kvstore.wire.rpc_pb2 import Compare, PutRequest, RangeRequest, RequestOp, TxnRequest

Book = Callable[[Caller, str, str], Awaitable[bool]]


async def book(store: Caller, seat: str, guest: str) -> bool:
    """Whether the seat is now the guest's, whose name is unique. Retries until that is known."""
    key = f"seats/{seat}".encode()
    request = TxnRequest(
        compare=[Compare(key=key, target=Compare.CREATE, result=Compare.EQUAL, create_revision=0)],
        success=[RequestOp(request_put=PutRequest(key=key, value=guest.encode()))],
        failure=[RequestOp(request_range=RangeRequest(key=key))],
    )
    while True:
        try:
            answer = await store.call(TXN, request)
        except (OutcomeUnknown, Unavailable):
            await asyncio.sleep(0.1)  # perhaps booked: a retry finds its own name
            continue
        return answer.succeeded or answer.responses[0].response_range.kvs[0].value == guest.encode()


SEATS, GUESTS = 8, 24


async def weekend(seed: int, book: Book) -> list[str]:
    """Guests compete for seats while a leader is partitioned and the next one dies. What went wrong."""
    rng = random.Random(seed)
    cluster = SimulatedCluster(seed=seed, machine=SimulatedEngine)
    await cluster.start_all()
    first = (await cluster.wait_for_leader()).member_id
    granted: list[tuple[str, str]] = []

    async def guest(name: str, seat: str, store: Caller) -> None:
        await asyncio.sleep(rng.uniform(0, 4))
        if await book(store, seat, name):
            granted.append((seat, name))

    async with asyncio.TaskGroup() as group:
        for number in range(GUESTS):
            store = cluster.connect(*rng.sample([1, 2, 3], 3), timeout_s=1.0)  # each begins with another
            group.create_task(guest(f"guest {number}", str(number % SEATS), store))
        await asyncio.sleep(1)
        cluster.partition([first], [other for other in cluster.members if other != first])
        await cluster.wait_until(lambda: (new := cluster.leader()) is not None and new.member_id != first)
        second = (await cluster.wait_for_leader()).member_id
        await asyncio.sleep(rng.uniform(0, 1))
        cluster.crash(second)
        cluster.heal()
        await asyncio.sleep(rng.uniform(0, 2))
        await cluster.start(second)

    everything = RangeRequest(key=b"seats/", range_end=b"seats0")
    found = {
        kv.key.decode(): kv.value.decode() for kv in (await cluster.connect().call(RANGE, everything)).kvs
    }
    await cluster.stop_all()
    wrong = [f"{who} has no seat {seat}" for seat, who in granted if found.get(f"seats/{seat}") != who]
    for seat in sorted({seat for seat, _ in granted}):
        holders = [who for booked, who in granted if booked == seat]
        if len(holders) > 1:
            wrong.append(f"seat {seat} was given to {' and '.join(holders)}")
    if len(found) != SEATS:
        wrong.append(f"{len(found)} of {SEATS} seats are booked")
    return wrong


SEEDS = range(6)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_seat_is_booked_twice(seed: int) -> None:
    assert run_virtual(weekend(seed, book)) == []


async def book_without_compare(store: Caller, seat: str, guest: str) -> bool:
    """The mistake: look, then write."""
    key = f"seats/{seat}".encode()
    while True:
        try:
            found = (await store.call(RANGE, RangeRequest(key=key))).kvs
            if not found:
                await store.call(PUT, PutRequest(key=key, value=guest.encode()))
        except (OutcomeUnknown, Unavailable):
            await asyncio.sleep(0.1)
            continue
        return not found or found[0].value == guest.encode()


def test_the_scenario_catches_who_looks_and_then_writes() -> None:
    assert any(
        "was given to" in wrong
        for seed in SEEDS
        for wrong in run_virtual(weekend(seed, book_without_compare))
    )


def test_the_scenario_leaves_bookings_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scenario in which every call is answered shows nothing about those that are not."""
    in_doubt = 0
    call: Any = SimulatedConnection.call

    async def witnessed(self: SimulatedConnection, method: Any, request: Any) -> Any:
        nonlocal in_doubt
        try:
            return await call(self, method, request)
        except OutcomeUnknown:
            in_doubt += 1
            raise

    monkeypatch.setattr(SimulatedConnection, "call", witnessed)
    for seed in SEEDS:
        run_virtual(weekend(seed, book))
    assert in_doubt > len(SEEDS)

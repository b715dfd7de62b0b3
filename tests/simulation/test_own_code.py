"""Rooms are booked while the cluster breaks, and no room is ever booked twice."""

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


async def book(store: Caller, room: str, guest: str) -> bool:
    """Whether the room is now the guest's, whose name nobody else has. Asks until that is known."""
    key = f"rooms/{room}".encode()
    choice = TxnRequest(
        compare=[Compare(key=key, target=Compare.CREATE, result=Compare.EQUAL, create_revision=0)],
        success=[RequestOp(request_put=PutRequest(key=key, value=guest.encode()))],
        failure=[RequestOp(request_range=RangeRequest(key=key))],
    )
    while True:
        try:
            answer = await store.call(TXN, choice)
        except (OutcomeUnknown, Unavailable):
            await asyncio.sleep(0.1)  # perhaps booked: asked again, it finds its own name
            continue
        return answer.succeeded or answer.responses[0].response_range.kvs[0].value == guest.encode()


ROOMS, GUESTS = 8, 24


async def weekend(seed: int, book: Book) -> list[str]:
    """Guests compete for rooms while a leader is cut off and the next one dies. What went wrong."""
    rng = random.Random(seed)
    cluster = SimulatedCluster(seed=seed, machine=SimulatedEngine)
    await cluster.start_all()
    first = (await cluster.wait_for_leader()).member_id
    told: list[tuple[str, str]] = []

    async def guest(name: str, room: str, store: Caller) -> None:
        await asyncio.sleep(rng.uniform(0, 4))
        if await book(store, room, name):
            told.append((room, name))

    async with asyncio.TaskGroup() as group:
        for number in range(GUESTS):
            store = cluster.connect(*rng.sample([1, 2, 3], 3), timeout_s=1.0)  # each begins with another
            group.create_task(guest(f"guest {number}", str(number % ROOMS), store))
        await asyncio.sleep(1)
        cluster.partition([first], [other for other in cluster.members if other != first])
        await cluster.wait_until(lambda: (new := cluster.leader()) is not None and new.member_id != first)
        second = (await cluster.wait_for_leader()).member_id
        await asyncio.sleep(rng.uniform(0, 1))
        cluster.crash(second)
        cluster.heal()
        await asyncio.sleep(rng.uniform(0, 2))
        await cluster.start(second)

    everything = RangeRequest(key=b"rooms/", range_end=b"rooms0")
    found = {
        kv.key.decode(): kv.value.decode() for kv in (await cluster.connect().call(RANGE, everything)).kvs
    }
    await cluster.stop_all()
    wrong = [f"{who} has no room {room}" for room, who in told if found.get(f"rooms/{room}") != who]
    for room in sorted({room for room, _ in told}):
        holders = [who for booked, who in told if booked == room]
        if len(holders) > 1:
            wrong.append(f"room {room} was given to {' and '.join(holders)}")
    if len(found) != ROOMS:
        wrong.append(f"{len(found)} of {ROOMS} rooms are booked")
    return wrong


SEEDS = range(6)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_room_is_booked_twice(seed: int) -> None:
    assert run_virtual(weekend(seed, book)) == []


async def book_without_compare(store: Caller, room: str, guest: str) -> bool:
    """The mistake: look, then write."""
    key = f"rooms/{room}".encode()
    while True:
        try:
            found = (await store.call(RANGE, RangeRequest(key=key))).kvs
            if not found:
                await store.call(PUT, PutRequest(key=key, value=guest.encode()))
        except (OutcomeUnknown, Unavailable):
            await asyncio.sleep(0.1)
            continue
        return not found or found[0].value == guest.encode()


def test_the_story_catches_who_looks_and_then_writes() -> None:
    assert any(
        "was given to" in wrong
        for seed in SEEDS
        for wrong in run_virtual(weekend(seed, book_without_compare))
    )


def test_the_story_leaves_bookings_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every call is answered, nothing is proven about those that are not."""
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

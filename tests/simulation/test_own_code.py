"""Seats are booked while the cluster breaks, and no seat is ever booked twice."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from kvstore.client import (
    CAMPAIGN,
    LOCK,
    PUT,
    RANGE,
    TXN,
    Caller,
    Session,
    StreamCaller,
    Watching,
    observe,
    wait_for,
)
from kvstore.errors import OutcomeUnknown, RequestError, Unavailable
from kvstore.testing import SimulatedCluster, SimulatedConnection, SimulatedEngine, run_virtual
from kvstore.wire.rpc_pb2 import (
    Compare,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    WatchCreateRequest,
)
from kvstore.wire.v3election_pb2 import CampaignRequest
from kvstore.wire.v3lock_pb2 import LockRequest

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


async def bulletin(store: Caller, lock: bytes, text: str) -> None:
    """Written only while the key of the lock is there: a holder whose lease has expired changes nothing."""
    request = TxnRequest(
        compare=[Compare(key=lock, target=Compare.CREATE, result=Compare.GREATER, create_revision=0)],
        success=[RequestOp(request_put=PutRequest(key=b"bulletin", value=text.encode()))],
    )
    while True:
        try:
            assert (await store.call(TXN, request)).succeeded, "the lock is lost"
            return
        except (OutcomeUnknown, Unavailable):
            await asyncio.sleep(0.1)  # perhaps written: a second time does no harm


async def publish(store: StreamCaller, lock: str, name: str) -> None:
    """Three bulletins, under a lock that ends with the session."""
    async with Session(store, 5) as session:
        held = await wait_for(store, LOCK, LockRequest(name=lock.encode(), lease=session.lease))
        for number in range(3):
            await bulletin(store, held.key, f"{name} {number}")
            await asyncio.sleep(0.5)


async def press(seed: int, locks: dict[str, str]) -> list[str]:
    """What a reader sees of publishers, each with its lock, while a leader dies and comes back."""
    rng = random.Random(seed)
    cluster = SimulatedCluster(seed=seed, machine=SimulatedEngine)
    await cluster.start_all()
    await cluster.wait_for_leader()
    seen: list[str] = []

    async def read() -> None:
        everything = WatchCreateRequest(key=b"bulletin", start_revision=1)
        async with Watching(cluster.connect(*rng.sample([1, 2, 3], 3)), everything) as watching:
            async for response in watching:
                seen.extend(event.kv.value.decode() for event in response.events)

    reader = asyncio.ensure_future(read())
    async with asyncio.TaskGroup() as group:
        for name, lock in locks.items():
            group.create_task(publish(cluster.connect(timeout_s=1.0), lock, name))
        await asyncio.sleep(rng.uniform(0.5, 2))
        dead = (await cluster.wait_for_leader()).member_id
        cluster.crash(dead)
        await asyncio.sleep(rng.uniform(1, 3))
        await cluster.start(dead)
    await cluster.wait_until(lambda: len(set(seen)) == 3 * len(locks), 10.0, "every bulletin")
    reader.cancel()
    await asyncio.wait([reader])
    await cluster.stop_all()
    return [text for text, _ in itertools.groupby(seen)]


def interrupted(seen: list[str]) -> bool:
    """Whether the bulletins of one publisher have another's between them."""
    names = [name for name, _ in itertools.groupby(text[0] for text in seen)]
    return len(names) > len(set(names))


@pytest.mark.parametrize("seed", SEEDS)
def test_publishers_do_not_interrupt_one_another(seed: int) -> None:
    seen = run_virtual(press(seed, {"a": "press", "b": "press", "c": "press"}))
    assert not interrupted(seen)
    for name in "abc":
        assert [text for text in seen if text[0] == name] == [f"{name} {number}" for number in range(3)]


def test_the_scenario_catches_who_takes_a_lock_of_its_own() -> None:
    assert any(interrupted(run_virtual(press(seed, {"a": "press", "b": "pres"}))) for seed in SEEDS)


@dataclass
class News:
    elected: list[str] = field(default_factory=list)
    """Who knew to be elected, in order."""
    seen: list[str] = field(default_factory=list)
    """Who was elected in the eyes of a listener."""
    editing: list[str] = field(default_factory=list)
    clashes: list[str] = field(default_factory=list)


async def edit(store: StreamCaller, name: str, news: News, overtime_s: float) -> None:
    """Edit when elected, until the lease may have expired, and beyond it for `overtime_s`."""
    while True:
        try:
            async with Session(store, 3) as session:
                request = CampaignRequest(name=b"editor", lease=session.lease, value=name.encode())
                await wait_for(store, CAMPAIGN, request)
                if session.lost.is_set():
                    continue  # it expired while this waited
                news.clashes += [f"{name} beside {other}" for other in news.editing]
                news.elected.append(name)
                news.editing.append(name)
                await session.lost.wait()
                await asyncio.sleep(overtime_s)
                news.editing.remove(name)
        except (OutcomeUnknown, RequestError, Unavailable):
            await asyncio.sleep(0.1)  # not reached, or the lease expired while this waited: begin again


async def listen(store: StreamCaller, news: News) -> None:
    while True:
        try:
            async for reply in observe(store, b"editor"):
                name = reply.kv.value.decode()
                news.seen.append(name)
        except Unavailable:
            await asyncio.sleep(0.1)  # its member is gone: ask again


async def newsroom(seed: int, overtime_s: float) -> News:
    """Three editors, each at a member of its own. The member of each that is elected loses the majority."""
    cluster = SimulatedCluster(seed=seed, machine=SimulatedEngine)
    await cluster.start_all()
    await cluster.wait_for_leader()
    news = News()
    members = {"a": 1, "b": 2, "c": 3}
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(listen(cluster.connect(3), news))]
        for name, member in members.items():
            store = cluster.connect(member, timeout_s=1.0)
            tasks.append(group.create_task(edit(store, name, news, overtime_s)))
        for _ in range(4):
            await cluster.wait_until(lambda: bool(news.editing), 20.0, "an editor")
            count, partitioned = len(news.elected), members[news.elected[-1]]
            cluster.partition([partitioned], [other for other in cluster.members if other != partitioned])
            await cluster.wait_until(lambda count=count: len(news.elected) > count, 20.0, "a successor")
            cluster.heal()
        await cluster.wait_until(lambda: news.seen[-1:] == news.elected[-1:], 20.0, "the last one to be seen")
        for task in tasks:
            task.cancel()
    await cluster.stop_all()
    return news


@pytest.mark.parametrize("seed", SEEDS)
def test_one_editor_at_a_time_is_elected_and_seen(seed: int) -> None:
    news = run_virtual(newsroom(seed, overtime_s=0.0))
    assert news.clashes == []
    assert len(news.elected) > 4
    rest = iter(news.seen)  # with those, too, who were elected during the partition, and never knew
    assert all(name in rest for name in news.elected)


def test_the_scenario_catches_an_editor_who_goes_on() -> None:
    assert any(run_virtual(newsroom(seed, overtime_s=5.0)).clashes for seed in SEEDS)

"""Locks and elections in programs: who waits, who is next, and what each caller receives.

A call that must wait continues beside the program. After each step the queue is checked: the first in it must
have been answered, on both sides alike. So both sides take the same path through the program.

Left out, since etcd 3.5.1 answers them wrongly or not always alike: the end of a waiter's lease (it is still
granted the lock later), and calls without a lease, whose keys have random names.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, NamedTuple

from google.protobuf.message import Message

from kvstore.wire import v3election_pb2, v3lock_pb2
from tests.differential import judge
from tests.differential.context import (
    Context,
    Unary,
    ask,
    differs,
    learn,
    outcome,
    plain,
    until,
)
from tests.differential.leasing import LABELS, Grant, Revoke
from tests.differential.programs import Generator, Range, Step

NAMES = (b"\xfelock/a", b"\xfelock/b")
"""Above the keys of the rest of a program. Callers are numbered by the label of their lease."""

ETCD_BEGINS_SECONDS = 0.1
"""A call cancelled after etcd has stored its key, but before it waits for the others, leaves it behind."""

LOCK = Unary("/v3lockpb.Lock/Lock", v3lock_pb2.LockResponse)
UNLOCK = Unary("/v3lockpb.Lock/Unlock", v3lock_pb2.UnlockResponse)
CAMPAIGN = Unary("/v3electionpb.Election/Campaign", v3election_pb2.CampaignResponse)
PROCLAIM = Unary("/v3electionpb.Election/Proclaim", v3election_pb2.ProclaimResponse)
LEADER = Unary("/v3electionpb.Election/Leader", v3election_pb2.LeaderResponse)
RESIGN = Unary("/v3electionpb.Election/Resign", v3election_pb2.ResignResponse)


class Waiting(NamedTuple):
    """One call on its way, on both sides."""

    what: str
    name: bytes
    label: int
    key: bytes
    calls: list[asyncio.Task[Any]]
    begun_at: float


class Queues:
    """The calls of one program that wait, and what those that were answered hold."""

    def __init__(self) -> None:
        self.waiting: list[Waiting] = []
        self.held: dict[tuple[bytes, int], Any] = {}
        """(name, label) -> the left side's reply; for an election, with its leader key."""

    def waits(self, label: int) -> bool:
        """Whether a call under this lease is on its way."""
        return any(one.label == label for one in self.waiting)

    def is_busy(self, name: bytes, label: int) -> bool:
        return any((one.name, one.label) == (name, label) for one in self.waiting)

    async def begin(
        self, context: Context, what: str, method: Unary, name: bytes, label: int, request: Message
    ) -> str | None:
        """Call, and wait until the caller is answered or stands in the queue, on both sides."""
        key = b"%b/%x" % (name, context.lease_base + label)
        before, _ = await context.both(Range(key=key))
        is_again = before.count == 1  # a holder does not wait, so its key shows nothing
        calls = [asyncio.ensure_future(_call(method, store, request)) for store in context.stores]
        one = Waiting(what, name, label, key, calls, time.monotonic())
        self.waiting.append(one)

        async def stands(store: Any, call: asyncio.Task[Any]) -> bool:
            return call.done() or (not is_again and (await outcome(store.range(Range(key=key)))).count == 1)

        async def all_stand() -> bool:
            return all([await stands(store, call) for store, call in zip(context.stores, calls, strict=True)])

        await until(all_stand, f"{what} to stand in the queue")
        return await self.complete(context)

    async def complete(self, context: Context) -> str | None:
        """Await the answer of every caller that is first in its queue, and compare both sides."""
        while True:
            request = Range(key=b"\xfe", range_end=b"\xff", sort_target=Range.CREATE, sort_order=Range.ASCEND)
            left, right = await context.both(request)
            found = judge.difference(request, left, right)
            if found is not None:
                return found
            keys = [pair.key for pair in left.kvs]
            first = next((one for one in self.waiting if _is_answered(one, keys)), None)
            if first is None:
                return None
            self.waiting.remove(first)
            replies = [await outcome(call) for call in first.calls]
            learn(context, replies)
            found = differs(first.what, plain(replies[0]), plain(replies[1]))
            if found is not None:
                return found
            if not isinstance(replies[0], judge.Refusal):
                self.held[first.name, first.label] = replies[0]

    async def give_up(self, context: Context, one: Waiting) -> None:
        """Cancel a call that waits; its key goes by itself."""
        self.waiting.remove(one)
        await asyncio.sleep(max(0.0, one.begun_at + ETCD_BEGINS_SECONDS - time.monotonic()))
        for call in one.calls:
            call.cancel()
        await asyncio.wait(one.calls)

        async def all_gone() -> bool:
            replies = await context.both(Range(key=one.key))
            return all(reply.count == 0 for reply in replies)

        await until(all_gone, f"the key of {one.what} to go after it was cancelled")

    async def close(self) -> None:
        """End all calls, whatever becomes of them."""
        calls = [call for one in self.waiting for call in one.calls]
        for call in calls:
            call.cancel()
        if calls:
            await asyncio.wait(calls)


async def _call(method: Unary, store: Any, request: Message) -> Any:
    return await method.on(store, request)


def _is_answered(one: Waiting, keys: list[bytes]) -> bool:
    """Whether a caller is first in its queue, or its call has failed on a side."""
    mine = [key for key in keys if key.startswith(one.name + b"/")]
    return one.key not in mine or mine[0] == one.key


class Lock(NamedTuple):
    name: bytes
    label: int

    async def act(self, context: Any) -> str | None:
        if context.queues.is_busy(self.name, self.label):
            return None
        request = v3lock_pb2.LockRequest(name=self.name, lease=context.lease_base + self.label)
        return await context.queues.begin(context, str(self), LOCK, self.name, self.label, request)


class Unlock(NamedTuple):
    """Releases the lock, or deletes a key that does not exist."""

    name: bytes
    label: int

    async def act(self, context: Any) -> str | None:
        if context.queues.is_busy(self.name, self.label):
            return None  # a release by a waiter: it is still granted the lock later
        context.queues.held.pop((self.name, self.label), None)
        request = v3lock_pb2.UnlockRequest(key=b"%b/%x" % (self.name, context.lease_base + self.label))
        left, right = map(plain, await ask(context, UNLOCK, request))
        return differs(str(self), left, right) or await context.queues.complete(context)


class Campaign(NamedTuple):
    name: bytes
    label: int
    value: bytes

    async def act(self, context: Any) -> str | None:
        if context.queues.is_busy(self.name, self.label):
            return None
        request = v3election_pb2.CampaignRequest(
            name=self.name, lease=context.lease_base + self.label, value=self.value
        )
        return await context.queues.begin(context, str(self), CAMPAIGN, self.name, self.label, request)


class Proclaim(NamedTuple):
    name: bytes
    label: int
    value: bytes

    async def act(self, context: Any) -> str | None:
        request = v3election_pb2.ProclaimRequest(leader=_leader(context, self), value=self.value)
        left, right = map(plain, await ask(context, PROCLAIM, request))
        return differs(str(self), left, right)


class Resign(NamedTuple):
    name: bytes
    label: int

    async def act(self, context: Any) -> str | None:
        if context.queues.is_busy(self.name, self.label):
            return None
        request = v3election_pb2.ResignRequest(leader=_leader(context, self))
        context.queues.held.pop((self.name, self.label), None)
        left, right = map(plain, await ask(context, RESIGN, request))
        return differs(str(self), left, right) or await context.queues.complete(context)


def _leader(context: Any, action: Any) -> v3election_pb2.LeaderKey:
    """The key that a campaign gave; one that never was, if there was none."""
    held = context.queues.held.get((action.name, action.label))
    if isinstance(held, v3election_pb2.CampaignResponse):
        return held.leader
    lease = context.lease_base + action.label
    return v3election_pb2.LeaderKey(name=action.name, key=b"%b/%x" % (action.name, lease), rev=7, lease=lease)


class Leader(NamedTuple):
    name: bytes

    async def act(self, context: Any) -> str | None:
        left, right = map(plain, await ask(context, LEADER, v3election_pb2.LeaderRequest(name=self.name)))
        return differs(str(self), left, right)


class Observe(NamedTuple):
    """The first response to an observer, if there is a leader."""

    name: bytes

    async def act(self, context: Any) -> str | None:
        left, _ = await ask(context, LEADER, v3election_pb2.LeaderRequest(name=self.name))
        if isinstance(left, judge.Refusal):
            return None
        replies = [plain(await self._first(store)) for store in context.stores]
        return differs(str(self), *replies)

    async def _first(self, store: Any) -> Any:
        call = store.channel.unary_stream(
            "/v3electionpb.Election/Observe",
            request_serializer=v3election_pb2.LeaderRequest.SerializeToString,
            response_deserializer=v3election_pb2.LeaderResponse.FromString,
        )(v3election_pb2.LeaderRequest(name=self.name))
        try:
            return await outcome(call.read())
        finally:
            call.cancel()


class GiveUp(NamedTuple):
    """One who waits leaves."""

    number: int

    async def act(self, context: Any) -> str | None:
        waiting = context.queues.waiting
        if not waiting:
            return None
        context.count("callers that left the queue")
        await context.queues.give_up(context, waiting[self.number % len(waiting)])
        found: str | None = await context.queues.complete(context)
        return found


def _name(generator: Generator) -> bytes:
    return generator.random.choice(NAMES)


def _label(generator: Generator) -> int:
    return generator.random.randrange(1, LABELS)


def draw_lock(generator: Generator) -> Step:
    return Step(Lock(_name(generator), _label(generator)), ("lock",))


def draw_unlock(generator: Generator) -> Step:
    return Step(Unlock(_name(generator), _label(generator)), ("unlock",))


def _election(generator: Generator) -> bytes:
    return generator.random.choice(NAMES).replace(b"lock", b"vote")


def draw_campaign(generator: Generator) -> Step:
    return Step(Campaign(_election(generator), _label(generator), generator.value()), ("campaign",))


def draw_proclaim(generator: Generator) -> Step:
    return Step(Proclaim(_election(generator), _label(generator), generator.value()), ("proclaim",))


def draw_resign(generator: Generator) -> Step:
    return Step(Resign(_election(generator), _label(generator)), ("resign",))


def draw_leader(generator: Generator) -> Step:
    return Step(Leader(_election(generator)), ("leader",))


def draw_observe(generator: Generator) -> Step:
    return Step(Observe(_election(generator)), ("observe",))


def draw_give_up(generator: Generator) -> Step:
    return Step(GiveUp(generator.random.randrange(100)), ("give up",))


def draw_lose_lease(generator: Generator) -> Step:
    return Step(Revoke(_label(generator)), ("lose lease",))


def draw_grant(generator: Generator) -> Step:
    return Step(Grant(_label(generator), 600), ("lease grant",))


DRAWS = (
    (24.0, draw_grant),
    (30.0, draw_lock),
    (16.0, draw_unlock),
    (30.0, draw_campaign),
    (6.0, draw_proclaim),
    (12.0, draw_resign),
    (5.0, draw_leader),
    (4.0, draw_observe),
    (10.0, draw_give_up),
    (6.0, draw_lose_lease),
)
OPTIONS = frozenset(
    ["lock", "unlock", "campaign", "proclaim", "resign", "leader", "observe", "give up", "lose lease"]
)


async def clean_up(context: Any) -> str | None:
    """Everyone leaves, then the leases end."""
    for one in list(context.queues.waiting):
        await context.queues.give_up(context, one)
    found = None
    for label in range(1, LABELS):
        found = found or await Revoke(label).act(context)
    return found

"""Leases in programs: granted with ids of their own, kept alive, queried, revoked, and left to expire.

Times are not compared but within some seconds; what expires is waited for on both sides.
"""

from __future__ import annotations

from typing import NamedTuple

from google.protobuf.message import Message

from kvstore.wire import rpc_pb2
from tests.differential import judge
from tests.differential.context import Context, Unary, ask, differs, outcome, plain, until
from tests.differential.programs import Generator, Put, Range, Step

TTL_TOLERANCE_SECONDS = 5
TOO_LARGE_TTL = 9_000_000_001
LABELS = 5

GRANT = Unary("/etcdserverpb.Lease/LeaseGrant", rpc_pb2.LeaseGrantResponse)
REVOKE = Unary("/etcdserverpb.Lease/LeaseRevoke", rpc_pb2.LeaseRevokeResponse)
TIME_TO_LIVE = Unary("/etcdserverpb.Lease/LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveResponse)
LEASES = Unary("/etcdserverpb.Lease/LeaseLeases", rpc_pb2.LeaseLeasesResponse)


class Grant(NamedTuple):
    label: int
    ttl: int

    async def act(self, context: Context) -> str | None:
        request = rpc_pb2.LeaseGrantRequest(ID=context.lease_base + self.label, TTL=self.ttl)
        return _same(str(self), await ask(context, GRANT, request))


class Revoke(NamedTuple):
    """Revokes a lease and deletes its keys, unless a waiter in a queue uses it."""

    label: int

    async def act(self, context: Context) -> str | None:
        if context.queues.waits(self.label):
            return None
        request = rpc_pb2.LeaseRevokeRequest(ID=context.lease_base + self.label)
        found = _same(str(self), await ask(context, REVOKE, request))
        return found or await context.queues.complete(context)


class KeepAlive(NamedTuple):
    """Keep-alives on one stream: one answer each, in order."""

    labels: tuple[int, ...]

    async def act(self, context: Context) -> str | None:
        left, right = [await self._keep_alive(store, context.lease_base) for store in context.stores]
        for label, one, other in zip(self.labels, left, right, strict=True):
            found = differs(f"{self} for {label}", plain(one), plain(other))
            if found is not None:
                return found
        return None

    async def _keep_alive(self, store: object, base: int) -> list[Message]:
        call = store.channel.stream_stream(  # type: ignore[attr-defined]  # a Store
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=rpc_pb2.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=rpc_pb2.LeaseKeepAliveResponse.FromString,
        )()
        for label in self.labels:
            await call.write(rpc_pb2.LeaseKeepAliveRequest(ID=base + label))
        replies = [await outcome(call.read()) for _ in self.labels]
        call.cancel()
        return replies


class TimeToLive(NamedTuple):
    label: int
    keys: bool

    async def act(self, context: Context) -> str | None:
        request = rpc_pb2.LeaseTimeToLiveRequest(ID=context.lease_base + self.label, keys=self.keys)
        left, right = [_timeless(reply) for reply in await ask(context, TIME_TO_LIVE, request)]
        if not isinstance(left, judge.Refusal) and not isinstance(right, judge.Refusal):
            is_close = abs(left.TTL - right.TTL) <= TTL_TOLERANCE_SECONDS
            if is_close and (left.TTL < 0) == (right.TTL < 0):
                right.TTL = left.TTL
        return differs(str(self), left, right)


class ListLeases(NamedTuple):
    async def act(self, context: Context) -> str | None:
        replies = await ask(context, LEASES, rpc_pb2.LeaseLeasesRequest())
        left, right = ({one.ID for one in reply.leases} for reply in replies)
        return None if left == right else f"{self}\n   left {sorted(left)}\n  right {sorted(right)}"


class PutLeased(NamedTuple):
    label: int
    key: bytes
    prev_kv: bool

    async def act(self, context: Context) -> str | None:
        request = Put(
            key=self.key, value=b"leased", lease=context.lease_base + self.label, prev_kv=self.prev_kv
        )
        left, right = await context.both(request)
        return judge.difference(request, left, right)


class Expire(NamedTuple):
    """A lease as short as can be, its keys, and the wait for its end: one revision deletes them."""

    keys: tuple[bytes, ...]

    async def act(self, context: Context) -> str | None:
        lease = context.lease_base  # the label 0 is for this alone
        found = _same(str(self), await ask(context, GRANT, rpc_pb2.LeaseGrantRequest(ID=lease, TTL=1)))
        for key in self.keys:
            request = Put(key=key, value=b"short", lease=lease)
            found = found or judge.difference(request, *await context.both(request))
        before = context.now
        asked = rpc_pb2.LeaseTimeToLiveRequest(ID=lease)

        async def both_ended() -> bool:
            return all(reply.TTL == -1 for reply in await ask(context, TIME_TO_LIVE, asked))

        await until(both_ended, "the end of a lease")
        request = Range(key=b"\x00", range_end=b"\x00")
        found = found or judge.difference(request, *await context.both(request))
        if found is None and context.now != before + bool(self.keys):
            found = f"{self}: from revision {before} to {context.now}"
        return found


def _same(what: str, replies: list[object]) -> str | None:
    left, right = map(plain, replies)
    return differs(what, left, right)


def _timeless(reply: object) -> object:
    found = plain(reply)
    if not isinstance(found, judge.Refusal):
        keys = sorted(found.keys)
        del found.keys[:]
        found.keys.extend(keys)
    return found


def draw_grant(generator: Generator) -> Step:
    if generator.happens(0.08):
        return Step(Grant(generator.random.randrange(1, LABELS), TOO_LARGE_TTL), ("lease grant too long",))
    return Step(Grant(generator.random.randrange(1, LABELS), 600), ("lease grant",))


def draw_revoke(generator: Generator) -> Step:
    return Step(Revoke(generator.random.randrange(1, LABELS)), ("lease revoke",))


def draw_keep_alive(generator: Generator) -> Step:
    labels = tuple(generator.random.randrange(1, LABELS) for _ in range(generator.random.randrange(1, 4)))
    return Step(KeepAlive(labels), ("lease keepalive",))


def draw_time_to_live(generator: Generator) -> Step:
    keys = generator.happens(0.6)
    options = ("lease timetolive keys",) if keys else ("lease timetolive",)
    return Step(TimeToLive(generator.random.randrange(1, LABELS), keys), options)


def draw_list(_generator: Generator) -> Step:
    return Step(ListLeases(), ("lease list",))


def draw_put(generator: Generator) -> Step:
    label = generator.random.randrange(1, LABELS)
    return Step(PutLeased(label, generator.key(), generator.happens(0.3)), ("lease put",))


def draw_expire(generator: Generator) -> Step:
    keys = tuple(sorted({generator.key() for _ in range(generator.random.randrange(4))}))
    return Step(Expire(keys), ("lease expiry",))


DRAWS = (
    (14.0, draw_grant),
    (5.0, draw_revoke),
    (6.0, draw_keep_alive),
    (8.0, draw_time_to_live),
    (2.0, draw_list),
    (14.0, draw_put),
    (1.5, draw_expire),
)
OPTIONS = frozenset(
    f"lease {name}"
    for name in (
        "grant", "grant too long", "revoke", "keepalive", "timetolive", "timetolive keys", "list", "put",
        "expiry"
    )
)  # fmt: skip


async def clean_up(context: Context) -> str | None:
    """Revoke what is left, so that nothing expires under the next program."""
    found = None
    for label in range(1, LABELS):
        found = found or await Revoke(label).act(context)
    return found

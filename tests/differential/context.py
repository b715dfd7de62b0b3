"""What an action of a program may use: both sides, and where the program stands."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

import grpc.aio
from google.protobuf.message import Message

from bench import rpc
from tests.differential import judge

CALL_SECONDS_MAX = 15.0
"""For whatever is answered at once; longer than the servers' own patience."""
WAIT_SECONDS_MAX = 20.0
"""For what has its time: a lease of two seconds on a busy machine."""
POLL_SECONDS = 0.02


class NoAnswer(Exception):
    """A side owes an answer, or never came to a state that the other one reached."""


class Abandoned(Exception):
    """A side answered that it is unavailable; nothing can be said about this program."""


class Unary(NamedTuple):
    """One method, called alike on both sides."""

    path: str
    reply: Any

    def on(self, store: rpc.Store, request: Message) -> Awaitable[Any]:
        call = store.channel.unary_unary(
            self.path,
            request_serializer=type(request).SerializeToString,
            response_deserializer=self.reply.FromString,
        )
        return call(request)  # type: ignore[no-any-return]  # grpc's stubs are generic in the message


class Context(Protocol):
    """A running program."""

    now: int
    """Newest revision of the store, equal on both sides."""
    base: int
    queues: Any
    """The calls that wait (`locking.Queues`)."""
    lease_base: int
    """Lease ids of this program are this and a label."""

    @property
    def stores(self) -> list[rpc.Store]:
        """Of the member that the program talks to, on both sides."""

    def count(self, what: str) -> None: ...

    async def both(self, request: Any) -> list[Any]:
        """A request of KV to both sides."""


async def outcome(call: Awaitable[Any]) -> Any:
    """The reply, or the refusal. Raises Abandoned, NoAnswer."""
    try:
        async with asyncio.timeout(CALL_SECONDS_MAX):
            return await call
    except TimeoutError:
        raise NoAnswer("a call was not answered") from None
    except grpc.aio.AioRpcError as error:
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise Abandoned(error.details() or "") from error
        return judge.Refusal(error.code().value[0], error.details() or "")


async def ask(context: Context, method: Unary, request: Message) -> list[Any]:
    """The outcomes of both sides; moves `now` on."""
    found = await asyncio.gather(*(outcome(method.on(store, request)) for store in context.stores))
    learn(context, found)
    return list(found)


def learn(context: Context, outcomes: list[Any]) -> None:
    """Move `now` on to what both sides have told."""
    left = outcomes[0]
    if not isinstance(left, judge.Refusal) and hasattr(left, "header"):
        context.now = max(context.now, left.header.revision)


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait for a condition that must be asked for. Raises NoAnswer."""
    try:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while not await condition():  # noqa: ASYNC110  what is waited for has no event
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise NoAnswer(f"waited in vain for {what}") from None


def plain(reply: Any) -> Any:
    """Without what differs between clusters."""
    if isinstance(reply, judge.Refusal):
        return reply
    copy = type(reply).FromString(reply.SerializeToString())
    for name in ("cluster_id", "member_id", "raft_term"):
        copy.header.ClearField(name)
    return copy


def differs(what: str, left: Any, right: Any) -> str | None:
    """What differs, in words."""
    if type(left) is type(right) and left == right:
        return None
    return f"{what}\n   left {judge.show(left)}\n  right {judge.show(right)}"

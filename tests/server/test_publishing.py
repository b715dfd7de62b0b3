"""Publishing this member to the cluster, with retries until it is applied."""

from __future__ import annotations

import asyncio

import pytest

from kvstore.engine import Engine, Member
from kvstore.replica.replica import Limits
from kvstore.server import joining
from kvstore.server.joining import publish
from kvstore.server.local_member import LocalMember
from raft.node import node_errors


class Node:
    """Answers each proposal with the next prepared error, or applies it."""

    def __init__(self, engine: Engine, answers: list[node_errors.NodeError | None]) -> None:
        self.engine = engine
        self.answers = answers
        self.asked = 0

    def propose(self, command, on_result) -> None:
        error = self.answers[self.asked]
        self.asked += 1
        outcome = None if error else self.engine.apply(self.asked, 1, [command], True)[0]
        asyncio.get_running_loop().call_soon(on_result, outcome, error)


def member_with(answers: list[node_errors.NodeError | None]) -> LocalMember:
    engine = Engine(members=[Member(7, "", ("http://a:1",))])
    return LocalMember(
        node=Node(engine, answers),
        engine=engine,
        cluster_id=1,
        member_id=7,
        limits=Limits(10_000, 128),
        quota_bytes=None,
    )


@pytest.mark.asyncio
async def test_it_is_repeated_until_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "PUBLISH_RETRY_SECONDS", 0.0)
    member = member_with([node_errors.NoLeader(), node_errors.RequestTimedOut(), None])
    assert await publish(member, "a", ("http://c:1",))
    (known,) = member.engine.members()
    assert (known.name, known.client_urls) == ("a", ("http://c:1",))
    assert member.node.asked == 3


@pytest.mark.asyncio
async def test_it_ends_with_the_member() -> None:
    member = member_with([node_errors.Stopped()])
    assert not await publish(member, "a", ("http://c:1",))
    assert member.engine.members()[0].client_urls == ()

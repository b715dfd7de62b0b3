"""A start waits for no election timeout: here one of 50 s, which no test has the patience for."""

from __future__ import annotations

import asyncio

import pytest

UNHURRIED = {"heartbeat_interval": 1000, "election_timeout": 50_000}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("size", "options"),
    [(1, {}), (1, {"initial_election_tick_advance": False}), (3, {})],
    ids=["one", "one without the setting", "three"],
)
async def test_a_cluster_is_ready_soon_when_new_and_with_its_data(members, size, options) -> None:
    cluster = await members.start(size, **UNHURRIED, **options)
    await cluster[0].put(b"k")
    await asyncio.gather(*(member.stop() for member in cluster))
    await asyncio.gather(*(member.start() for member in cluster))
    await asyncio.gather(*(member.ready() for member in cluster))
    assert [await member.get(b"k") for member in cluster] == [b"v"] * size


@pytest.mark.asyncio
async def test_a_majority_of_three_need_not_wait_for_the_third(members) -> None:
    cluster = await members.start(3, **UNHURRIED)
    await asyncio.gather(*(member.stop() for member in cluster))
    rest = cluster[1:]
    await asyncio.gather(*(member.start() for member in rest))
    await asyncio.gather(*(member.ready() for member in rest))
    await cluster[0].start()
    await cluster[0].ready()
    assert len({member.handle.status().leader for member in cluster}) == 1
    assert len({member.handle.status().term for member in cluster}) == 1

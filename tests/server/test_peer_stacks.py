"""Members on different gRPC stacks are one cluster, and a member may change its stack."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import sys

import pytest

from kvstore.peering import make_peer_stack
from raft.transport.grpc_stack import GrpcStack

pytestmark = pytest.mark.asyncio


async def test_members_on_different_stacks_form_one_cluster_through_a_rolling_change(members) -> None:
    cluster = members.plan(3, grpc_stack="grpcio")
    cluster[0].config = dataclasses.replace(cluster[0].config, grpc_stack="ngh2")
    await asyncio.gather(*(member.start() for member in cluster))
    await asyncio.gather(*(member.ready() for member in cluster))
    for number, member in enumerate(cluster):
        others = [other for other in cluster if other is not member]
        await member.put(b"k", b"%d" % number)
        for reader in cluster:
            assert await reader.get(b"k") == b"%d" % number
        await member.stop()
        await others[0].put(b"meanwhile", b"%d" % number)
        other_stack = {"grpcio": "ngh2", "ngh2": "grpcio"}[member.config.grpc_stack]
        member.config = dataclasses.replace(member.config, grpc_stack=other_stack)
        await member.start()
        await member.ready()
        assert await member.get(b"meanwhile") == b"%d" % number


async def test_grpcio_is_taken_where_ngh2_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "kvstore.peering.http2_stack", None)
    with caplog.at_level(logging.WARNING):
        assert isinstance(make_peer_stack("ngh2"), GrpcStack)
    assert "ngh2 cannot be imported" in caplog.text

"""The choice of a binding, also by a member's flag."""

from __future__ import annotations

import sys

import grpc.aio
import pytest

from kvstore.http2.server import Http2Server
from kvstore.rpc import Gate, make_server
from kvstore.rpc.server_stack import GRPCIO, NGH2


@pytest.mark.asyncio
async def test_each_stack_has_its_server() -> None:
    for stack, kind in ((NGH2, Http2Server), (GRPCIO, grpc.aio.Server)):
        server = make_server(stack, [], request_bytes_max=1, gate=Gate())
        assert isinstance(server, kind)
        await server.stop(0)


@pytest.mark.asyncio
async def test_without_ngh2_it_is_grpcio_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.startswith(("kvstore.http2", "kvstore.rpc.http2"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ngh2", None)  # importing it raises ImportError
    server = make_server(NGH2, [], request_bytes_max=1, gate=Gate())
    assert isinstance(server, grpc.aio.Server)
    await server.stop(0)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "ngh2 cannot be imported" in record.getMessage()
